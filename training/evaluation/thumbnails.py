"""Small JPEGs for the page, made while a picture is at hand: those of thousands of clips would not fit in memory."""

from __future__ import annotations

import base64

import numpy as np
import simplejpeg

from training.evaluation.pixels import to_size

STRIP_PX, SMALL_PX = 144, 94
DIFFERENCE_GAIN = 3
JPEG_QUALITY = 85


def thumbnail(picture: np.ndarray, size_px: int = STRIP_PX) -> bytes:
    """JPEG of side `size_px` of a square picture uint8 [S, S, 3]."""
    small = np.ascontiguousarray(to_size(picture[None], size_px)[0])
    return simplejpeg.encode_jpeg(small, quality=JPEG_QUALITY, colorspace="RGB")


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Absolute difference of two pictures uint8 [S, S, 3], made brighter."""
    return np.clip(DIFFERENCE_GAIN * np.abs(first.astype(int) - second), 0, 255).astype(np.uint8)


def data_url(jpeg: bytes) -> str:
    """What an <img> shows without asking anybody."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
