"""`make_loader`: batches of one rank without end, from any position, by either way to read."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Literal

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader, Sampler

from manifests.errors import StoreUnreachable
from training.data.batch import Batch
from training.data.clips import ClipIndex, OnDamage, damaged_clips, open_index
from training.data.pairs import PairOptions, PairOrder
from training.data.reading import BatchReader, FrameReader, PictureMemory
from training.data.storage import DatasetStorage
from training.data.streaming import StreamReader

_log = logging.getLogger(__name__)
HELD_OUT = "held_out"
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_NO_SHARED_MEMORY = (
    "/dev/shm, through which workers hand over pictures, is full: give the container more (docker run --shm-size 8g),"
    " or take fewer --data.num-workers or --data.prefetch-batches"
)
_WORKER_GONE = (
    "mostly the system does that for want of memory: give it more, or take fewer --data.num-workers or"
    " --data.prefetch-batches"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(PairOptions):
    """How pairs are chosen and read."""

    reader: Literal["pread", "webdataset"] = "pread"
    """`pread`: only the bytes of the frames that are needed, by offset, local or remote; exact resume. `webdataset`:
    whole shards as a stream through a shuffle buffer, for object stores that charge or wait for each request; for
    training only, other splits are always read by `pread`."""
    num_workers: int = 4
    """Processes that read and decode, for each rank; 0: in the training process."""
    prefetch_batches: int = 4
    """Batches that each worker keeps ready."""
    worker_start: Literal["fork", "forkserver", "spawn"] = "forkserver"
    """How worker processes start. `fork` is quick, but not safe once CUDA, gloo or S3 threads run."""
    on_damage: OnDamage = "skip"
    """What a damaged sample or shard does: it is replaced, counted and named, or ends the run."""
    shuffle_buffer: int = 512
    """`webdataset`: pairs in the buffer of each worker, about 0.1 MB each."""
    stream_pairs_per_clip: float = 8.0
    """`webdataset`: pairs made of a clip of mean weight in one pass over the shards; fewer mix better, but read more
    bytes for each pair."""
    index_folder: str = ""
    """Folder of the index made from the manifests; empty: in the folder for temporary files."""

    def __post_init__(self) -> None:
        PairOptions.__post_init__(self)
        if self.reader not in ("pread", "webdataset"):
            raise ValueError(f"reader is {self.reader!r}, expected 'pread' or 'webdataset'")
        for name, least in (("num_workers", 0), ("prefetch_batches", 1), ("shuffle_buffer", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.stream_pairs_per_clip <= 0:
            raise ValueError(f"stream_pairs_per_clip is {self.stream_pairs_per_clip}, expected more than 0")


class BatchLoader:
    """Iterable of `Batch` without end. Counts and names what was skipped.

    The end of an iterator (or of the process) stops its workers; each `iter` starts at the same position again.
    """

    def __init__(self, loader: DataLoader, order: PairOrder) -> None:
        self._loader = loader
        self.reader: BatchReader | StreamReader = loader.dataset  # type: ignore[assignment]
        """What each worker does: gives batches by number, or one after the other."""
        self.order = order
        """Which pair has which index."""
        self.num_skipped = 0
        """Damaged samples so far."""
        self.skipped: dict[str, int] = {}
        """How often each was met, by name and reason."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in _plain_errors(self._loader):
            self.num_skipped += batch.num_skipped
            for name in batch.skipped:
                if name not in self.skipped:
                    _log.warning("skipped: %s", name)
                self.skipped[name] = self.skipped.get(name, 0) + 1
            for frames in (batch.source, batch.driving):
                if frames.images.is_shared():  # else page-locked by now, or read in this process
                    frames.images = frames.images.clone()  # a worker will decode there again
            yield batch


def _plain_errors(batches: DataLoader) -> Iterator[Batch]:
    """The batches. A worker's error, which comes with its traceback as text, becomes its own message again.

    Raises:
        OSError: there is no room in shared memory, or a worker was killed; the message says what to do.
    """
    with _stop_signals_held():
        iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except (ValueError, StoreUnreachable) as error:
            kind = type(error)
            raise kind(re.split(rf"\n[\w.]*{kind.__name__}: ", str(error))[-1].strip()) from error
        except RuntimeError as error:
            if "shared memory" in str(error):
                raise OSError(_NO_SHARED_MEMORY) from error
            if str(error).startswith("DataLoader worker"):  # "(pid 7) is killed by signal", "exited unexpectedly"
                raise OSError(f"{str(error).strip().rstrip('.')}: {_WORKER_GONE}") from error
            raise
        yield batch


class _Numbers(Sampler[int]):
    """0, 1, 2 ... without end."""

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1


