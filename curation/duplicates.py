"""Clips that show the same footage: re-encoded, rescaled, with borders, cut otherwise, mirrored, or shifted in time.

Two clips of one person are laid over each other at every offset of whole steps, upright and mirrored, and the hashes of
the steps that meet are compared (`curation.fingerprints`). They are copies where the changes of the picture agree, the
more so the fewer steps meet, and where the looks agree too. Only clips of one identity are compared: copies have the
most similar embeddings of all, 0.87 and more on re-encoded, mirrored and cropped real clips.

Measured on 8 real videos and 7 copies of each, at 5 steps a second: changes of copies differ in 0.13 of their bits
(median; 0.25 at most, a 400 x 300 video at a very low bitrate), those of other moments of the same shot in 0.31 and
more over 6 s; the shorter the overlap, the likelier chance is, hence `curation.overlaps.largest_distance`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.fingerprints import MIRROR
from curation.overlaps import Overlap, find_overlaps
from curation.splits import linked

MAX_STILL_DISTANCE = 0.2
"""The same for stills, over all bits: 0.15 at most on copies of real ones, if the face is whole and not a blur."""
MIN_STILL_SIMILARITY = 0.85
"""Least cosine of the embeddings of two stills that are copies; other pictures of one person had 0.77 at most."""
_BITS = 64


@dataclass(frozen=True, slots=True)
class Copy:
    """Two clips with footage in common."""

    one: str
    other: str
    one_share: float
    """Share of the steps of `one` that `other` shows too."""
    other_share: float
    one_start: float
    """Where the common part begins in `one`, as a share of it."""
    other_start: float
    is_mirrored: bool
    distance: float
    """Share of the bits in which they differ."""


def find_copies(
    clip_ids: Sequence[str],
    hashes: Sequence[np.ndarray | None],
    is_still: Sequence[bool],
    embeddings: Sequence[np.ndarray | None],
    identities: Mapping[str, str],
) -> list[Copy]:
    """All pairs of clips that show the same footage, ordered by clip ids.

    hashes: uint64 [2 * steps] of each clip; None where they were never made: such clips are not compared.
    """
    videos, stills = defaultdict(list), defaultdict(list)
    for k, clip_id in sorted(enumerate(clip_ids), key=lambda item: item[1]):
        if clip_id in identities and hashes[k] is not None and len(hashes[k]):
            (stills if is_still[k] else videos)[identities[clip_id]].append(k)
    copies = []
    for members in videos.values():
        clips = [np.asarray(hashes[k], np.uint64).reshape(-1, 2) for k in members]
        for one, other, overlap in find_overlaps(clips):
            pair = (clip_ids[members[one]], clip_ids[members[other]])
            copies.append(_describe(pair, (len(clips[one]), len(clips[other])), overlap))
    for members in stills.values():
        words = np.array([hashes[k] for k in members], np.uint64)
        vectors = np.array([embeddings[k] for k in members])
        for one, other, is_mirrored, distance in _copies_of_stills(words, vectors):
            pair = clip_ids[members[one]], clip_ids[members[other]]
            copies.append(Copy(*pair, 1.0, 1.0, 0.0, 0.0, is_mirrored, distance))
    return sorted(copies, key=lambda c: (c.one, c.other))


def _copies_of_stills(words: np.ndarray, vectors: np.ndarray) -> Iterator[tuple[int, int, bool, float]]:
    for one in range(len(words) - 1):
        alike = vectors[one + 1 :] @ vectors[one] >= MIN_STILL_SIMILARITY
        distances = [
            np.bitwise_count(words[one + 1 :] ^ words[one] ^ mask).sum(1, dtype=int) / (2 * _BITS)
            for mask in (np.zeros(2, np.uint64), MIRROR)
        ]
        nearest = np.minimum(*distances)
        for k in np.flatnonzero(alike & (nearest <= MAX_STILL_DISTANCE)):
            yield one, one + 1 + int(k), bool(distances[1][k] < distances[0][k]), float(nearest[k])


def _describe(pair: tuple[str, str], num_steps: tuple[int, int], overlap: Overlap) -> Copy:
    offset = overlap.offset
    if pair[0] > pair[1]:
        pair, num_steps, offset = pair[::-1], num_steps[::-1], -offset
    first, last = max(0, -offset), min(num_steps[0], num_steps[1] - offset)
    shares = (last - first) / num_steps[0], (last - first) / num_steps[1]
    starts = first / num_steps[0], (first + offset) / num_steps[1]
    return Copy(*pair, *shares, *starts, overlap.is_mirrored, overlap.distance)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """What decides which of several copies is the best one, in this order."""

    face_height_px: float
    duration_s: float
    sharpness: float
    bits_per_s: float


_ABOUT_AS_GOOD = 1.15


def choose_best(clips: Mapping[str, Quality], copies: Sequence[Copy], min_share: float) -> dict[str, str]:
    """Of clips that show the same footage the better ones stay; the others point to the one that shows most of them.

    clips: those that may stay. A clip goes when better ones that stay show at least `min_share` of it together. Clips
    that may not stay anyhow point to a copy as well. Better is: larger face, else longer, else sharper, else more bits
    a second, else the smaller clip_id. In the first three what is within 15 % of the best copy counts as equal, so
    that noise does not outweigh what comes after.
    """
    meets: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    keys: dict[str, list[str]] = defaultdict(list)
    for copy in copies:
        meets[copy.one].append((copy.other, copy.one_start, copy.one_start + copy.one_share))
        meets[copy.other].append((copy.one, copy.other_start, copy.other_start + copy.other_share))
        for clip_id in (copy.one, copy.other):
            keys[clip_id].append(f"{copy.one} {copy.other}")
    footage: dict[str, list[str]] = defaultdict(list)
    for clip_id, first in linked(list(keys), [tuple(k) for k in keys.values()]).items():
        footage[first].append(clip_id)
    duplicate_of: dict[str, str] = {}
    for members in footage.values():
        mine = {clip_id: clips[clip_id] for clip_id in members if clip_id in clips}
        duplicate_of |= _of_same_footage(_best_first(mine), sorted(set(members) - set(mine)), meets, min_share)
    return duplicate_of


def _best_first(clips: Mapping[str, Quality]) -> list[str]:
    names = ("face_height_px", "duration_s", "sharpness")
    best = {name: max((getattr(q, name) for q in clips.values()), default=0.0) for name in names}

    def rank(clip_id: str) -> tuple[Any, ...]:
        quality = clips[clip_id]
        ratios = [max(best[name], 1e-6) / max(getattr(quality, name), 1e-6) for name in names]
        return (*(int(np.log(r) / np.log(_ABOUT_AS_GOOD)) for r in ratios), -quality.bits_per_s, clip_id)

    return sorted(clips, key=rank)


def _of_same_footage(
    best_first: list[str],
    others: list[str],
    meets: Mapping[str, list[tuple[str, float, float]]],
    min_share: float,
) -> dict[str, str]:
    stays: set[str] = set()
    duplicate_of: dict[str, str] = {}
    for clip_id in [*best_first, *others]:
        parts = [(start, end, other) for other, start, end in meets[clip_id] if other in stays]
        if parts and _covered(parts) >= min_share - 1e-9:
            duplicate_of[clip_id] = min(parts, key=lambda part: (part[0] - part[1], part[2]))[2]
        elif clip_id not in others:
            stays.add(clip_id)
    return duplicate_of


def _covered(parts: list[tuple[float, float, str]]) -> float:
    """Length of the union of intervals."""
    covered, reached = 0.0, 0.0
    for start, end, _ in sorted(parts):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
