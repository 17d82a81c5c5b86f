"""Which two frames a sample is: a pure function of (seed, epoch, global index), the same whoever asks.

Two streams, videos and stills, are mixed in a set ratio by index arithmetic: sample g is a still where
floor((g + 1) share) exceeds floor(g share). Each stream counts its own epochs. An epoch is as long as the stream has
clips, and draws them by systematic sampling: at place k of a shuffled order it takes the clip at (k + u) / length of
the cumulative weights, u new in each epoch. So a clip of weight w is drawn floor(w) or ceil(w) times an epoch (weights
scaled to mean 1), exactly once where all are equal, and resuming anywhere costs nothing.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from manifests.console import amount
from training.data.clips import ClipIndex
from training.data.draws import draw_below, draw_uniform, shuffled

_log = logging.getLogger(__name__)
_ORDER, _PHASE, _FRAMES, _OTHER, _REPLACEMENT = 11, 12, 13, 14, 15  # purposes of draws
_MAX_DRAWS_OF_OTHER = 64
MANY_STILLS = Fraction(3, 10)
"""Of the pairs, where motion is learned, from the others."""
_TYPICAL_MOTION = np.array([10.0, 10.0, 10.0, 0.1, 0.1, 0.15], np.float32)
"""Of the numbers of MOTION (degrees, openness): what a talking head does within seconds. A blink counts as a turn."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two frames, by clips' rows in the index and frames' places in the clips."""

    index: int
    """Global sample index."""
    source_clip: int
    source_frame: int
    driving_clip: int
    driving_frame: int

    is_still: bool
    """Source and driving are one picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairOptions:
    """How pairs are chosen."""

    min_gap_s: float = 0.4
    """Least time between the two frames; of a clip that is shorter, the two that are farthest apart. Stitching, whose
    driving frames are of another person, uses neither this nor the next where it reads by `pread`."""
    driving_candidates: int = 1
    """Driving frames to draw, of which the one that differs most from the source in pose, eyes and lips is taken."""
    still_share: float | None = None
    """Part of the samples that are stills; None: as their weights say, which balance persons: the stills of many who
    are seen once then outweigh videos."""
    held_out_share: float = 0.0
    """Part of the frames of each video, its last ones, that is kept back from training: split `held_out` drives with
    these the other frames of the same clips."""

    def __post_init__(self) -> None:
        if self.min_gap_s < 0:
            raise ValueError(f"min_gap_s is {self.min_gap_s}, expected at least 0")
        if self.driving_candidates < 1:
            raise ValueError(f"driving_candidates is {self.driving_candidates}, expected at least 1")
        if self.still_share is not None and not 0 <= self.still_share <= 1:
            raise ValueError(f"still_share is {self.still_share}, expected 0 to 1")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share is {self.held_out_share}, expected at least 0 and less than 1")


class FramePairs:
    """Chooses two frames of a clip. Frames that repeat another or were repaired are left out while two others exist."""

    def __init__(self, index: ClipIndex, options: PairOptions, *, held_out: bool) -> None:
        self._index = index
        self._options = options
        self._held_out = held_out

    def choose(self, clip: int, *keys: int) -> tuple[int, int]:
        """Source and driving frame, by `keys`: the source uniform among frames that have a partner far enough away,
        the driving frame uniform among these partners (or the most moved of several)."""
        sources, drivers = self._fit_frames(clip)
        distance = int(drivers[-1] - sources[0])  # drivers are the same frames, or later ones
        gap = max(1, math.ceil(self._options.min_gap_s * float(self._index.fps[clip]) - 1e-6))
        gap = min(gap, distance)
        if gap == 0:  # one frame
            return int(sources[0]), int(drivers[0])
        num_before = np.searchsorted(drivers, sources - gap, side="right")  # partners before and after each source
        first_after = np.searchsorted(drivers, sources + gap, side="left")
        num_partners = num_before + len(drivers) - first_after
        partnered = np.flatnonzero(num_partners)
        at = partnered[draw_below(len(partnered), *keys, 0)]

        def partner(number: int) -> int:
            place = draw_below(int(num_partners[at]), *keys, 1 + number)
            return int(drivers[place if place < num_before[at] else place - num_before[at] + first_after[at]])

        source = int(sources[at])
        candidates = [partner(number) for number in range(self._options.driving_candidates)]
        return source, candidates[0] if len(candidates) == 1 else self._most_moved(clip, source, candidates)

    def choose_one(self, clip: int, *keys: int) -> int:
        """One driving frame, uniform."""
        _, frames = self._fit_frames(clip)
        return int(frames[draw_below(len(frames), *keys)])

    def _fit_frames(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames to choose the source and the driving frame from, in order."""
        unfit = self._index.is_unfit(clip)
        start = num_training_frames(len(unfit), self._options.held_out_share)
        before = _fit(unfit[:start])
        return before, start + _fit(unfit[start:]) if self._held_out else before

    def _most_moved(self, clip: int, source: int, candidates: list[int]) -> int:
        motion = self._index.motion(clip).astype(np.float32)
        moved = np.nan_to_num((motion[candidates] - motion[source]) / _TYPICAL_MOTION, nan=0.0)
        return candidates[int(np.linalg.norm(moved, axis=1).argmax())]


