"""Face regions from 68 landmarks: square crops for perceptual and adversarial losses, soft masks for stage II.

Landmarks are iBUG points in [-1, 1] of the picture, x right, y down: -1 and 1 are the outer borders of the corner
pixels, so pixel i of W has its centre at (2 i + 1) / W - 1 (`align_corners=False`). They are constants here:
gradients reach pictures only. Everything is float32, also under autocast, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.networks.blocks import without_autocast

MIN_HALF_SIDE = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """An upright square around some landmarks."""

    points: slice
    """The iBUG points whose bounding box it holds."""
    scale: float
    """Side over the longer side of that box."""
    shift_y: float
    """Shift of the centre in units of the box's longer side; negative is up."""
    size_share: float
    """Side of the crop over the side of the picture, unless a size is given: about one pixel to a pixel."""


REGIONS = {
    # The points end at the brows: a quarter of their height more holds the forehead.
    "face": Region(points=slice(0, 68), scale=1.4, shift_y=-0.1, size_share=0.5),
    "lip": Region(points=slice(48, 68), scale=1.5, shift_y=0.0, size_share=0.25),
    "eyes": Region(points=slice(36, 48), scale=1.3, shift_y=0.0, size_share=0.25),
}
CASCADE = ("global", "face", "lip")
"""Views that the cascaded losses compare; global is the whole picture."""


def region_box(landmarks: Tensor, region: str) -> tuple[Tensor, Tensor]:
    """Centre float32 [B, 2] and half side [B] of a region's square in [-1, 1]; the whole picture for NaN landmarks."""
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}; got {region!r}")
    shape = REGIONS[region]
    points = landmarks.detach()[:, shape.points].float()
    low, high = points.amin(dim=1), points.amax(dim=1)
    longer = (high - low).amax(dim=1)
    center = (low + high) / 2 + torch.stack([torch.zeros_like(longer), longer * shape.shift_y], dim=1)
    half_side = (longer * shape.scale / 2).clamp(min=MIN_HALF_SIDE)
    unknown = half_side.isnan()
    return torch.where(unknown[:, None], 0.0, center), torch.where(unknown, 1.0, half_side)


def crop_square(image: Tensor, center: Tensor, half_side: Tensor, size: int) -> Tensor:
    """Squares of pictures [B, C, H, W] by bilinear sampling: float32 [B, C, size, size], zero outside the picture.

    center [B, 2] and half_side [B] in [-1, 1]. A square of more than two source pixels per output pixel aliases.
    """
    with without_autocast(image.device):
        steps = (2 * torch.arange(size, device=image.device, dtype=torch.float32) + 1) / size - 1
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
        grid = center[:, None, None] + half_side[:, None, None, None] * offsets
        return functional.grid_sample(image.float(), grid, align_corners=False)


def crop_size(region: str, picture_size: int) -> int:
    """Side of a region's crop out of a picture of that side, pixels, where none is given."""
    return max(1, round(picture_size * REGIONS[region].size_share))


