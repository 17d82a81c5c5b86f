"""A small differentiable network for the 68 iBUG landmarks, trained on the labels of the shards.

Stage II needs the openness that a *result* shows as a function of its pixels. For shards of the open analyser
`networks.facemesh` gives it; this network takes the place of other analysers, which are not differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_LANDMARKS = 68
NUM_GROUPS = 8
"""Of every group normalisation."""


@dataclass(frozen=True, kw_only=True)
class LandmarkConfig:
    """Sizes of the landmark network. The defaults cost 0.2 GFLOP a picture."""

    image_size: int = 128
    """Pictures of any size are brought to this side, px."""
    channels: tuple[int, ...] = (16, 32, 64, 96)
    """Widths of the levels, multiples of 8; each level halves the picture."""
    heatmap_size: int = 32
    """Bound on the side of the maps whose centres of mass are the landmarks: that of the largest level within it."""

    def __post_init__(self) -> None:
        if not self.channels or any(width < 1 or width % NUM_GROUPS for width in self.channels):
            raise ValueError(f"channels is {self.channels}: expected one or more multiples of {NUM_GROUPS}")
        if self.image_size < 1 or self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f"image_size must be a multiple of {2 ** len(self.channels)} for {len(self.channels)} levels, "
                f"got {self.image_size}"
            )
        if self.heatmap_size < (smallest := self.image_size // 2 ** len(self.channels)):
            raise ValueError(
                f"heatmap_size is {self.heatmap_size}: expected at least {smallest}, the side of the last of "
                f"{len(self.channels)} levels"
            )


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(NUM_GROUPS, out_channels),
        nn.SiLU(),
    )


class LandmarkNetwork(nn.Module):
    """Picture [N, 3, H, W], RGB in [0, 1], of a framed face -> landmarks [N, 68, 2] in [-1, 1] of the picture.

    A small U-Net makes one map a landmark; the landmark is the map's centre of mass (integral regression, Sun et al.
    2018), so it is found between pixels and has a gradient everywhere.
    """

    def __init__(self, config: LandmarkConfig | None = None) -> None:
        super().__init__()
        self.config = config or LandmarkConfig()
        widths = (3, *self.config.channels)
        self.down = nn.ModuleList(
            nn.Sequential(_block(before, after, stride=2), _block(after, after)) for before, after in pairwise(widths)
        )
        self.context = nn.Sequential(*(_block(widths[-1], widths[-1]) for _ in range(2)))
        sides = [self.config.image_size // 2**level for level in range(1, len(widths))]
        levels = [width for width, side in zip(widths[1:], sides, strict=True) if side <= self.config.heatmap_size]
        self.up = nn.ModuleList(_block(deep + skip, skip) for skip, deep in reversed(list(pairwise(levels))))
        self.head = nn.Conv2d(levels[0], NUM_LANDMARKS, 1)

    def forward(self, image: Tensor, near: Tensor | None = None) -> Tensor:
        """near: for exchange with `MeshLandmarks`; this network finds the face by itself."""
        size = self.config.image_size
        x = image
        if x.shape[-1] > size:
            x = functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        elif x.shape[-1] < size:
            x = functional.interpolate(x, size=(size, size), mode="bilinear")
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        x = x + self.context(x)
        skips = [level for level in levels[:-1] if level.shape[-1] <= self.config.heatmap_size]
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(torch.cat([functional.interpolate(x, scale_factor=2), skip], dim=1))
        return centres_of_mass(self.head(x).float())


def centres_of_mass(maps: Tensor) -> Tensor:
    """Expected position under the softmax of maps [N, K, H, W]: (x, y) in [-1, 1] of the picture, [N, K, 2]."""
    height, width = maps.shape[-2:]
    probability = maps.flatten(2).softmax(dim=-1).unflatten(-1, (height, width))
    x, y = ((2 * torch.arange(n, device=maps.device) + 1) / n - 1 for n in (width, height))
    return torch.stack([(probability.sum(dim=2) * x).sum(-1), (probability.sum(dim=3) * y).sum(-1)], dim=-1)
