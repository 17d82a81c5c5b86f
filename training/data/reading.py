"""From pairs to batches: read the bytes of the frames that are needed, check them, decode into the batch's memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
import orjson
import simplejpeg
import torch
from torch.utils.data import get_worker_info

from manifests.console import amount
from manifests.errors import StoreUnreachable
from training.data.batch import Batch, Frames
from training.data.clips import ClipIndex, FramePlace, OnDamage
from training.data.pairs import Pair, PairOrder
from training.data.storage import DatasetStorage

_ONE_READ_BYTES = 64 << 10  # a JPEG and its label closer than this are one read
MAX_ATTEMPTS = 64
"""Samples that are tried for one of a batch, before nothing is taken to be readable any more."""


class DamagedSampleError(Exception):
    """A frame that cannot be used; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class RawFrame:
    """The bytes of one frame, not looked at yet."""

    name: str
    """Of the frame, for messages."""
    clip_id: str
    frame: int
    identity_id: str
    jpeg: bytes | memoryview
    label: bytes | memoryview


class FrameReader:
    """Reads frames by byte offset."""

    def __init__(self, storage: DatasetStorage, index: ClipIndex) -> None:
        self._storage = storage
        self._index = index

    def read(self, frames: Iterable[tuple[int, int]]) -> list[RawFrame | DamagedSampleError]:
        """The bytes of each (clip, frame); all ranges are asked for at once, as object stores like it.

        Raises StoreUnreachable where the object store answers nothing any more.
        """
        frames = list(frames)
        places = [self._index.place(*one) for one in frames]
        spans = [_spans(place) for place in places]
        ranges = [(place.shard, *span) for place, parts in zip(places, spans, strict=True) for span in parts]
        found = iter(self._storage.read_ranges(ranges))
        raw: list[RawFrame | DamagedSampleError] = []
        for (clip, _), place, asked in zip(frames, places, spans, strict=True):
            parts = [(span[0], next(found)) for span in asked]
            raw.append(self._cut(place, self._index.identity_id(clip), parts))
        return raw

    def _cut(
        self, place: FramePlace, identity_id: str, parts: list[tuple[int, bytes | Exception]]
    ) -> RawFrame | DamagedSampleError:
        members = []
        for start, end in (place.jpeg, place.label):
            begin, data = parts[0] if len(parts) == 1 or not members else parts[1]
            if isinstance(data, StoreUnreachable):
                raise data  # of everything, not of this sample
            if isinstance(data, Exception):
                return DamagedSampleError(f"{place.name}: {type(data).__name__}: {data}")
            member = memoryview(data)[start - begin : end - begin]
            if len(member) < end - start:
                return DamagedSampleError(f"{place.name}: the shard ends before byte {end}")
            members.append(member)
        return RawFrame(place.name, place.clip_id, place.frame, identity_id, *members)


def _spans(place: FramePlace) -> list[tuple[int, int]]:
    start, end = min(place.jpeg[0], place.label[0]), max(place.jpeg[1], place.label[1])
    needed = place.jpeg[1] - place.jpeg[0] + place.label[1] - place.label[0]
    return [(start, end)] if end - start - needed <= _ONE_READ_BYTES else [place.jpeg, place.label]


class PictureMemory:
    """Where the pictures of batches are decoded: new memory, or in a worker shared memory that is used in turns.

    New shared memory would cost half as much time as the decoding. A worker is at most `prefetch_batches` batches ahead
    of what the loader has handed on, and one more may be on its way out of shared memory; of one more than these, none
    is overwritten too early.
    """

    def __init__(self, batch_size: int, side_px: int, *, prefetch_batches: int, halvings: int = 0) -> None:
        """side_px: of the stored pictures. halvings: how often they are made half as large while they are decoded."""
        self._batch_size, self._side_px, self._halvings = batch_size, side_px, halvings
        self._num_slots = prefetch_batches + 2
        self._slots: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._number = 0

    def sides(self) -> tuple[FrameBuffer, FrameBuffer]:
        """Buffers of the source and the driving frames of the next batch."""
        if get_worker_info() is None:
            return self._buffer(), self._buffer()
        if len(self._slots) < self._num_slots:
            source, driving = (self._buffer().images.share_memory_() for _ in range(2))
            self._slots.append((source, driving))
        source, driving = self._slots[self._number % self._num_slots]
        self._number += 1
        return self._buffer(source), self._buffer(driving)

    def _buffer(self, images: torch.Tensor | None = None) -> FrameBuffer:
        return FrameBuffer(self._batch_size, self._side_px, images, halvings=self._halvings)


