"""W: warps the appearance volume from source to driving key points, flattened for G (LivePortrait, section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from model.config import ModelConfig
from model.networks.blocks import ConvNorm2d, prepared, without_autocast
from model.networks.dense_motion import DenseMotion

LEAKY_SLOPE = 0.01


class WarpOutput(NamedTuple):
    """What W makes of a volume and two sets of key points."""

    feature: Tensor
    """Warped, occluded feature map [N, feature_channels, H, W]: G's input."""
    occlusion: Tensor
    """Visibility in (0, 1): [N, 1, H, W]."""
    deformation: Tensor
    """Backward flow, (x, y, z) with the volume from -1 to 1: [N, D, H, W, 3], float32."""


class WarpingNetwork(nn.Module):
    """Volume [N, C, D, H, W] and key points [N, K, 3] -> WarpOutput."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.feature_channels
        self.dense_motion_network = DenseMotion(config)
        self.third = ConvNorm2d(config.volume_channels * config.volume_depth, channels, negative_slope=LEAKY_SLOPE)
        self.fourth = nn.Conv2d(channels, channels, 1)

    def forward(self, volume: Tensor, *, kp_driving: Tensor, kp_source: Tensor) -> WarpOutput:
        deformation, occlusion = self.dense_motion_network(volume, kp_driving=kp_driving, kp_source=kp_source)
        with without_autocast(volume.device):
            warped = functional.grid_sample(volume.float(), deformation, align_corners=False)
        flat = prepared(warped.flatten(1, 2), self.third.conv.weight)
        feature = self.fourth(self.third(flat)) * occlusion
        return WarpOutput(feature, occlusion, deformation)
