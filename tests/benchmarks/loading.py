"""Loading of pairs against the bare decode of the same JPEGs, batch by batch in the same run.

    python -m tests.benchmarks.loading DATASET [--batches 64]

Each way to read runs in one worker process, as in training, on one thread. There the CPU-seconds of making a batch and
those of the bare decode limit take turns: the limit decodes the frames of the very same batch, their bytes already in
memory, into one small buffer. Other work on the machine changes both alike. Streams are measured at several numbers of
pairs a clip: whatever else of a clip passes by costs, too.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import simplejpeg
from torch.utils.data import DataLoader, IterableDataset

from training.data import Batch, BatchLoader, DataConfig, make_loader
from training.data.reading import FrameReader
from training.data.storage import DatasetStorage
from training.data.streaming import StreamReader


class BareDecode:
    """Decodes the frames of a batch out of memory."""

    def __init__(self, dataset: str, loader: BatchLoader) -> None:
        index = loader.order.index
        self._reader = FrameReader(DatasetStorage(dataset), index)
        self._clips = {index.clip_id(clip): clip for clip in range(len(index))}
        self._buffer = np.empty(0, np.uint8)

    def seconds(self, batch: Batch) -> float:
        """CPU-seconds of decoding what the loader decoded for `batch`: a still once."""
        wanted = []
        for row, is_still in enumerate(batch.is_still.tolist()):
            for side in (batch.source,) if is_still else (batch.source, batch.driving):
                wanted.append((self._clips[side.clip_ids[row]], side.frames[row]))
        jpegs = [bytes(raw.jpeg) for raw in self._reader.read(wanted)]
        if not self._buffer.size:
            self._buffer = simplejpeg.decode_jpeg(jpegs[0], "RGB")
        start = time.process_time()
        for jpeg in jpegs:
            simplejpeg.decode_jpeg(jpeg, "RGB", buffer=self._buffer)
        return time.process_time() - start


class Timed(IterableDataset):
    """Gives (seconds of the loader, seconds of the bare decode) for each batch."""

    def __init__(self, dataset: str, config: DataConfig, batch_size: int) -> None:
        self._loader = make_loader(dataset, config=config, batch_size=batch_size, seed=0)
        self._reader = self._loader.reader
        self._bare = BareDecode(dataset, self._loader)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        number = 0
        stream = iter(self._reader) if isinstance(self._reader, StreamReader) else None
        while True:
            start = time.process_time()
            batch = next(stream) if stream else self._reader[number]
            loader_s = time.process_time() - start
            yield loader_s, self._bare.seconds(batch)
            number += 1


def measure(dataset: str, config: DataConfig, *, batch_size: int, batches: int) -> np.ndarray:
    """float64 [batches, 2]: CPU-seconds of the loader and of the bare decode, after some batches of warming up."""
    timed = DataLoader(
        Timed(dataset, config, batch_size), batch_size=None, num_workers=1, multiprocessing_context="fork"
    )
    seconds = iter(timed)
    for _ in range(config.prefetch_batches + 4):  # all of a worker's memory has been used once
        next(seconds)
    return np.array([next(seconds) for _ in range(batches)])


def main() -> None:
    """Print one line for each way to read."""
    logging.getLogger("training").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder or fsspec URL with a split train")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--still-share", type=float, default=0.1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        common = {"index_folder": folder, "still_share": options.still_share, "num_workers": 0}  # `Timed` has its own
        ways = {"pread": DataConfig(**common)}
        for pairs in (4, 8, 32):
            ways[f"webdataset, {pairs} pairs a clip"] = DataConfig(
                reader="webdataset", stream_pairs_per_clip=pairs, **common
            )
        for name, config in ways.items():
            seconds = measure(options.dataset, config, batch_size=options.batch_size, batches=options.batches)
            rate, limit = options.batch_size * options.batches / seconds.sum(0)
            print(f"{name:28} {rate:7.1f} pairs/s per core, bare decode {limit:7.1f}, share {rate / limit:.3f}")


if __name__ == "__main__":
    main()
