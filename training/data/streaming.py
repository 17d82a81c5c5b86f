"""The `webdataset` way to read: whole shards as streams, pairs made inside clips as they pass, a shuffle buffer.

Every worker of every rank is one stream. In each pass the shards are dealt to the streams in a new order (streams share
a shard's clips where there are fewer shards than streams). The index says beforehand which pairs a shard will give: a
clip of mean weight gives `stream_pairs_per_clip` of them on average, and stills as many as their share asks (on
average; exact only with `pread`). Frames that no pair needs pass by unread. Where another person is to drive, the
driving frame is that of another pair in the buffer or just gone, not a draw of its own by weight as with `pread`.

A stream is a function of (seed, rank, number of ranks, worker, number of workers). With these unchanged, and unless
damage was met, resume is exact: whole segments of 8 shards are skipped by arithmetic, and the pairs of the one segment
that was begun are read again and dropped without decoding. With another layout training goes on with other pairs: some
of the pass come twice, some not at all.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from manifests.console import amount
from manifests.errors import StoreUnreachable
from training.data.batch import Batch
from training.data.clips import OnDamage
from training.data.draws import draw_below, shuffled, uniform_of_each
from training.data.pairs import Pair, PairOrder
from training.data.reading import (
    MAX_ATTEMPTS,
    DamagedSampleError,
    FrameReader,
    PictureMemory,
    RawFrame,
    make_batch,
    unreadable,
)
from training.data.storage import DatasetStorage

_log = logging.getLogger(__name__)
_SHARDS_OF_SEGMENT = 8
_NUM_RECENT = 64  # pairs of videos whose driving frames may serve another person's source
_MAX_EMPTY_SEGMENTS = 20
_ORDER, _NUM_PAIRS, _BUFFER, _OTHER = 21, 22, 23, 24  # purposes of draws


@dataclass(frozen=True, slots=True)
class _Segment:
    """What one stream reads between two moments with an empty buffer."""

    epoch: int
    """Pass over the shards."""
    number: int
    """In the pass."""
    rows: list[np.ndarray]
    """For each shard the clips of which pairs are made."""
    num_pairs: list[np.ndarray]
    """How many of each."""


@dataclass(frozen=True, slots=True)
class _RawPair:
    pair: Pair
    source: RawFrame
    driving: RawFrame


class StreamReader(IterableDataset):
    """Batches of one rank; each worker process makes every K-th."""

    def __init__(
        self,
        storage: DatasetStorage,
        order: PairOrder,
        damaged_clips: np.ndarray,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        start: int,
        seed: int,
        pairs_per_clip: float,
        shuffle_buffer: int,
        on_damage: OnDamage,
        memory: PictureMemory,
    ) -> None:
        super().__init__()
        self._storage = storage
        self._order = order
        self._index = order.index
        self._reader = FrameReader(storage, order.index)
        self._damaged_clips = damaged_clips
        self._batch_size = batch_size
        self._rank, self._world_size = rank, world_size
        self._seed = seed
        self._shuffle_buffer = shuffle_buffer
        self._on_damage = on_damage
        self._memory = memory
        self._num_done, rest = divmod(start, batch_size * world_size)
        if rest:
            _log.warning("position %d is no whole number of batches; the stream goes on from %d", start, start - rest)
        self._expected = order.expected_draws() * pairs_per_clip
        # Clips lie in the order of their shards: those of shard k are rows [bounds[k], bounds[k + 1]).
        self._bounds = np.searchsorted(self._index.shard, np.arange(len(self._index.shards) + 1))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        num_workers, at = (worker.num_workers, worker.id) if worker else (1, 0)
        # The first batch comes from worker 0, whichever stream is to go on: streams wander over workers on resume.
        first, place = divmod(self._num_done + at, num_workers)
        stream = self._rank * num_workers + place
        skipped: list[str] = []
        pairs = self._pairs(stream, self._world_size * num_workers, first * self._batch_size, skipped)
        for number in itertools.count(first):
            step = number * num_workers + place
            start = (step * self._world_size + self._rank) * self._batch_size
            sides = self._memory.sides()
            made = []
            num_damaged = 0
            while len(made) < self._batch_size:
                try:
                    raw = next(pairs)
                    for side, frame in zip(sides, (raw.source, raw.driving), strict=True):
                        side.fill(len(made), frame)
                    made.append(replace(raw.pair, index=start + len(made)))
                except DamagedSampleError as error:
                    self._skip(str(error), skipped)
                    num_damaged += 1
                    if num_damaged == MAX_ATTEMPTS * self._batch_size:
                        raise unreadable(self._batch_size - len(made), self._batch_size, str(error)) from error
            position = (step + 1) * self._world_size * self._batch_size
            yield make_batch(made, *sides, position=position, skipped=skipped.copy())
            skipped.clear()

    def _skip(self, name: str, skipped: list[str]) -> None:
        if self._on_damage == "fail":
            raise ValueError(f"damaged sample: {name}")
        skipped.append(name)

    def _pairs(self, stream: int, num_streams: int, num_drop: int, skipped: list[str]) -> Iterator[_RawPair]:
        """Pairs of a stream from number `num_drop` on, without end. Names of what is missing go to `skipped`."""
        num_empty = 0
        for segment in self._segments(stream, num_streams):
            size = int(sum(num.sum() for num in segment.num_pairs))
            if num_drop >= size > 0:
                num_drop -= size
                continue
            num_got = 0
            for raw in self._shuffled(segment, skipped):
                num_got += 1
                if num_drop:
                    num_drop -= 1
                else:
                    yield raw
            num_empty = 0 if num_got else num_empty + 1
            if num_empty == _MAX_EMPTY_SEGMENTS:
                raise ValueError(
                    f"reader {stream + 1} of {num_streams} finds nothing to read: the split, "
                    f"{amount(len(self._index), 'clip')} in {amount(len(self._index.shards), 'shard')}, is too small "
                    "or too damaged for so many. Use fewer --data.num-workers, or --data.reader pread"
                )

    def _segments(self, stream: int, num_streams: int) -> Iterator[_Segment]:
        """Segments of a stream in order, without end."""
        num_shards = len(self._index.shards)
        for epoch in itertools.count():
            order = [shuffled(k, num_shards, self._seed, _ORDER, epoch) for k in range(num_shards)]
            part, num_parts = 0, 1
            if num_shards >= num_streams:
                mine = order[stream::num_streams]
            else:  # several streams read one shard and take turns with its clips
                mine = [order[stream % num_shards]]
                num_parts = len(range(stream % num_shards, num_streams, num_shards))
                part = (stream // num_shards + epoch) % num_parts
            for number in range(0, len(mine), _SHARDS_OF_SEGMENT):
                shards = mine[number : number + _SHARDS_OF_SEGMENT]
                rows = [np.arange(self._bounds[s] + part, self._bounds[s + 1], num_parts) for s in shards]
                num_pairs = []
                for clips in rows:
                    draws = uniform_of_each(clips, self._seed, _NUM_PAIRS, epoch)
                    num_pairs.append(np.floor(self._expected[clips] + draws).astype(np.int64))
                    num_pairs[-1][self._damaged_clips[clips]] = 0
                yield _Segment(epoch, number // _SHARDS_OF_SEGMENT, rows, num_pairs)

    def _shuffled(self, segment: _Segment, skipped: list[str]) -> Iterator[_RawPair]:
        """The pairs of a segment through the shuffle buffer, which is empty at its end."""
        buffer: list[_RawPair] = []
        recent: deque[_RawPair] = deque(maxlen=_NUM_RECENT)
        key = (self._seed, _BUFFER, segment.epoch, segment.number)
        incoming = itertools.chain.from_iterable(
            self._shard_pairs(segment.epoch, *of_shard, skipped)
            for of_shard in zip(segment.rows, segment.num_pairs, strict=True)
        )
        for number in itertools.count():
            buffer += itertools.islice(incoming, self._shuffle_buffer - len(buffer))
            if not buffer:
                return
            at = draw_below(len(buffer), *key, number)
            buffer[at], buffer[-1] = buffer[-1], buffer[at]
            raw = buffer.pop()
            if not self._order.cross_identity:
                yield raw
            else:
                try:
                    yield self._with_other_person(raw, [*buffer, *recent], *key, number)
                except DamagedSampleError as error:
                    self._skip(str(error), skipped)
            if self._order.may_drive[raw.pair.driving_clip]:
                recent.append(raw)

    def _with_other_person(self, raw: _RawPair, others: list[_RawPair], *keys: int) -> _RawPair:
        """The pair with a driving frame of somebody else: of one of `others`, or read by offset where none serves.

        So every pair is given, and resume knows how many there were. Raises DamagedSampleError.
        """
        identity, may_drive = self._index.identity, self._order.may_drive
        start = draw_below(max(1, len(others)), *keys, _OTHER)
        for place in range(len(others)):
            other = others[(start + place) % len(others)]
            clip, frame, driving = other.pair.driving_clip, other.pair.driving_frame, other.driving
            if may_drive[clip] and identity[clip] != identity[raw.pair.source_clip]:
                break
        else:
            clip, frame = self._order.other_driver(raw.pair.source_clip, *keys, _OTHER)
            (driving,) = self._reader.read([(clip, frame)])
            if isinstance(driving, DamagedSampleError):
                raise driving
        pair = replace(raw.pair, driving_clip=clip, driving_frame=frame, is_still=False)
        return _RawPair(pair, raw.source, driving)

    def _shard_pairs(
        self, epoch: int, rows: np.ndarray, num_pairs: np.ndarray, skipped: list[str]
    ) -> Iterator[_RawPair]:
        """Pairs of one shard, clip by clip as they pass; in the end those whose frames did not come are skipped."""
        index = self._index
        waiting: dict[str, list[Pair]] = {}
        for clip, num in zip(rows.tolist(), num_pairs.tolist(), strict=True):
            if num:
                waiting[index.clip_id(clip)] = [self._order.pair_of_clip(clip, epoch, n) for n in range(num)]
        if not waiting:
            return
        keys = {f"{clip_id}_{f:06d}" for clip_id, pairs in waiting.items() for p in pairs for f in _frames_of(p)}
        shard = index.shards[index.shard[rows[0]]]
        troubles: list[str] = []
        samples = self._samples(shard, keys, troubles)
        for clip_id, of_clip in itertools.groupby(samples, key=_clip_of_sample):
            found = {int(sample["__key__"][-6:]): sample for sample in of_clip}
            late = []
            for pair in waiting.pop(clip_id, []):
                if all(frame in found for frame in _frames_of(pair)):
                    source, driving = (
                        self._raw_frame(pair.source_clip, frame, found[frame])
                        for frame in (pair.source_frame, pair.driving_frame)
                    )
                    yield _RawPair(pair, source, driving)
                else:
                    late.append(pair)
            if late:
                waiting[clip_id] = late
        reason = "not in the shard" + (f", which ended with {troubles[0]}" if troubles else "")
        for pair in itertools.chain.from_iterable(waiting.values()):
            self._skip(f"{index.place(pair.source_clip, pair.source_frame).name}: {reason}", skipped)

    def _samples(self, shard: str, keys: set[str], troubles: list[str]) -> Iterator[dict[str, Any]]:
        """Samples of a shard whose key is wanted, as webdataset reads them: `__key__`, `jpg` and `json` as bytes.

        Ends where the shard cannot be read any more; `troubles` gets the reason. Raises StoreUnreachable where no shard
        can be: the object store answers nothing.
        """

        def stop(error: Exception) -> bool:
            if isinstance(error, StoreUnreachable):
                raise error
            troubles.append(f"{type(error).__name__}: {error.args[0] if error.args else ''}")
            return False

        try:
            with self._storage.open_shard(shard) as file:
                source = [{"url": self._storage.shard_place(shard), "stream": file}]
                members = tar_file_expander(source, handler=stop, select_files=lambda name: name.split(".")[0] in keys)
                yield from group_by_keys(members, handler=stop)
        except OSError as error:
            stop(error)

    def _raw_frame(self, clip: int, frame: int, sample: dict[str, Any]) -> RawFrame:
        index = self._index
        name = index.place(clip, frame).name
        jpeg, label = sample.get("jpg", b""), sample.get("json", b"")
        return RawFrame(name, index.clip_id(clip), frame, index.identity_id(clip), jpeg, label)


def _frames_of(pair: Pair) -> set[int]:
    return {pair.source_frame, pair.driving_frame}


def _clip_of_sample(sample: dict[str, Any]) -> str:
    return sample["__key__"].rsplit("_", 1)[0]