def _fit(unfit: np.ndarray) -> np.ndarray:
    fit = np.flatnonzero(~unfit)
    return fit if len(fit) >= min(2, len(unfit)) else np.arange(len(unfit))


def num_training_frames(num_frames: Any, held_out_share: float) -> Any:
    """Frames of a clip (or of each of an array) before those that are held out; at least two, or all."""
    num_held_out = np.minimum(np.floor(num_frames * held_out_share), num_frames - 2)
    return num_frames - np.maximum(num_held_out, 0).astype(np.int64)


class _Stream:
    """The clips of one kind and the order in which they are drawn."""

    def __init__(self, clips: np.ndarray, weight: np.ndarray, seed: int, purpose: int) -> None:
        self.clips = clips
        total = float(weight.sum())
        self.cumulative = np.cumsum(weight / total)
        self.cumulative /= self.cumulative[-1]
        self._keys = (seed, purpose)

    def __len__(self) -> int:
        return len(self.clips)

    def clip(self, number: int) -> tuple[int, int]:
        """Clip and epoch of sample `number` of the stream."""
        epoch, place = divmod(number, len(self))
        phase = draw_uniform(*self._keys, _PHASE, epoch)
        return self.at((shuffled(place, len(self), *self._keys, _ORDER, epoch) + phase) / len(self)), epoch

    def at(self, share: float) -> int:
        """The clip at `share` in [0, 1) of the cumulative weights."""
        row = int(np.searchsorted(self.cumulative, share, side="right"))
        return int(self.clips[min(row, len(self) - 1)])


