"""Blocks of clips laid over each other by Fourier transforms, against the rule, pair by pair and place by place."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from curation import overlaps
from curation.fingerprints import MIRROR, MIRROR_CHANGE
from curation.overlaps import find_overlaps
from tests.curation.test_duplicates import Film


def overlaps_by_the_rule(clips: list[np.ndarray]) -> dict[tuple[int, int], tuple[int, bool, float]]:
    """Offset, mirrored or not, and distance of every pair: nothing but the rule, one place after the other."""
    found = {}
    order = sorted(range(len(clips)), key=lambda k: (len(clips[k]), k))
    for rank, one in enumerate(order):
        for other in order[rank + 1 :]:
            ways = []
            for is_mirrored in (False, True):
                mine = clips[one] ^ np.array([MIRROR[0], MIRROR_CHANGE]) if is_mirrored else clips[one]
                for offset in range(-len(mine), len(clips[other]) + 1):
                    steps = [k for k in range(len(mine)) if 0 <= k + offset < len(clips[other])]
                    met = [k for k in steps if clips[one][k, 1] and clips[other][k + offset, 1]]
                    if len(mine) < 6 or len(met) < 4:
                        continue
                    changes = [int(mine[k, 1] ^ clips[other][k + offset, 1]).bit_count() for k in met]
                    looks = [int(mine[k, 0] ^ clips[other][k + offset, 0]).bit_count() for k in steps]
                    distance, largest = sum(changes) / (64 * len(met)), 0.32 - 0.35 / len(met) ** 0.5
                    if distance <= largest and sum(looks) <= 0.16 * 64 * len(steps):
                        ways.append((distance - largest, offset, is_mirrored, distance))
            if ways:
                found[one, other] = min(ways)[1:]
    return found


def shoot_clips(seed: int, num: int) -> list[np.ndarray]:
    """Parts of a few films of one face, many with noise near the bound, mirrored, or with pictures that stand still."""
    film, chance = Film(seed), np.random.default_rng(seed)
    films = [film.shoot(int(chance.integers(12, 45))) for _ in range(max(1, num // 4))]
    clips = []
    for _ in range(num):
        words = films[chance.integers(len(films))]
        length = int(chance.integers(4, len(words) + 1))
        start = int(chance.integers(0, len(words) - length + 1))
        clip = film.noisy(words[start : start + length], float(chance.choice([0.0, 0.08, 0.12, 0.16, 0.2])))
        clip[:, 0] = film.noisy(words[start : start + length, 0], 0.05)
        if chance.random() < 0.4:
            clip ^= np.array([MIRROR[0], MIRROR_CHANGE])
        if chance.random() < 0.8:
            clip[:2, 1] = 0
        if chance.random() < 0.4:
            clip[chance.random(length) < chance.random(), 1] = 0
        clips.append(clip)
    return clips


@pytest.mark.parametrize(("seed", "block"), [(0, 128), (9, 5), (13, 1)])
def test_what_is_found_is_what_the_rule_says(seed, block, monkeypatch):
    monkeypatch.setattr(overlaps, "_BLOCK", block)
    clips = shoot_clips(seed, 24)
    found = {(one, other): (o.offset, o.is_mirrored, o.distance) for one, other, o in find_overlaps(clips)}
    expected = overlaps_by_the_rule(clips)
    assert found == expected
    assert len(expected) >= 10
    assert {is_mirrored for _, is_mirrored, _ in expected.values()} == {False, True}
    assert {offset < 0 for offset, _, _ in expected.values()} == {False, True}


def test_no_pair_at_the_bound_is_lost():
    """Of 49 changes the bound is 0.27 of the bits: 846 of 3136 may differ, 847 may not."""
    chance = np.random.default_rng(3)
    one = chance.integers(1, 2**64, (49, 2), dtype=np.uint64)
    for num_differing, is_copy in ((846, True), (847, False)):
        bits = chance.permutation(np.arange(49 * 64) < num_differing).reshape(49, 64)
        other = one.copy()
        other[:, 1] ^= np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0]
        found = list(find_overlaps([one, other]))
        assert len(found) == is_copy
        assert all(overlap.distance == num_differing / (49 * 64) for _, _, overlap in found)


def test_the_search_takes_memory_for_blocks_not_for_pairs():
    """1,500 clips of 2 s; all pairs at all offsets would be 170 MB."""
    chance = np.random.default_rng(4)
    clips = list(chance.integers(1, 2**64, (1500, 10, 2), dtype=np.uint64))
    tracemalloc.start()
    assert list(find_overlaps(clips)) == []
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
