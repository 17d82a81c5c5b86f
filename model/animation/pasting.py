"""Putting an animated crop back into the frame that it was cut from, with soft edges, at full resolution."""

from __future__ import annotations

from functools import cache

import numpy as np

from model.framing import invert, transform_points, warp

# Of the crop's side: what is left out at the rim, the width of the ramp, the radius of the corners.
_MARGIN, _RAMP, _RADIUS = 0.02, 0.1, 0.2


@cache
def soft_mask(size_px: int) -> np.ndarray:
    """Weight of the crop against the frame: float32 [S, S, 1], 0 at the rim, 1 inside a rounded square."""
    half = 0.5 - _MARGIN
    position = np.abs((np.arange(size_px) + 0.5) / size_px - 0.5)
    beyond = np.maximum(position - (half - _RADIUS), 0.0)  # into the zone of the rounded corners
    corner_distance = np.hypot(beyond[:, None], beyond[None, :])
    depth = (_RADIUS - corner_distance) / _RAMP  # 0 at the rim, 1 where the ramp ends
    ramp = np.clip(depth, 0.0, 1.0)
    mask = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)[..., None]
    mask.setflags(write=False)
    return mask


def paste_crop(frame: np.ndarray, crop: np.ndarray, matrix: np.ndarray) -> None:
    """Blend `crop` into `frame`, in place; only the part of the frame under the crop is touched.

    frame: uint8 [H, W, 3]. crop: uint8 [S, S, 3]. matrix: frame pixels to crop pixels, [3, 3].
    """
    size_px = crop.shape[0]
    rim = size_px - 0.5
    corners = np.array([[-0.5, -0.5], [rim, -0.5], [-0.5, rim], [rim, rim]])
    in_frame = transform_points(corners, invert(matrix))
    limit = np.array([frame.shape[1], frame.shape[0]])
    left, top = np.clip(np.floor(in_frame.min(0)).astype(int), 0, limit)
    right, bottom = np.clip(np.ceil(in_frame.max(0)).astype(int) + 1, 0, limit)
    if left >= right or top >= bottom:
        return  # the crop lies outside the frame
    to_part = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]]) @ invert(matrix)
    part_size = (int(right - left), int(bottom - top))
    weight = warp(soft_mask(size_px)[..., 0], to_part, part_size)[..., None]
    pasted = warp(crop, to_part, part_size, border="replicate")
    part = frame[top:bottom, left:right]
    part[...] = np.rint(part + weight * (pasted.astype(np.float32) - part)).astype(np.uint8)