class PairOrder:
    """Pair number g for every g, without end. Immutable; small enough to be copied to workers."""

    def __init__(
        self,
        index: ClipIndex,
        options: PairOptions,
        *,
        seed: int,
        cross_identity: bool = False,
        held_out: bool = False,
    ) -> None:
        self.index = index
        self.cross_identity = cross_identity
        self._seed = seed
        self._frames = FramePairs(index, options, held_out=held_out)
        drawn = index.weight > 0
        if held_out:
            num_frames = np.diff(index.first)
            drawn &= num_training_frames(num_frames, options.held_out_share) < num_frames
            if not drawn.any():
                raise ValueError(f"no clip is long enough to hold out {options.held_out_share} of its frames")
        rows = [np.flatnonzero(drawn & (index.is_still == is_still)) for is_still in (False, True)]
        self._streams = [_Stream(r, index.weight[r], seed, n) if len(r) else None for n, r in enumerate(rows)]
        self.still_share = share_of_stills(options.still_share, *(float(index.weight[r].sum()) for r in rows))
        drivers = rows[0] if len(rows[0]) else rows[1]
        if cross_identity and len(np.unique(index.identity[drivers])) < 2:
            drivers = np.flatnonzero(drawn)
            if len(np.unique(index.identity[drivers])) < 2:
                raise ValueError(
                    f"pairs of two persons need two, but the split has only one, in {amount(len(drivers), 'clip')}: "
                    "curate videos of others into the data set, or give --data one that shows several persons"
                )
        self._drivers = _Stream(drivers, index.weight[drivers], seed, 2)
        self.may_drive = np.zeros(len(index), bool)
        """Which clips drive other persons: videos, and stills only where videos show fewer than two."""
        self.may_drive[drivers] = True

    def describe_stills(self, *, learns_motion: bool) -> str:
        """How many of the pairs are stills, and what to do where that is much of what motion is to be learned from."""
        if self._streams[True] is None:
            return "no stills"
        told = f"{100 * float(self.still_share):.1f} % of the pairs are stills"
        if not learns_motion or self.still_share <= MANY_STILLS:
            return told
        remedy = "set --data.still-share, as to 0.05" if self._streams[False] is not None else "add videos"
        return f"{told}, in which nothing moves: {remedy}"

    def pair_of_clip(self, clip: int, *keys: int) -> Pair:
        """A pair of frames of this clip by `keys`; for streams, where the clip comes first. Its index is 0."""
        source, driving = self._frames.choose(clip, self._seed, _FRAMES, *keys, clip)
        return Pair(0, clip, source, clip, driving, bool(self.index.is_still[clip]))

    def expected_draws(self) -> np.ndarray:
        """float64 [N]: how often each clip is to be drawn, 1 on average, with the share of stills as asked."""
        expected = np.zeros(len(self.index))
        for stream, share in zip(self._streams, (1 - self.still_share, self.still_share), strict=True):
            if stream is not None:
                weight = self.index.weight[stream.clips]
                expected[stream.clips] = weight * (float(share) / weight.sum())
        return expected * (np.count_nonzero(expected) / expected.sum())

    def pair(self, index: int) -> Pair:
        """The pair with global sample index `index`."""
        stills_before = math.floor(index * self.still_share)
        is_still = math.floor((index + 1) * self.still_share) > stills_before
        stream = self._streams[is_still]
        assert stream is not None
        clip, epoch = stream.clip(stills_before if is_still else index - stills_before)
        return self._complete(index, clip, (self._seed, _FRAMES, epoch, index, 0))

    def replacement(self, damaged: Pair, attempt: int) -> Pair:
        """What is read instead of a damaged pair, of the same kind; `attempt` counts from 1."""
        stream = self._streams[bool(self.index.is_still[damaged.source_clip])]
        assert stream is not None
        clip = stream.at(draw_uniform(self._seed, _REPLACEMENT, damaged.index, attempt))
        return self._complete(damaged.index, clip, (self._seed, _FRAMES, 0, damaged.index, attempt))

    def _complete(self, index: int, clip: int, keys: tuple[int, ...]) -> Pair:
        if self.cross_identity:
            return Pair(index, clip, self._frames.choose_one(clip, *keys, 0), *self.other_driver(clip, *keys), False)
        source, driving = self._frames.choose(clip, *keys)
        return Pair(index, clip, source, clip, driving, bool(self.index.is_still[clip]))

    def other_driver(self, clip: int, *keys: int) -> tuple[int, int]:
        """Clip and frame of somebody else, by `keys`."""
        other = self._other_person(clip, keys)
        return other, self._frames.choose_one(other, *keys, 1)

    def _other_person(self, clip: int, keys: tuple[int, ...]) -> int:
        """A clip of somebody else: drawn by weight; after many misses, uniform among all others."""
        identity = self.index.identity
        for number in range(_MAX_DRAWS_OF_OTHER):
            other = self._drivers.at(draw_uniform(*keys, _OTHER, number))
            if identity[other] != identity[clip]:
                return other
        clips = self._drivers.clips
        others = clips[identity[clips] != identity[clip]]
        return int(others[draw_below(len(others), *keys, _OTHER, _MAX_DRAWS_OF_OTHER)])


def share_of_stills(asked: float | None, video_weight: float, still_weight: float) -> Fraction:
    """The ratio that is used: as asked or by the weights, and 0 or 1 where there are clips of one kind only."""
    if not video_weight or not still_weight:
        share = Fraction(0 if video_weight else 1)
        if asked == 1 and video_weight:
            _log.warning("still_share is 1, but this split has only videos: all samples are videos")
        return share
    by_weight = still_weight / (video_weight + still_weight)
    return Fraction(by_weight if asked is None else asked).limit_denominator(10_000)