def make_loader(
    dataset: str,
    *,
    config: DataConfig,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int,
    position: int = 0,
    split: str = "train",
    cross_identity: bool = False,
    side_px: int = 0,
) -> BatchLoader:
    """Batches of rank `rank`. Step n takes the global indices position + n * W * B + rank * B, and B - 1 more.

    dataset: folder or fsspec URL. split: train, val, test, or `held_out` (see `DataConfig.held_out_share`).
    batch_size: B, pairs of this rank. position: pairs that all ranks have consumed, as `Batch.position` says; the
    number of ranks and workers may differ from the run before (`webdataset`: see streaming.py).
    cross_identity: the driving frame shows another person.
    side_px: as large as pictures are needed; the JPEG decoder makes larger ones half as large, up to three times, for
    less than it costs to decode them whole. Landmarks follow. 0: as stored.
    Raises ValueError for a data set that is missing, empty or, with `on_damage="fail"`, damaged.
    """
    assert 0 <= rank < world_size
    assert batch_size > 0
    assert position >= 0
    storage = DatasetStorage(dataset)
    held_out = split == HELD_OUT
    index = open_index(
        storage, "train" if held_out else split, with_motion=config.driving_candidates > 1, folder=config.index_folder
    )
    damaged = damaged_clips(storage, index, on_damage=config.on_damage)
    pairs = config if held_out else _of_kinds_left(config, index, damaged)
    order = PairOrder(index, pairs, seed=seed, cross_identity=cross_identity, held_out=held_out)
    stored_px = _picture_side(storage, index, damaged)
    if stored_px < side_px:
        _log.warning("note: pictures of %d px are enlarged to the %d px that the model learns from", stored_px, side_px)
    halvings = next((n for n in (3, 2, 1) if side_px and stored_px % 2**n == 0 and stored_px >> n >= side_px), 0)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "rank": rank,
        "world_size": world_size,
        "start": position,
        "on_damage": config.on_damage,
        "memory": PictureMemory(batch_size, stored_px, prefetch_batches=config.prefetch_batches, halvings=halvings),
    }
    if config.reader == "webdataset" and split == "train":
        reader = StreamReader(
            storage,
            order,
            damaged,
            seed=seed,
            pairs_per_clip=config.stream_pairs_per_clip,
            shuffle_buffer=config.shuffle_buffer,
            **options,
        )
        return BatchLoader(_data_loader(reader, config), order)
    reader = BatchReader(storage=storage, order=order, damaged_clips=damaged, **options)
    return BatchLoader(_data_loader(reader, config, sampler=_Numbers()), order)


def _of_kinds_left(options: PairOptions, index: ClipIndex, damaged: np.ndarray) -> PairOptions:
    """The options without the kind of clips of which all are damaged: nothing could take their place."""
    lost = [(index.is_still == still).any() and damaged[index.is_still == still].all() for still in (False, True)]
    if not any(lost):
        return options
    _log.warning(
        "all %s lie in damaged shards: every sample is a %s", *("stills", "video") if lost[1] else ("videos", "still")
    )
    return dataclasses.replace(options, still_share=0.0 if lost[1] else 1.0)


def _data_loader(dataset: Any, config: DataConfig, **options: Any) -> DataLoader:
    if config.num_workers:
        context: Any = multiprocessing.get_context(config.worker_start)
        if config.worker_start == "forkserver":
            context.set_forkserver_preload([__name__])  # imported once, not by each worker
        options |= {
            "multiprocessing_context": context,
            "prefetch_factor": config.prefetch_batches,
            "worker_init_fn": _end_by_parent_alone,
        }
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


@contextmanager
def _stop_signals_held() -> Iterator[None]:
    """Processes started within never hear SIGINT and SIGTERM. A terminal's Ctrl-C and torchrun's end reach the whole
    group of processes, but they are for the training process to obey, which may need a few batches more."""
    resource_tracker.ensure_running()  # deaf by itself; to start it later would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_by_parent_alone(worker: int) -> None:
    """End this worker when the training process asks for it by SIGTERM, or is gone, even killed.

    PyTorch's own guard looks at the fork server, which waits for its workers in turn.
    """
    parent = multiprocessing.parent_process()

    def wait_for_signal() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    def wait_for_end() -> None:
        parent.join()
        os._exit(1)

    for wait in (wait_for_signal, wait_for_end):
        threading.Thread(target=wait, daemon=True).start()


def _picture_side(storage: DatasetStorage, index: ClipIndex, damaged: Any) -> int:
    """Side in pixels of the first picture that can be read; all of a data set have the same."""
    reader = FrameReader(storage, index)
    for clip in range(len(index)):
        if damaged[clip]:
            continue
        raw = reader.read([(clip, 0)])[0]
        if isinstance(raw, Exception):
            continue
        try:
            return simplejpeg.decode_jpeg_header(raw.jpeg)[0]
        except ValueError:
            continue
    raise ValueError(f"no picture of {storage.root} can be read: are its shards those of another data set?")