def crop_regions(
    image: Tensor,
    landmarks: Tensor,
    *,
    regions: tuple[str, ...] = ("face", "lip"),
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Differentiable crops of regions at a fixed size: name -> float32 [B, C, size, size].

    image: float [B, C, H, W]. landmarks: float [B, 68, 2] in [-1, 1]. sizes: pixels by region; by default a share of H
    (face a half, lip and eyes a quarter).
    """
    crops = {}
    for region in regions:
        box = region_box(landmarks, region)
        size = (sizes or {}).get(region) or crop_size(region, image.shape[-2])
        crops[region] = crop_square(image, *box, size)
    return crops


def cascade(image: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
    """The views of a picture by the names of CASCADE: global (itself), face, lip; sizes as of `crop_regions`."""
    return {"global": image} | crop_regions(image, landmarks, regions=CASCADE[1:])


def _pixel_centers(height: int, width: int, device: torch.device) -> Tensor:
    """Coordinates (x, y) of pixel centres in [-1, 1]: float32 [H, W, 2]."""
    y, x = ((2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1 for size in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def _smooth_step(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, 3x^2 - 2x^3 between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _oriented_ellipse(
    center: Tensor, axis: Tensor, half_axes: tuple[Tensor, Tensor], size: tuple[int, int], softness: float
) -> Tensor:
    """Soft ellipses [B, 1, H, W]: 1 inside, 0 beyond (1 + softness) times the half axes.

    center [B, 2]; axis: unit vector [B, 2] of the first half axis; half_axes: two of [B].
    """
    offset = _pixel_centers(*size, center.device) - center[:, None, None]
    across = torch.stack([-axis[:, 1], axis[:, 0]], dim=1)
    u, v = ((offset * direction[:, None, None]).sum(dim=-1) for direction in (axis, across))
    radius = torch.sqrt((u / half_axes[0][:, None, None]) ** 2 + (v / half_axes[1][:, None, None]) ** 2)
    return _smooth_step((1 + softness - radius) / softness)[:, None]


def _axis(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vector from one point to another and their distance: [B, 2], [B]."""
    length = torch.linalg.vector_norm(second - first, dim=1).clamp(min=MIN_HALF_SIDE)
    return (second - first) / length[:, None], length


def shoulder_mask(landmarks: Tensor, size: tuple[int, int]) -> Tensor:
    """Where stitching must change nothing: 1 on the shoulders, 0 on the head; float32 [B, 1, H, W].

    It is the 1 - M_st of LivePortrait, section 3.3: L_st = |(I_st - I_recon) * shoulder_mask|. It begins at the
    lowest landmark (the chin of an upright head), 12 % of the landmarks' height lower under the chin itself, which a
    nod covers, and reaches 1 after another 5 %. Zero where landmarks are NaN.
    """
    points = landmarks.detach().float()
    (left, top), (right, bottom) = points.amin(dim=1).unbind(1), points.amax(dim=1).unbind(1)
    height, half_width = ((side).clamp(min=MIN_HALF_SIDE)[:, None, None] for side in (bottom - top, (right - left) / 2))
    x, y = _pixel_centers(*size, points.device).unbind(-1)
    from_middle = (x - ((left + right) / 2)[:, None, None]).abs() / half_width
    start = bottom[:, None, None] + 0.12 * height * _smooth_step(1.5 - from_middle)
    return torch.nan_to_num(_smooth_step((y - start) / (0.05 * height)))[:, None]


def eye_mask(landmarks: Tensor, size: tuple[int, int]) -> Tensor:
    """M_eyes: 1 on both eyes with lids and lashes, 0 elsewhere; float32 [B, 1, H, W].

    One ellipse an eye, along its corners: half axes 0.8 and 0.6 of the eye's width, fading over a third more. The
    height follows the width, not the openness, so it is the same for a closed eye. Zero where landmarks are NaN.
    """
    points = landmarks.detach().float()
    masks = []
    for first in (36, 42):
        axis, width = _axis(points[:, first], points[:, first + 3])
        center = (points[:, first] + points[:, first + 3]) / 2
        masks.append(_oriented_ellipse(center, axis, (0.8 * width, 0.6 * width), size, 1 / 3))
    return torch.nan_to_num(torch.maximum(*masks))


def lip_mask(landmarks: Tensor, size: tuple[int, int]) -> Tensor:
    """M_lip: 1 on mouth and chin, which follows an opening mouth, 0 elsewhere; float32 [B, 1, H, W].

    An ellipse along the mouth's corners, its centre 0.35 of the mouth's width below theirs, half axes 0.75 and 0.65 of
    that width: from the upper lip to one width below the corners, as openness goes up to 0.8 widths. It fades over a
    quarter more. Zero where landmarks are NaN.
    """
    points = landmarks.detach().float()
    axis, width = _axis(points[:, 48], points[:, 54])
    down = torch.stack([-axis[:, 1], axis[:, 0]], dim=1)
    center = (points[:, 48] + points[:, 54]) / 2 + 0.35 * width[:, None] * down
    return torch.nan_to_num(_oriented_ellipse(center, axis, (0.75 * width, 0.65 * width), size, 0.25))
