"""Putting animated crops back into the frame that they were cut from, with soft edges, at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from model.framing import invert, transform_points, warp

# Of the crop's side: what is left out at the rim, the width of the ramp, the radius of the corners.
_MARGIN, _RAMP, _RADIUS = 0.02, 0.1, 0.2
_SHARPNESS = 12  # of the borders between faces: they fade over a tenth of the crop's side, more or less


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


@cache
def _claim(size_px: int) -> np.ndarray:
    """What a crop sets against those that overlap it: float32 [S, S], falls from the centre to 0 at the rim."""
    position = (np.arange(size_px) + 0.5) / size_px - 0.5
    nearness = 1 - np.hypot(position[:, None], position[None, :])
    claim = soft_mask(size_px)[..., 0] * (nearness**_SHARPNESS).astype(np.float32)
    claim.setflags(write=False)
    return claim


def paste_crops(frame: np.ndarray, placed: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Blend animated crops into `frame`, in place; only the parts of the frame under the crops are touched.

    Where crops overlap each pixel is that of the face whose centre is nearest, in units of the crops' sides: the other
    crops show it as well, without its motion.
    frame: uint8 [H, W, 3]. placed: of each face the crop, uint8 [S, S, 3], and its matrix, frame pixels to crop pixels,
    [3, 3].
    """
    original = frame.copy() if len(placed) > 1 else frame
    areas = [_area_under(len(crop), matrix, frame) for crop, matrix in placed]
    for i, ((crop, matrix), (left, top, right, bottom)) in enumerate(zip(placed, areas, strict=True)):
        if left >= right or top >= bottom:
            continue  # the crop lies outside the frame
        to_part, part_size = _to_part(matrix, left, top), (right - left, bottom - top)
        weight = warp(soft_mask(len(crop))[..., 0], to_part, part_size)[..., None]
        others = [placed[j] for j, area in enumerate(areas) if j != i and _overlap(area, areas[i])]
        if others:
            own = warp(_claim(len(crop)), to_part, part_size)
            rival = sum(warp(_claim(len(other)), _to_part(place, left, top), part_size) for other, place in others)
            weight *= (own / np.maximum(own + rival, np.finfo(np.float32).tiny))[..., None]
        pasted = warp(crop, to_part, part_size, border="replicate")
        part, before = (picture[top:bottom, left:right] for picture in (frame, original))
        changed = np.rint(part + weight * (pasted.astype(np.float32) - before))
        part[...] = changed.clip(0, 255, out=changed).astype(np.uint8)


def _area_under(size_px: int, matrix: np.ndarray, frame: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the part of the frame that a crop covers, half-open."""
    rim = size_px - 0.5
    corners = np.array([[-0.5, -0.5], [rim, -0.5], [-0.5, rim], [rim, rim]])
    in_frame = transform_points(corners, invert(matrix))
    limit = np.array([frame.shape[1], frame.shape[0]])
    left, top = np.clip(np.floor(in_frame.min(0)).astype(int), 0, limit).tolist()
    right, bottom = np.clip(np.ceil(in_frame.max(0)).astype(int) + 1, 0, limit).tolist()
    return left, top, right, bottom


def _to_part(matrix: np.ndarray, left: int, top: int) -> np.ndarray:
    """Crop pixels to pixels of the part of the frame that begins there, float64 [3, 3]."""
    return np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]]) @ invert(matrix)


def _overlap(area: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return max(area[0], other[0]) < min(area[2], other[2]) and max(area[1], other[1]) < min(area[3], other[3])
