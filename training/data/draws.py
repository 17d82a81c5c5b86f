"""Random numbers that are functions of what they are for: no state, the same on every rank, worker and resume.

`draw_bits` mixes integers (a seed, an epoch, a sample's index, a purpose) to 64 bits with the finaliser of SplitMix64
(Steele, Lea, Flood 2014) between them. `shuffled` is a keyed permutation of [0, size) evaluated at one place: a Feistel
network on the next even number of bits, walked until it lands inside.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def draw_bits(*keys: int) -> int:
    """64 random bits of `keys`."""
    state = 0
    for key in keys:
        state = _mix((state + _GOLDEN + (key & _MASK)) & _MASK)
    return _mix((state + _GOLDEN) & _MASK)


def draw_uniform(*keys: int) -> float:
    """A number in [0, 1) of `keys`, with 53 random bits."""
    return (draw_bits(*keys) >> 11) * 2.0**-53


def draw_below(size: int, *keys: int) -> int:
    """An integer in [0, size) of `keys`; the bias is below size / 2^64."""
    return (draw_bits(*keys) * size) >> 64


def shuffled(place: int, size: int, *keys: int) -> int:
    """What stands at `place` of a random permutation of [0, size) that `keys` select; O(1) memory and time."""
    assert 0 <= place < size, f"{place = } {size = }"
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    rounds = _round_keys(*keys)
    while True:
        left, right = place >> half, place & mask
        for key in rounds:
            left, right = right, left ^ (_mix((right + key) & _MASK) & mask)
        place = left << half | right
        if place < size:
            return place


@lru_cache(maxsize=64)
def _round_keys(*keys: int) -> tuple[int, ...]:
    return tuple(draw_bits(*keys, number) for number in range(4))


def bits_of_each(values: np.ndarray, *keys: int) -> np.ndarray:
    """uint64 of the shape of integers `values`: `draw_bits(*keys, value)` of each."""
    state = 0
    for key in keys:
        state = _mix((state + _GOLDEN + (key & _MASK)) & _MASK)
    return _mix_array(
        _mix_array(np.asarray(values).astype(np.uint64) + np.uint64((state + _GOLDEN) & _MASK)) + np.uint64(_GOLDEN)
    )


def uniform_of_each(values: np.ndarray, *keys: int) -> np.ndarray:
    """float64 in [0, 1): `draw_uniform(*keys, value)` of each of the integers `values`."""
    return (bits_of_each(values, *keys) >> np.uint64(11)) * 2.0**-53


def draw_table(indices: Tensor, num: int, *keys: int) -> Tensor:
    """float64 [B, num] in [0, 1): row b is a function of `indices[b]` and `keys` alone. On the CPU."""
    columns = [uniform_of_each(indices.numpy(), *keys, column) for column in range(num)]
    return torch.from_numpy(np.stack(columns, 1))


def _mix_array(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
