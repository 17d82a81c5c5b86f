"""Trilinear sampling of the appearance volume, equal to `grid_sample(align_corners=False)`, faster on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def shift_matrices(shift: Tensor, size: int) -> Tensor:
    """Linear interpolation along one axis for a rigid shift, as matrices [..., size, size].

    shift: [...] in units of half the axis. Row j reads coordinate 2j / (size - 1) - 1 + shift, which sampling takes
    as pixel j * size / (size - 1) - 1/2 + shift * size / 2; beyond the border there is zero.
    """
    index = torch.arange(size, device=shift.device, dtype=shift.dtype)
    pixel = index * (size / (size - 1)) - 0.5 + shift[..., None] * (size / 2)
    return torch.relu(1 - (pixel[..., :, None] - index).abs())


def warp_by_shifts(volume: Tensor, shift: Tensor) -> Tensor:
    """Sample a volume on the identity grid moved by rigid shifts, which is separable: three small matrix products.

    volume: [1 or N, C, D, H, W]; shift: [N, K, 3] (x, y, z) -> [N, K, C, D, H, W].
    """
    along_x, along_y, along_z = (
        shift_matrices(shift[..., axis], size) for axis, size in enumerate(reversed(volume.shape[2:]))
    )
    num, num_shifts = shift.shape[:2]
    channels, depth, height, width = volume.shape[1:]
    along_x = along_x.transpose(-1, -2)
    x = torch.matmul(volume.reshape(len(volume), 1, -1, width), along_x)  # [N, K, CDH, W]
    x = torch.matmul(along_y.unsqueeze(2), x.view(num, num_shifts, channels * depth, height, width))
    x = torch.matmul(along_z.unsqueeze(2), x.view(num, num_shifts, channels, depth, height * width))
    return x.view(num, num_shifts, channels, depth, height, width)


def warp_by_flow(volume: Tensor, flow: Tensor) -> Tensor:
    """Sample a volume at a flow: [1 or N, C, D, H, W], [N, D, H, W, 3] -> [N, D, H, W, C], float32."""
    if volume.device.type != "cpu":
        volume = volume.expand(len(flow), -1, -1, -1, -1)
        return functional.grid_sample(volume, flow, align_corners=False).movedim(1, -1)
    # A bag is a weighted sum of rows of a table, here of the eight cells around a point: vectorised over channels and
    # run on all cores, which the CPU's grid_sample is not.
    size = volume.shape[2:]
    table = volume.movedim(1, -1).reshape(-1, volume.shape[1])
    index = torch.zeros(flow[..., 0].shape, dtype=torch.int64)
    if len(volume) > 1:
        index += torch.arange(len(volume)).view(-1, 1, 1, 1) * size.numel()
    index, weight = index.unsqueeze(-1), torch.ones((*flow.shape[:-1], 1))
    for axis, length, stride in zip((2, 1, 0), size, (size[1] * size[2], size[2], 1), strict=True):
        pixel = ((flow[..., axis] + 1) * length - 1) / 2
        low = pixel.floor()
        fraction = pixel - low
        cells = torch.stack([low, low + 1], dim=-1)
        weights = torch.stack([1 - fraction, fraction], dim=-1)
        weights = torch.where((cells >= 0) & (cells <= length - 1), weights, 0.0)
        cells = cells.clamp_(0, length - 1).to(torch.int64) * stride
        index = (index.unsqueeze(-1) + cells.unsqueeze(-2)).flatten(-2)
        weight = (weight.unsqueeze(-1) * weights.unsqueeze(-2)).flatten(-2)
    bags = functional.embedding_bag(index.view(-1, 8), table, per_sample_weights=weight.view(-1, 8), mode="sum")
    return bags.view(*flow.shape[:-1], -1)
