"""Convolution blocks of F and W, in 2D and 3D (depth is never resampled: halvings are spatial only), and what keeps
types and memory layouts in all networks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Full precision for what it encloses (autocast does not know the meta device, on which shapes are counted)."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=_LAST[x.dim()]) and not x.is_contiguous()


def prepared(x: Tensor, weight: Tensor) -> Tensor:
    """A map or volume as convolutions with `weight` take it: in autocast's type, and channels last where the weight is.

    One copy at most, where otherwise each of those that use it would make its own, or mix two memory layouts.
    """
    device = "cpu" if x.is_meta else x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return x.to(dtype, memory_format=_LAST[x.dim()] if _is_channels_last(weight) else torch.preserve_format)


def upsample(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Nearest neighbour by whole factors, in x's own type: autocast (on CUDA) would make it float32, to no avail."""
    with without_autocast(x.device):
        return functional.interpolate(x, scale_factor=factors)


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm of a map [N, C, H, W], in x's memory format; torch's own gives channels first whatever it gets."""
    y = functional.instance_norm(x, eps=eps)
    return y.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else y


class Conv3d(nn.Conv3d):
    """Convolution with an odd kernel that keeps the size of a volume [N, C, D, H, W].

    Volumes of two slices (or one), as small models have, go through the 2D kernels with their slices as channels: the
    same sums without the taps that see only padding. Forward and backward of a 7x7x7 kernel on [8, 74, 2, 16, 16] took
    37 ms so and 154 ms in 3D on a CPU core.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        depth = x.shape[2]
        if depth > 2:
            return super().forward(x)
        bias = self.bias.repeat_interleave(depth)
        y = functional.conv2d(x.flatten(1, 2), self._flat_weight(depth), bias, padding=self.padding[1:])
        return y.unflatten(1, (self.out_channels, depth))

    def _flat_weight(self, depth: int) -> Tensor:
        """[out * D, in * D, k, k]: output slice i sees input slice j through tap j - i."""
        slices = torch.arange(depth, device=self.weight.device)
        taps = slices - slices[:, None] + self.padding[0]
        return self.weight[:, :, taps].permute(0, 2, 1, 3, 4, 5).flatten(2, 3).flatten(0, 1)


class ConvNorm2d(nn.Module):
    """3x3 convolution, batch norm, ReLU (or leaky ReLU), then an optional halving by average pooling."""

    def __init__(
        self, in_channels: int, out_channels: int, *, negative_slope: float = 0.0, halve: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.negative_slope = negative_slope
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.norm(self.conv(x)), self.negative_slope)
        return functional.avg_pool2d(x, 2) if self.halve else x


class DownBlock3d(nn.Module):
    """3x3x3 convolution, batch norm, ReLU, spatial halving by average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, 3)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool3d(torch.relu(self.norm(self.conv(x))), (1, 2, 2))


class UpBlock3d(nn.Module):
    """Spatial doubling by nearest neighbour, 3x3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, 3)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(upsample(x, (1, 2, 2)))))


class ResBlock3d(nn.Module):
    """Residual block with the activation first: (norm, ReLU, 3x3x3 convolution) twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3d(channels, channels, 3)
        self.conv2 = Conv3d(channels, channels, 3)
        self.norm1 = nn.BatchNorm3d(channels)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(torch.relu(self.norm1(x)))
        return x + self.conv2(torch.relu(self.norm2(residual)))
