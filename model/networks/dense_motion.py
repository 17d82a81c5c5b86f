"""Dense motion: from two sets of 3D key points to a flow over the volume and an occlusion map (face-vid2vid)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import ModelConfig
from model.networks.blocks import Conv3d, DownBlock3d, UpBlock3d, prepared, without_autocast

KEYPOINT_VARIANCE = 0.01
SMALLEST_HEAT = 1e-30
"""Differences of heat maps up to this are 0. Far from a key point a Gaussian leaves float32's normal numbers (below
1.2e-38), on which the convolutions of some CPUs take ten times as long (those of an AMD EPYC with AVX-512 do not); no
picture changes by a bit."""


def coordinate_grid(depth: int, height: int, width: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Coordinates (x, y, z) of a volume's cells, corners at -1 and 1: [D, H, W, 3]."""
    sizes = (depth, height, width)
    axes = [2 * (torch.arange(size, device=device, dtype=dtype) / (size - 1)) - 1 for size in sizes]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def keypoint_heatmaps(keypoints: Tensor, grid: Tensor) -> Tensor:
    """Gaussian bumps around key points [N, K, 3] on a grid [D, H, W, 3]: [N, K, D, H, W], peak 1."""
    distance = (grid - keypoints[:, :, None, None, None, :]).square().sum(dim=-1)
    return torch.exp(-0.5 * distance / KEYPOINT_VARIANCE)


class HourglassEncoder(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(DownBlock3d(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [x]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels


class HourglassDecoder(nn.Module):
    def __init__(self, widths: list[int], out_channels: int) -> None:
        super().__init__()
        # Every block but the deepest also receives the encoder's map of its level, concatenated.
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(1, len(widths))):
            skip = 0 if level == len(widths) - 1 else widths[level]
            self.up_blocks.append(UpBlock3d(widths[level] + skip, widths[level - 1] if level > 1 else out_channels))
        self.out_channels = out_channels + widths[0]
        self.conv = Conv3d(self.out_channels, self.out_channels, 3)
        self.norm = nn.BatchNorm3d(self.out_channels)

    def forward(self, levels: list[Tensor]) -> Tensor:
        x = levels[-1]
        for block, skip in zip(self.up_blocks, reversed(levels[:-1]), strict=True):
            x = torch.cat([block(x), skip], dim=1)
        return torch.relu(self.norm(self.conv(x)))


class Hourglass(nn.Module):
    """3D U-Net: [N, in_channels, D, H, W] -> [N, in_channels + hourglass_channels, D, H, W]."""

    def __init__(self, in_channels: int, config: ModelConfig) -> None:
        super().__init__()
        widths = [in_channels] + [
            min(config.hourglass_max_channels, config.hourglass_channels * 2**level)
            for level in range(1, config.num_hourglass_blocks + 1)
        ]
        self.encoder = HourglassEncoder(widths)
        self.decoder = HourglassDecoder(widths, config.hourglass_channels)
        self.out_channels = self.decoder.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class DenseMotion(nn.Module):
    """Backward flow and occlusion from the volume and both sets of key points."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        num_motions = config.num_keypoints + 1  # the first is the still background
        self.hourglass = Hourglass(num_motions * (config.compressed_channels + 1), config)
        channels = self.hourglass.out_channels
        self.mask = Conv3d(channels, num_motions, 7)
        self.compress = nn.Conv3d(config.volume_channels, config.compressed_channels, 1)
        self.norm = nn.BatchNorm3d(config.compressed_channels)
        self.occlusion = nn.Conv2d(channels * config.volume_depth, 1, 7, padding=3)

    def compress_volume(self, volume: Tensor) -> Tensor:
        """The part that depends on the source picture alone: [N, C, D, H, W] -> [N, compressed_channels, D, H, W]."""
        return torch.relu(self.norm(self.compress(volume)))

    @staticmethod
    def sparse_motions(size: torch.Size, kp_driving: Tensor, kp_source: Tensor) -> Tensor:
        """Backward flow of every key point's rigid shift, the still background first: [N, K + 1, D, H, W, 3].

        W's output is sensitive to the last bits of the flow, so the order of operations here is the published one.
        """
        grid = coordinate_grid(*size, device=kp_driving.device, dtype=kp_driving.dtype)
        moved = (grid - kp_driving[:, :, None, None, None, :]) + kp_source[:, :, None, None, None, :]
        return torch.cat([grid.expand(moved.shape[0], 1, *grid.shape), moved], dim=1)

    @staticmethod
    def hourglass_input(compressed: Tensor, motions: Tensor, kp_driving: Tensor, kp_source: Tensor) -> Tensor:
        """Heat-map differences beside the volume warped by every sparse motion: [N, (K + 1) * (1 + C), D, H, W].

        compressed: [N, C, D, H, W]. motions: [N, K + 1, D, H, W, 3], as `sparse_motions` gives them.

        Sampling at the identity grid is not the identity (its corners lie at -1 and 1, which sampling takes as the
        outer borders of the corner cells), so the background is sampled as well.
        """
        size = compressed.shape[2:]
        grid = motions[0, 0]
        heat = keypoint_heatmaps(kp_driving, grid) - keypoint_heatmaps(kp_source, grid)
        heat = functional.hardshrink(heat, SMALLEST_HEAT)
        heat = functional.pad(heat, (0, 0, 0, 0, 0, 0, 1, 0))
        # One call samples all motions: they are stacked along depth, whose output size is free.
        warped = functional.grid_sample(compressed, motions.flatten(1, 2), align_corners=False)
        warped = warped.unflatten(2, (motions.shape[1], size[0])).transpose(1, 2)  # [N, K + 1, C, D, H, W]
        return torch.cat([heat.unsqueeze(2), warped], dim=2).flatten(1, 2)

    @staticmethod
    def mix_motions(mask_logits: Tensor, motions: Tensor) -> Tensor:
        """Flow [N, D, H, W, 3]: the sparse motions weighted by the softmax of the mask [N, K + 1, D, H, W]."""
        mask = torch.softmax(mask_logits.float(), dim=1)
        return (motions * mask.unsqueeze(-1)).sum(dim=1)

    def forward(self, volume: Tensor, *, kp_driving: Tensor, kp_source: Tensor) -> tuple[Tensor, Tensor]:
        # Key points, grids and the softmax stay in float32 under autocast: a flow needs more than 8 bits.
        with without_autocast(volume.device):
            kp_driving, kp_source = kp_driving.float(), kp_source.float()
            compressed = self.compress_volume(volume.float())
            motions = self.sparse_motions(compressed.shape[2:], kp_driving, kp_source)
            x = self.hourglass_input(compressed, motions, kp_driving, kp_source)
        prediction = self.hourglass(prepared(x, self.mask.weight))
        mask_logits = self.mask(prediction)
        with without_autocast(volume.device):
            deformation = self.mix_motions(mask_logits, motions)
        occlusion = torch.sigmoid(self.occlusion(prediction.flatten(1, 2)))
        return deformation, occlusion
