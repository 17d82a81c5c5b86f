"""Patch discriminators with spectral norm: real or generated, judged patch by patch (pix2pix, face-vid2vid)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from model.networks.blocks import instance_norm, without_autocast

LEAKY_SLOPE = 0.2


class Judgement(NamedTuple):
    """What a discriminator says of pictures."""

    logits: Tensor
    """float32 [B, 1, h, w], larger is more real."""
    features: list[Tensor]
    """Activations of every block, from fine to coarse, for feature matching."""


class SpectralConv(nn.Conv2d):
    """Convolution whose spectral norm is divided out in float32 also under autocast."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2 - (stride == 2)
        )
        spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            weight = self.weight
        return self._conv_forward(x, weight, self.bias)


class PatchDiscriminator(nn.Module):
    """image: float [B, 3, H, W], RGB in [0, 1] -> Judgement on patches, logits [B, 1, H / 2^n, W / 2^n].

    n blocks of 4x4 convolution with stride 2, instance norm (not in the first) and leaky ReLU; then a 1x1 convolution.
    All convolutions have spectral norm. Pictures must have at least 2^(n+1) pixels a side.
    """

    def __init__(self, *, base_channels: int = 64, max_channels: int = 512, num_blocks: int = 4) -> None:
        super().__init__()
        widths = [3] + [min(max_channels, base_channels * 2**level) for level in range(num_blocks)]
        self.min_size = 2 ** (num_blocks + 1)
        self.blocks = nn.ModuleList(
            SpectralConv(widths[level], widths[level + 1], 4, stride=2) for level in range(num_blocks)
        )
        self.head = SpectralConv(widths[-1], 1, 1)

    def forward(self, image: Tensor) -> Judgement:
        if min(image.shape[-2:]) < self.min_size:
            raise ValueError(
                f"this discriminator needs pictures of at least {self.min_size} px; got {tuple(image.shape)}: "
                "use larger regions or fewer blocks"
            )
        x, features = image * 2 - 1, []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index:
                x = instance_norm(x)
            x = functional.leaky_relu(x, LEAKY_SLOPE)
            features.append(x)
        return Judgement(self.head(x).float(), features)


class CascadedDiscriminator(nn.Module):
    """One discriminator for each region; they (D_global, D_face, D_lip for `losses.CASCADE`) share nothing.

    forward: region -> pictures [B, 3, H, W] gives region -> Judgement, each picture judged by its region's network
    alone.
    """

    def __init__(
        self,
        regions: Sequence[str],
        *,
        base_channels: int = 64,
        max_channels: int = 512,
        num_blocks: int = 4,
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleDict(
            {
                # ModuleDict has attributes of its own; a prefix keeps any region's name possible.
                f"d_{region}": PatchDiscriminator(
                    base_channels=base_channels, max_channels=max_channels, num_blocks=num_blocks
                )
                for region in regions
            }
        )

    @property
    def regions(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("d_") for name in self.discriminators)

    def of(self, region: str) -> PatchDiscriminator:
        """The discriminator of a region."""
        return self.discriminators[f"d_{region}"]

    def forward(self, pictures: Mapping[str, Tensor]) -> dict[str, Judgement]:
        if set(pictures) != set(self.regions):
            raise ValueError(f"discriminators are for the regions {self.regions}; got pictures of {tuple(pictures)}")
        return {region: self.of(region)(pictures[region]) for region in self.regions}


def split_judgement(judgement: Judgement, num_first: int) -> tuple[Judgement, Judgement]:
    """Judgements of the first pictures of a batch and of the others."""
    parts = [torch.tensor_split(tensor, [num_first]) for tensor in (judgement.logits, *judgement.features)]
    first, second = ([part[side] for part in parts] for side in (0, 1))
    return Judgement(first[0], first[1:]), Judgement(second[0], second[1:])
