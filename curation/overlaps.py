"""Where clips of one person lie over each other: all pairs, at every offset of whole steps, upright and mirrored.

At an offset, `n` steps of two clips meet that both know a change. They may be copies if the changes differ in at most
`largest_distance(n)` of their bits. With a bit as a sign, +1 or -1, and a step without change as zeros, the bits that
agree less those that differ are a cross-correlation, and a Fourier transform gives it for all offsets of all pairs of
two blocks of clips. What is in reach of the bound is then compared bit by bit: rounding loses no pair and lets none in.

On one core a pair of clips of 10 s takes a few microseconds, and the time grows with the length of the clips, not with
its square (`python -m tests.benchmarks.copies`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from curation.fingerprints import CHANGE_STEPS, MIRROR, MIRROR_CHANGE

MAX_LOOK_DISTANCE = 0.16
"""Share of the bits of their looks in which copies may differ; 0.11 was the most on the real ones."""
MIN_CHANGES = 4
"""Least number of steps with a change that have to meet."""
_BITS = 64
_BLOCK = 128
"""Clips that are compared with as many others at once: 60 MB for clips of 10 s, three times that for 30 s."""
_SLACK_BITS = 1.0
_SLACK_PER_BIT = 1e-5
"""Rounding: 100 times what float32 is off."""

_TURNS = (int(MIRROR_CHANGE) >> np.arange(_BITS, dtype=object)) % 2 == 1
_UPRIGHT_FIRST = np.argsort(_TURNS, kind="stable")
_NUM_UPRIGHT = int((~_TURNS).sum())
"""Bits that a mirrored picture leaves as they are."""


@dataclass(frozen=True, slots=True, order=True)
class Overlap:
    """How two clips lie over each other; of several ways the least is the best."""

    excess: float
    """By how much their distance is over the largest of copies: 0 or less."""
    offset: int
    """Step of the longer clip (of the second, where both are as long) that the first of the other meets."""
    is_mirrored: bool
    distance: float
    """Share of the bits of their changes in which they differ."""


def largest_distance(num_changes: np.ndarray | int) -> np.ndarray:
    """Share of bits in which the changes of copies may differ, by how many steps are compared."""
    return 0.32 - 0.35 / np.sqrt(num_changes)


def _least_agreement(num_changes: np.ndarray) -> np.ndarray:
    """Bits that agree less those that differ, at `largest_distance`; the more steps, the more."""
    return _BITS * num_changes * (1 - 2 * largest_distance(num_changes))


def find_overlaps(clips: list[np.ndarray]) -> Iterator[tuple[int, int, Overlap]]:
    """Pairs of clips that show the same footage, each with its best overlap: numbers of the shorter and the longer one.

    clips: uint64 [steps, 2] each.
    """
    long_enough = [k for k, clip in enumerate(clips) if len(clip) >= CHANGE_STEPS + MIN_CHANGES]
    order = [k for k in long_enough if np.count_nonzero(clips[k][:, 1]) >= MIN_CHANGES]
    order.sort(key=lambda k: (len(clips[k]), k))  # a block has clips of about one length
    blocks = [order[start : start + _BLOCK] for start in range(0, len(order), _BLOCK)]
    for rank, shorter in enumerate(blocks):
        size, spectrum = 0, np.empty(0)
        ones = [clips[k] for k in shorter]
        for longer in blocks[rank:]:
            others = [clips[k] for k in longer]
            needed = next_fast_len(len(ones[-1]) + len(others[-1]) - 1, real=True)
            if needed != size:
                size, spectrum = needed, _spectrum(ones, needed).conj()
            best: dict[tuple[int, int], Overlap] = {}
            for one, other, offset, is_mirrored in _within_reach(spectrum, size, ones, others):
                is_pair = one < other or longer is not shorter
                if is_pair and (found := _compare(ones[one], others[other], offset, is_mirrored)):
                    best[one, other] = min(best.get((one, other), found), found)
            for (one, other), found in best.items():
                yield shorter[one], longer[other], found


def _spectrum(clips: list[np.ndarray], size: int) -> np.ndarray:
    """complex64 [frequencies, 64, clips]: of the signs of each bit of the changes, in time."""
    signs = np.zeros((len(clips[-1]), _BITS, len(clips)), np.float32)
    for k, clip in enumerate(clips):
        words = np.ascontiguousarray(clip[:, 1]).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")[:, _UPRIGHT_FIRST]
        signs[: len(clip), :, k] = np.where(words[:, None] != 0, 2.0 * bits - 1.0, 0.0)
    return rfft(signs, size, axis=0, workers=_num_threads())


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _within_reach(
    spectrum: np.ndarray, size: int, ones: list[np.ndarray], others: list[np.ndarray]
) -> Iterator[tuple[int, int, int, bool]]:
    """Of two blocks: one, other, offset, mirrored or not, wherever they may agree enough.

    spectrum: of `ones`, conjugated. The longest clip of a block is its last. How many steps meet that know a change is
    at least as many as overlap, less the steps without change of both.
    """
    theirs = _spectrum(others, size)
    halves = (slice(None, _NUM_UPRIGHT), slice(_NUM_UPRIGHT, None))
    upright, turning = (
        irfft(
            spectrum[:, half].transpose(0, 2, 1) @ theirs[:, half],
            size,
            axis=0,
            overwrite_x=True,
            workers=_num_threads(),
        )
        for half in halves
    )  # float32 [offsets, ones, others]
    places = np.arange(size)
    offsets = np.where(places < len(others[-1]), places, places - size)
    lengths, other_lengths = np.array([len(c) for c in ones]), np.array([len(c) for c in others])
    blanks, other_blanks = (np.array([np.sum(c[:, 1] == 0) for c in clips]) for clips in (ones, others))
    slack = _SLACK_BITS + _SLACK_PER_BIT * _BITS * len(ones[-1])

    def least(offset: np.ndarray, length: np.ndarray, other_length: np.ndarray, num_blank: np.ndarray) -> np.ndarray:
        overlap = np.minimum(length, other_length - offset) - np.maximum(0, -offset)
        return _least_agreement(np.maximum(MIN_CHANGES, overlap - num_blank)) - slack

    of_block = least(offsets, lengths.min(), other_lengths.min(), blanks.max() + other_blanks.max())
    either_way = np.abs(turning)
    either_way += upright
    place, one, other = np.nonzero(either_way >= of_block.astype(np.float32)[:, None, None])
    needed = least(offsets[place], lengths[one], other_lengths[other], blanks[one] + other_blanks[other])
    for is_mirrored, sign in ((False, 1), (True, -1)):
        enough = upright[place, one, other] + sign * turning[place, one, other] >= needed
        for a, b, offset in zip(*(v[enough].tolist() for v in (one, other, offsets[place])), strict=True):
            yield a, b, offset, is_mirrored


def _compare(clip: np.ndarray, other: np.ndarray, offset: int, is_mirrored: bool) -> Overlap | None:
    """Step k of `clip` laid over step k + offset of `other`; None where that makes them no copies."""
    first, last = max(0, -offset), min(len(clip), len(other) - offset)
    one, two = clip[first:last], other[first + offset : last + offset]
    differing = one ^ two
    if is_mirrored:
        differing = differing ^ np.array([MIRROR[0], MIRROR_CHANGE])
    bits = np.bitwise_count(differing)
    both = (one[:, 1] != 0) & (two[:, 1] != 0)  # not at the start of a clip, and where the picture stands still
    count = int(both.sum())
    if count < MIN_CHANGES:
        return None
    distance = float(bits[both, 1].sum() / (count * _BITS))
    excess = float(distance - largest_distance(count))
    if excess > 0 or float(bits[:, 0].mean()) / _BITS > MAX_LOOK_DISTANCE:
        return None
    return Overlap(excess, offset, is_mirrored, distance)