class FrameBuffer:
    """The arrays of one side of a batch while it is filled."""

    def __init__(self, batch_size: int, side_px: int, images: torch.Tensor | None = None, *, halvings: int = 0) -> None:
        """side_px: of the stored pictures, which the JPEG decoder makes half as large `halvings` times.

        images: uint8 [B, side, side, 3] of the halved size, to be overwritten; None: new memory.
        """
        self._stored_px, self._scale = side_px, 0.5**halvings
        side = side_px >> halvings
        self.images = torch.empty((batch_size, side, side, 3), dtype=torch.uint8) if images is None else images
        self._pixels = self.images.numpy()
        self._labels = np.full((batch_size, 136 + 3), np.nan, np.float32)
        self._names = [("", 0, "")] * batch_size

    def fill(self, row: int, raw: RawFrame) -> None:
        """Check and decode one frame into `row`. Raises DamagedSampleError."""
        label = read_label(raw)
        if self._scale < 1:
            label[:136] = (label[:136] + 0.5) * self._scale - 0.5  # pixel centres are at integers
        self._labels[row] = label
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(raw.jpeg)
            if not height == width == self._stored_px:
                expected = f"{self._stored_px} x {self._stored_px}"
                raise DamagedSampleError(f"{raw.name}: the picture is {width} x {height}, expected {expected}")
            side = self._pixels.shape[1]
            simplejpeg.decode_jpeg(raw.jpeg, "RGB", min_height=side, min_width=side, buffer=self._pixels[row])
        except ValueError as error:
            raise DamagedSampleError(f"{raw.name}: the JPEG does not decode: {error}") from error
        self._names[row] = (raw.clip_id, raw.frame, raw.identity_id)

    def copy_row(self, row: int, other: FrameBuffer) -> None:
        """The same frame as in `other`."""
        self._pixels[row] = other._pixels[row]
        self._labels[row] = other._labels[row]
        self._names[row] = other._names[row]

    def frames(self) -> Frames:
        """What was filled, without a copy."""
        labels = torch.from_numpy(self._labels)
        clip_ids, frames, identities = zip(*self._names, strict=True)
        return Frames(
            images=self.images.permute(0, 3, 1, 2),
            landmarks=labels[:, :136].reshape(-1, 68, 2),
            pose=labels[:, 136:139].contiguous(),
            clip_ids=list(clip_ids),
            frames=list(frames),
            identities=list(identities),
        )


def read_label(raw: RawFrame) -> np.ndarray:
    """float32 [139]: 68 points x, y, then pitch, yaw, roll. Raises DamagedSampleError."""
    try:
        label: dict[str, Any] = orjson.loads(raw.label)
        found = label["clip_id"], label["frame"]
        points = label["landmarks"]
        if len(points) != 68:
            raise ValueError(f"{len(points)} landmarks, expected 68")
        rest = [label["pitch_deg"], label["yaw_deg"], label["roll_deg"]]
        flat = itertools.chain.from_iterable(points)
        values = np.array([*flat, *rest], np.float32)
        if values.shape != (139,):
            raise ValueError(f"{len(values) - 3} coordinates, expected 136")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedSampleError(f"{raw.name}: the label cannot be read: {type(error).__name__}: {error}") from error
    if found != (raw.clip_id, raw.frame):
        raise DamagedSampleError(f"{raw.name}: the bytes there are frame {found[1]} of clip {found[0]}")
    return values


