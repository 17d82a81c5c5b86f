"""Augmentation on the device: what a pair becomes is a function of (seed, its global sample index) alone.

So a resumed run sees the same pictures bit for bit, and so do other numbers of ranks. Coordinates are [-1, 1] with -1
and 1 at the outer edges of the picture (`align_corners=False`), which do not depend on the resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from training.data.batch import Batch, Frames, PreparedBatch, PreparedFrames
from training.data.draws import draw_table

_FLIP, _COLOUR, _STILL, _VIDEO = 1, 2, 3, 4  # purposes of draws

# iBUG point that takes the place of each in a mirrored picture.
FLIPPED_POINTS = torch.tensor(
    [
        *range(16, -1, -1),  # jaw
        *range(26, 16, -1),  # brows
        *(27, 28, 29, 30, 35, 34, 33, 32, 31),  # nose
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),  # outer lips
        *(64, 63, 62, 61, 60, 67, 66, 65),  # inner lips
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """How strongly pairs are varied. Ranges are uniform; 0 switches a part off."""

    flip: float = 0.5
    """Probability to mirror a pair, with its labels."""
    brightness: float = 0.1
    """Factor 1 ± this; colours change alike in both pictures of a pair, or one could not be told from the other."""
    contrast: float = 0.1
    """Factor 1 ± this about mid-grey."""
    saturation: float = 0.1
    """Factor 1 ± this about each pixel's luma."""
    hue_deg: float = 10.0
    """Turn of the colours about the grey axis, ± this."""
    rotation_deg: float = 0.0
    """Turn of a pair of video frames, ± this, alike in both. With scale and shift it makes few clips go further."""
    scale: float = 0.0
    """Their zoom, 1 ± this."""
    shift: float = 0.0
    """Their shift along each axis, ± this part of the side."""
    still_rotation_deg: float = 10.0
    """Turn of each of the two pictures made of a still, ± this."""
    still_scale: float = 0.1
    """Their zoom, 1 ± this."""
    still_shift: float = 0.05
    """Their shift along each axis, ± this part of the side."""

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}, expected a probability between 0 and 1")
        for name in ("brightness", "contrast", "saturation", "scale", "shift", "still_scale", "still_shift"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and less than 1")
        for name in ("hue_deg", "rotation_deg", "still_rotation_deg"):
            if not 0 <= getattr(self, name) <= 180:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 180 degrees")


def prepare(batch: Batch, *, image_size: int) -> PreparedBatch:
    """The batch on its device as float32, resized, nothing varied (validation).

    image_size: side of the networks' input; `target` has twice that. The two frames of a still are equal.
    """
    return PreparedBatch(
        source=_prepare_frames(batch.source, image_size),
        driving=_prepare_frames(batch.driving, image_size),
        is_still=batch.is_still,
    )


def augment(batch: Batch, *, config: AugmentationConfig, image_size: int, seed: int) -> PreparedBatch:
    """The batch on its device as float32, resized and varied. See `prepare`, `AugmentationConfig`."""
    prepared = prepare(batch, image_size=image_size)
    is_flipped = draw_table(batch.indices, 1, seed, _FLIP)[:, 0] < config.flip
    still = torch.zeros(len(batch), dtype=torch.bool)
    still[batch.still_rows] = True
    of_stills = (config.still_rotation_deg, config.still_scale, config.still_shift)
    of_videos = (config.rotation_deg, config.scale, config.shift)
    for side, frames in enumerate((prepared.source, prepared.driving)):
        _flip(frames, is_flipped)
        _move(frames, batch, still, of_stills, (seed, _STILL, side))
        _move(frames, batch, ~still, of_videos, (seed, _VIDEO))
        _recolour(frames, batch.indices, config, seed)
        frames.image = nnf.avg_pool2d(frames.target, 2)
    return prepared


def _prepare_frames(frames: Frames, image_size: int) -> PreparedFrames:
    side = frames.images.shape[-1]
    target = _resize(frames.images.float() / 255, 2 * image_size)
    return PreparedFrames(
        image=nnf.avg_pool2d(target, 2),
        target=target,
        landmarks=(frames.landmarks + 0.5) * (2 / side) - 1,
        pose=frames.pose.clone(),
    )


def _resize(images: Tensor, side: int) -> Tensor:
    """Averages blocks where the reduction is whole, else bilinear with antialiasing. images: [B, 3, H, W]."""
    now = images.shape[-1]
    if now == side:
        return images
    if now % side == 0:
        return nnf.avg_pool2d(images, now // side)
    return nnf.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def _flip(frames: PreparedFrames, is_flipped: Tensor) -> None:
    """Mirror the rows where `is_flipped` (bool [B] on the CPU): yaw and roll change their sign."""
    flip = is_flipped.to(frames.target.device, non_blocking=True)
    frames.target = torch.where(flip[:, None, None, None], frames.target.flip(-1), frames.target)
    x, y = frames.landmarks[:, FLIPPED_POINTS.to(flip.device, non_blocking=True)].unbind(-1)
    mirrored = torch.stack([-x, y], -1)
    frames.landmarks = torch.where(flip[:, None, None], mirrored, frames.landmarks)
    turned = torch.cat([frames.pose[:, :1], -frames.pose[:, 1:]], 1)
    frames.pose = torch.where(flip[:, None], turned, frames.pose)


def _move(
    frames: PreparedFrames, batch: Batch, moves: Tensor, ranges: tuple[float, float, float], keys: tuple[int, ...]
) -> None:
    """Turn, zoom and shift the rows where `moves` (bool [B] on the CPU) holds; landmarks and roll follow.

    ranges: turn in degrees, zoom, shift. keys: of the draws.
    """
    rows = moves.nonzero()[:, 0]
    if not len(rows) or not any(ranges):
        return
    rotation_deg, scale, most_shift = ranges
    draws = 2 * draw_table(batch.indices[rows], 4, *keys) - 1
    angle = torch.deg2rad(draws[:, 0] * rotation_deg)
    zoom = 1 + draws[:, 1] * scale
    # A point p of the picture lands at zoom * R p + shift; y is down, so a positive angle is clockwise as roll is.
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = zoom[:, None, None] * torch.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
    shift = 2 * most_shift * draws[:, 2:]
    inverse = torch.linalg.inv(matrix)
    to_picture = torch.cat([inverse, -inverse @ shift[:, :, None]], 2)
    device = frames.target.device
    rows, to_picture, matrix, shift, turn = (
        value.to(device, value.dtype if value.dtype == torch.int64 else torch.float32, non_blocking=True)
        for value in (rows, to_picture, matrix, shift, torch.rad2deg(angle))
    )
    picture = frames.target[rows]
    grid = nnf.affine_grid(to_picture, list(picture.shape), align_corners=False)
    moved = nnf.grid_sample(picture, grid, padding_mode="reflection", align_corners=False)
    frames.target = frames.target.index_copy(0, rows, moved)
    points = frames.landmarks[rows] @ matrix.mT + shift[:, None]
    frames.landmarks = frames.landmarks.index_copy(0, rows, points)
    pose = frames.pose[rows]
    pose[:, 2] += turn
    frames.pose = frames.pose.index_copy(0, rows, pose)


def _recolour(frames: PreparedFrames, indices: Tensor, config: AugmentationConfig, seed: int) -> None:
    """Brightness, contrast, saturation and hue as one linear map of RGB for each pair; clamped to [0, 1]."""
    if not (config.brightness or config.contrast or config.saturation or config.hue_deg):
        return
    draws = draw_table(indices, 4, seed, _COLOUR, 0)
    ranges = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue_deg])
    brightness, contrast, saturation, hue = ((2 * draws - 1) * ranges).unbind(-1)
    matrix, offset = colour_map(1 + brightness, 1 + contrast, 1 + saturation, torch.deg2rad(hue))
    matrix, offset = (v.to(frames.target.device, torch.float32, non_blocking=True) for v in (matrix, offset))
    batch, _, height, width = frames.target.shape
    pixels = torch.baddbmm(offset[:, :, None], matrix, frames.target.reshape(batch, 3, -1))
    frames.target = pixels.clamp(0, 1).reshape(batch, 3, height, width)


def colour_map(brightness: Tensor, contrast: Tensor, saturation: Tensor, hue_rad: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix float64 [B, 3, 3] and offset [B, 3] so that new RGB = matrix @ RGB + offset; arguments are [B].

    Order: hue (rotation about the grey axis), saturation about Rec. 601 luma, contrast about 0.5, brightness.
    """
    eye = torch.eye(3, dtype=torch.float64)
    axis = torch.full((3,), 1 / math.sqrt(3), dtype=torch.float64)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    cos, sin = torch.cos(hue_rad)[:, None, None], torch.sin(hue_rad)[:, None, None]
    hue = cos * eye + sin * cross + (1 - cos) * torch.outer(axis, axis)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).expand(3, 3)
    colourful = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * luma
    matrix = (brightness * contrast)[:, None, None] * (colourful @ hue)
    offset = (brightness * (1 - contrast) * 0.5)[:, None].expand(-1, 3)
    return matrix, offset
