"""HDR video (PQ, HLG) brought to the brightness and colours of all other pictures: BT.709, seen by a gamma of 2.4.

Diffuse white lies at 203 cd/m2, as BT.2408 has it: darker things look as in a usual video of the same scene, lights
above it are compressed. Tables and single operations on numbers only, so that all machines give the same bits.
"""

from __future__ import annotations

from functools import cache

import av
import numpy as np

_PQ, _HLG = 16, 18  # FFmpeg's AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67
_BT2020 = 9  # FFmpeg's AVCOL_PRI_BT2020
_WHITE = 203.0  # cd/m2
_PEAK = 1000 / _WHITE
"""Light in units of diffuse white that becomes 255, as all above it does."""
_KNEE = 0.75
"""Light from which on it is compressed."""
_STEPS = 4096
_ROWS = 32  # at a time, so that what is in between stays in the cache
_LUMINANCE = np.array((0.2627, 0.6780, 0.0593), np.float32)
_BT2020_TO_BT709 = np.array(
    ((1.6605, -0.5876, -0.0729), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1188)), np.float32
)


def is_hdr(picture: av.VideoFrame) -> bool:
    """Whether its brightness is by PQ or HLG."""
    return picture.color_trc in (_PQ, _HLG)


def to_sdr(values: np.ndarray, picture: av.VideoFrame) -> np.ndarray:
    """RGB values of an HDR `picture` as it has them, uint16 [H, W, 3] of 16 bits, to uint8 [H, W, 3]."""
    shown = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS):
        light = _light(values[start : start + _ROWS], picture.color_trc)
        if picture.color_primaries == _BT2020:
            light = np.stack([_weighted(light, row) for row in _BT2020_TO_BT709], -1)
        shares = np.sqrt(light.clip(0, _PEAK) / np.float32(_PEAK))
        shown[start : start + _ROWS] = _shown_table()[_steps(shares)]
    return shown


def _light(values: np.ndarray, transfer: int) -> np.ndarray:
    """Light of each colour in units of diffuse white: float32 [H, W, 3]."""
    steps = values >> 4
    if transfer == _PQ:
        return _pq_table()[steps]
    light = _hlg_table()[steps]
    brightness = np.sqrt(_weighted(light, _LUMINANCE).clip(0, 1))
    return light * _hlg_gain_table()[_steps(brightness)][..., None]


def _weighted(light: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return light[..., 0] * weights[0] + light[..., 1] * weights[1] + light[..., 2] * weights[2]


def _steps(shares: np.ndarray) -> np.ndarray:
    """From 0 to 1, to positions in a table."""
    return (shares * np.float32(_STEPS - 1) + np.float32(0.5)).astype(np.int32)


@cache
def _pq_table() -> np.ndarray:
    """Light of a value by SMPTE ST 2084."""
    root = np.linspace(0, 1, _STEPS) ** (32 / 2523)
    light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
    return (light * 10000 / _WHITE).astype(np.float32)


@cache
def _hlg_table() -> np.ndarray:
    """Light of the scene, 0 to 1, of a value by ARIB STD-B67."""
    values = np.linspace(0, 1, _STEPS)
    bright = (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(values <= 0.5, values**2 / 3, bright).astype(np.float32)


@cache
def _hlg_gain_table() -> np.ndarray:
    """Of the square root of the scene's luminance: what a display of 1000 cd/m2 makes of light of the scene."""
    return (np.linspace(0, 1, _STEPS) ** 0.4 * 1000 / _WHITE).astype(np.float32)


@cache
def _shown_table() -> np.ndarray:
    """Of the square root of light as a share of `_PEAK`: the value that is shown, uint8."""
    light = np.linspace(0, 1, _STEPS) ** 2 * _PEAK
    above, most = np.maximum(light - _KNEE, 0) / (1 - _KNEE), (_PEAK - _KNEE) / (1 - _KNEE)
    compressed = _KNEE + (1 - _KNEE) * above * (1 + above / most**2) / (1 + above)
    return (np.where(light <= _KNEE, light, compressed) ** (1 / 2.4) * 255).round().astype(np.uint8)