def unreadable(num: int, batch_size: int, last: str) -> ValueError:
    """That `num` samples of a batch have none to replace them. last: name of one, and what is wrong with it."""
    return ValueError(
        f"{num} of the {amount(batch_size, 'sample')} of a batch could not be read, nor {MAX_ATTEMPTS - 1} "
        f"replacements of each; at last: {last}. If the data set was changed while it was read, run the same command "
        "again; else verify it, or copy it again"
    )


@dataclass(kw_only=True, eq=False)
class BatchReader:
    """Batch number n of one rank; what a worker does. Pickles without open files."""

    storage: InitVar[DatasetStorage]
    order: PairOrder
    damaged_clips: np.ndarray
    """bool, of every clip of the order's index."""
    batch_size: int
    """Pairs of this rank."""
    rank: int
    world_size: int
    start: int
    """Pairs of all ranks that are passed over."""
    on_damage: OnDamage
    memory: PictureMemory

    def __post_init__(self, storage: DatasetStorage) -> None:
        self._reader = FrameReader(storage, self.order.index)

    def __getitem__(self, number: int) -> Batch:
        """The batch that is `number` steps after the start."""
        step = self.batch_size * self.world_size
        first = self.start + number * step
        indices = range(first + self.rank * self.batch_size, first + (self.rank + 1) * self.batch_size)
        pairs = [self.order.pair(index) for index in indices]
        sides = self.memory.sides()
        skipped: list[str] = []
        waiting = list(range(len(pairs)))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            again = self._fill(pairs, waiting, sides, skipped)
            if not again:
                break
            for row in again:
                pairs[row] = self.order.replacement(pairs[row], attempt)
            waiting = again
        else:
            raise unreadable(len(waiting), len(pairs), skipped[-1])
        return make_batch(pairs, *sides, position=first + step, skipped=skipped)

    def _fill(
        self, pairs: list[Pair], rows: list[int], sides: tuple[FrameBuffer, ...], skipped: list[str]
    ) -> list[int]:
        """Read and decode `rows`; returns those that are damaged and adds their names."""
        index = self.order.index
        again, readable = [], []
        for row in rows:
            clips = {pairs[row].source_clip, pairs[row].driving_clip}
            if lost := [clip for clip in clips if self.damaged_clips[clip]]:
                skipped.append(
                    f"{index.place(lost[0], 0).shard}: clip {index.clip_id(lost[0])} lies in a damaged shard"
                )
                again.append(row)
            else:
                readable.append(row)
        wanted = [frame for row in readable for frame in _frames_of(pairs[row])]
        raw = iter(self._reader.read(wanted))
        for row in readable:
            got = [next(raw) for _ in _frames_of(pairs[row])]
            try:
                for side, frame in enumerate(got):
                    if isinstance(frame, DamagedSampleError):
                        raise frame
                    sides[side].fill(row, frame)
            except DamagedSampleError as error:
                if self.on_damage == "fail":
                    raise ValueError(f"damaged sample: {error}") from error
                skipped.append(str(error))
                again.append(row)
                continue
            if len(got) == 1:
                sides[1].copy_row(row, sides[0])
        return again


def _frames_of(pair: Pair) -> list[tuple[int, int]]:
    """What is to be read for a pair: two frames, one where they are the same."""
    source, driving = (pair.source_clip, pair.source_frame), (pair.driving_clip, pair.driving_frame)
    return [source] if source == driving else [source, driving]


def make_batch(
    pairs: list[Pair], source: FrameBuffer, driving: FrameBuffer, *, position: int, skipped: list[str]
) -> Batch:
    """The batch of filled buffers."""
    return Batch(
        source=source.frames(),
        driving=driving.frames(),
        is_still=torch.tensor([pair.is_still for pair in pairs]),
        indices=torch.tensor([pair.index for pair in pairs]),
        still_rows=[row for row, pair in enumerate(pairs) if pair.is_still],
        position=position,
        num_skipped=len(skipped),
        skipped=skipped,
    )
