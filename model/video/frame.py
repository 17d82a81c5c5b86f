"""One decoded frame: its identity in the file and its picture in display geometry, made only when asked for."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

_ROTATIONS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class Frame:
    """A frame of a video.

    pts: int, presentation time in ticks of the stream's time base; the identity of the frame, whatever range was read.
    pts_s: float, the same in seconds, on the file's own clock (a file may start after 0).
    index: 0-based number in presentation order from the start of the file; None in a range that was not numbered.
    is_corrupt: the decoder concealed damage in this picture; None where the decoder does not tell (decord).
    """

    __slots__ = ("_decode_rgb", "_display_size", "_pick_rgb", "_rgb", "index", "is_corrupt", "pts", "pts_s")

    def __init__(
        self,
        *,
        index: int | None,
        pts: int,
        pts_s: float,
        is_corrupt: bool | None,
        decode_rgb: Callable[[], np.ndarray],
        display_size: tuple[int, int],
        pick_rgb: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.index = index
        self.pts = pts
        self.pts_s = pts_s
        self.is_corrupt = is_corrupt
        self._decode_rgb = decode_rgb  # gives the upright picture with the pixels as stored: uint8 [H, W, 3]
        self._display_size = display_size  # (width, height)
        self._pick_rgb = pick_rgb  # gives `sketch` without converting all of the picture
        self._rgb: np.ndarray | None = None

    def _upright_rgb(self) -> np.ndarray:
        if self._rgb is None:
            self._rgb = self._decode_rgb()
        return self._rgb

    def rgb(self) -> np.ndarray:
        """The picture as it should be shown: uint8 [H, W, 3], RGB, upright, square pixels. Kept with the frame."""
        return resize_picture(self._upright_rgb(), *self._display_size)

    def small(self, long_side_px: int) -> np.ndarray:
        """The picture scaled down to a longer side of `long_side_px` (never up): uint8 [h, w, 3], RGB.

        Converting at full size and halving measured faster than scaling inside FFmpeg's colour conversion, and it does
        not depend on the decoder.
        """
        width, height = self._display_size
        scale = min(1.0, long_side_px / max(width, height))
        return resize_picture(self._upright_rgb(), max(1, round(width * scale)), max(1, round(height * scale)))

    def sketch(self, long_side_px: int) -> np.ndarray:
        """Pixels of `rgb()`, picked all over the picture, for telling frames apart: uint8 [h, w, 3], see `pick_blocks`.

        Costs little where the rest of the picture need not be converted to RGB.
        """
        if self._rgb is None and self._pick_rgb is not None:
            return self._pick_rgb(long_side_px)
        return pick_blocks(self.rgb(), long_side_px)

    def __repr__(self) -> str:
        return f"Frame(index={self.index}, pts={self.pts}, pts_s={self.pts_s:.6f}, is_corrupt={self.is_corrupt})"


def resize_picture(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize uint8 [H, W, C] to `width` x `height`: exact 2x2 means while they fit, then one interpolation."""
    while True:
        rows, columns = picture.shape[:2]
        if columns % 2 or rows % 2 or columns < 2 * width or rows < 2 * height:
            break
        picture = cv2.resize(picture, (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
    if (columns, rows) == (width, height):
        return picture
    if columns < width or rows < height:
        method = cv2.INTER_CUBIC
    elif columns >= 2 * width or rows >= 2 * height:
        method = cv2.INTER_AREA  # an odd size: linear interpolation would skip pixels
    else:
        method = cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=method)


def fit_picture(picture: np.ndarray, aspect: float, width: int, height: int) -> np.ndarray:
    """Scale uint8 [H, W, C], whose pixels are `aspect` times as wide as high, into `width` x `height`, undistorted, in
    the middle of black bars."""
    shown = picture.shape[1] * aspect
    scale = min(width / shown, height / picture.shape[0])
    columns, rows = (min(most, max(1, round(n * scale))) for n, most in ((shown, width), (picture.shape[0], height)))
    if (columns, rows) == (width, height):
        return resize_picture(picture, width, height)
    fitted = np.zeros((height, width, picture.shape[2]), picture.dtype)
    left, top = (width - columns) // 2, (height - rows) // 2
    fitted[top : top + rows, left : left + columns] = resize_picture(picture, columns, rows)
    return fitted


def block_positions(width: int, height: int, long_side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows, in units of 2 pixels, of the blocks that `pick_blocks` picks: int [w / 2], int [h / 2]."""
    scale = min(1.0, long_side_px / max(width, height))
    columns, rows = (
        np.arange(count) * half // count
        for half, count in ((side // 2, max(1, round(side // 2 * scale))) for side in (width, height))
    )
    return columns, rows


def pick_blocks(picture: np.ndarray, long_side_px: int) -> np.ndarray:
    """Blocks of 2 x 2 pixels (what shares its colour in a video) at even distances: [H, W, 3] to [h, w, 3].

    The longer side becomes about `long_side_px`. Nothing is averaged.
    """
    height, width = picture.shape[:2]
    columns, rows = (
        np.minimum(2 * blocks[:, None] + (0, 1), side - 1).ravel()  # a side of one pixel has no whole block
        for blocks, side in zip(block_positions(width, height, long_side_px), (width, height), strict=True)
    )
    return picture.take(rows, axis=0).take(columns, axis=1)


def rotate_upright(picture: np.ndarray, rotation_deg: int, is_mirrored: bool) -> np.ndarray:
    """Turn uint8 [H, W, C] counter-clockwise by 0, 90, 180 or 270 degrees, then exchange left and right if asked."""
    turned = picture if rotation_deg == 0 else cv2.rotate(picture, _ROTATIONS[rotation_deg])
    return cv2.flip(turned, 1) if is_mirrored else turned
