"""HDR video (PQ, HLG) brought to the brightness and colours of all other pictures: BT.709, seen by a gamma of 2.4.

Diffuse white lies at 203 cd/m2, as BT.2408 has it: what is darker than three quarters of it looks as in a usual video
of the same scene, lights above are compressed. Tables and single operations on numbers only, so that all machines give
the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import av
import cv2
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
            light = [_weighted(light, row) for row in _BT2020_TO_BT709]
        cv2.merge([_shown(of_colour) for of_colour in light], shown[start : start + _ROWS])
    return shown


def _light(values: np.ndarray, transfer: int) -> Sequence[np.ndarray]:
    """Light of red, green and blue in units of diffuse white: float32 [H, W] each."""
    table = _pq_table() if transfer == _PQ else _hlg_table()
    light = cv2.split(cv2.LUT(values >> 4, table))
    if transfer == _PQ:
        return light
    brightness = _weighted(light, _LUMINANCE)
    np.clip(brightness, 0, 1, out=brightness)
    gain = cv2.LUT(_steps(np.sqrt(brightness, out=brightness)), _hlg_gain_table())
    return [of_colour * gain for of_colour in light]


def _shown(light: np.ndarray) -> np.ndarray:
    """Light of one colour in units of diffuse white to the value that is shown, uint8."""
    shares = light.clip(0, _PEAK)
    shares /= np.float32(_PEAK)
    return cv2.LUT(_steps(np.sqrt(shares, out=shares)), _shown_table())


def _weighted(light: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    total = light[0] * weights[0]
    total += light[1] * weights[1]
    total += light[2] * weights[2]
    return total


def _steps(shares: np.ndarray) -> np.ndarray:
    """From 0 to 1, to positions in a table, uint16; `shares` serve as scratch."""
    shares *= np.float32(_STEPS - 1)
    shares += np.float32(0.5)
    return shares.astype(np.uint16)


def _table(values: np.ndarray) -> np.ndarray:
    """As OpenCV takes a table for 16 bits: [65536], of which the first `_STEPS` are looked up."""
    table = np.zeros(2**16, values.dtype)
    table[:_STEPS] = values
    return table


@cache
def _pq_table() -> np.ndarray:
    """Light of a value by SMPTE ST 2084."""
    root = np.linspace(0, 1, _STEPS) ** (32 / 2523)
    light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
    return _table((light * 10000 / _WHITE).astype(np.float32))


@cache
def _hlg_table() -> np.ndarray:
    """Light of the scene, 0 to 1, of a value by ARIB STD-B67."""
    values = np.linspace(0, 1, _STEPS)
    bright = (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return _table(np.where(values <= 0.5, values**2 / 3, bright).astype(np.float32))


@cache
def _hlg_gain_table() -> np.ndarray:
    """Of the square root of the scene's luminance: what a display of 1000 cd/m2 makes of light of the scene."""
    return _table((np.linspace(0, 1, _STEPS) ** 0.4 * 1000 / _WHITE).astype(np.float32))


@cache
def _shown_table() -> np.ndarray:
    """Of the square root of light as a share of `_PEAK`: the value that is shown, uint8."""
    light = np.linspace(0, 1, _STEPS) ** 2 * _PEAK
    above, most = np.maximum(light - _KNEE, 0) / (1 - _KNEE), (_PEAK - _KNEE) / (1 - _KNEE)
    compressed = _KNEE + (1 - _KNEE) * above * (1 + above / most**2) / (1 + above)
    return _table((np.where(light <= _KNEE, light, compressed) ** (1 / 2.4) * 255).round().astype(np.uint8))
