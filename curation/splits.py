"""Train, validation and test splits that share no person, no source and no footage, and that stay when data is added.

Clips that share a key (identity, source, footage) are linked, if they are kept or were kept once; linked clips form a
group. A group's split is a hash of the seed and of the group's name, so groups are spread evenly, and the shares of a
recipe can be changed while most groups stay where they are.

A group is named after its first clip when it comes up and keeps that name as it grows: new sources never move the
clips of a group. Only when something new links two groups they must become one, in one split. It is then the one whose
clips a model is most likely to have been fitted to: train before val before test. Clips thus move from test to train
and never from train to test, and what is left in test has never been in train. Inside one split the larger group's
name stays, then the smaller name. A group that loses its link is two groups of one name, in one split.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_BY_USE = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """How the groups are divided."""

    seed: int
    val_share: float
    test_share: float

    def split_of(self, group: str) -> str:
        """train, val or test: where the hash of the group's name falls on [0, 1)."""
        digest = hashlib.sha256(f"{self.seed} {group}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        if place < self.test_share:
            return "test"
        return "val" if place < self.test_share + self.val_share else "train"


def group_clips(
    clip_ids: Sequence[str], keys: Sequence[tuple[str, ...]], previous: Mapping[str, str], shares: Shares
) -> dict[str, str]:
    """Group of each clip. keys: what it shares with others. previous: clip -> group of an earlier selection."""
    groups = {}
    for first, clips in _members(clip_ids, keys).items():
        counts = Counter(previous[clip] for clip in clips if clip in previous)
        ranked = [(_BY_USE.index(shares.split_of(old)), -count, old) for old, count in counts.items()]
        groups |= dict.fromkeys(clips, min(ranked)[2] if ranked else _name_group(first))
    return groups


def groups_of_splits(
    clip_ids: Sequence[str], keys: Sequence[tuple[str, ...]], splits: Sequence[str], shares: Shares
) -> dict[str, str]:
    """Groups that have the given splits, for clips that were divided before groups were written down.

    Names are tried until one falls into the split. Where none does, because its share is 0 by now, any will do.
    """
    split_of = dict(zip(clip_ids, splits, strict=True))
    groups = {}
    for first, clips in _members(clip_ids, keys).items():
        names = [f"{_name_group(first)}_{number}" for number in range(2000)]
        name = next((n for n in names if shares.split_of(n) == split_of[first]), names[0])
        groups |= dict.fromkeys(clips, name)
    return groups


def _name_group(clip_id: str) -> str:
    """A name that does not contain the clip's, which may have to be forgotten."""
    return f"group_{hashlib.sha256(clip_id.encode()).hexdigest()[:16]}"


def _members(clip_ids: Sequence[str], keys: Sequence[tuple[str, ...]]) -> dict[str, list[str]]:
    """The linked clips, by the smallest of them."""
    members: dict[str, list[str]] = defaultdict(list)
    for clip_id, first in linked(clip_ids, keys).items():
        members[first].append(clip_id)
    return members


def linked(clip_ids: Sequence[str], keys: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """For each clip the smallest clip that a chain of shared keys leads to."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for clip_id, shared in zip(clip_ids, keys, strict=True):
        root(f"0 {clip_id}")
        for key in shared:
            one, other = sorted((root(f"0 {clip_id}"), root(f"1 {key}")))  # so a root is the smallest clip
            parent[other] = one
    return {clip_id: root(f"0 {clip_id}")[2:] for clip_id in clip_ids}
