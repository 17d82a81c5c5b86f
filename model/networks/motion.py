"""M: the motion extractor, a ConvNeXtV2 backbone with seven linear heads (LivePortrait, section 3.2)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import ModelConfig
from model.networks.blocks import without_autocast

NORM_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a channels-first map [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """Global response normalisation of a channels-last map [N, H, W, C] (ConvNeXtV2, section 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):  # which would make all of it float32
            response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).to(self.gamma.dtype)
            relative = response / (response.mean(dim=-1, keepdim=True) + NORM_EPS)
            return x * (1 + self.gamma * relative).to(x.dtype) + self.beta.to(x.dtype)


class ConvNextBlock(nn.Module):
    """ConvNeXtV2 block: 7x7 depthwise, layer norm, expand by 4, GELU, response norm, project, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = GlobalResponseNorm(4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(functional.gelu(self.pwconv1(y))))
        return x + y.permute(0, 3, 1, 2)


class MotionDetector(nn.Module):
    """Backbone and heads under the checkpoint's prefix `detector.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = config.backbone_channels
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), ChannelNorm(widths[0], eps=NORM_EPS))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in pairwise(widths):
            self.downsample_layers.append(
                nn.Sequential(ChannelNorm(before, eps=NORM_EPS), nn.Conv2d(before, after, 2, stride=2))
            )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNextBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, config.backbone_depths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=NORM_EPS)
        self.fc_kp = nn.Linear(widths[-1], 3 * config.num_keypoints)
        self.fc_scale = nn.Linear(widths[-1], 1)
        self.fc_pitch = nn.Linear(widths[-1], config.num_pose_bins)
        self.fc_yaw = nn.Linear(widths[-1], config.num_pose_bins)
        self.fc_roll = nn.Linear(widths[-1], config.num_pose_bins)
        self.fc_t = nn.Linear(widths[-1], 3)
        self.fc_exp = nn.Linear(widths[-1], 3 * config.num_keypoints)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """ConvNeXtV2's initial weights, but for heads without an activation: faces start at scale 1, in the middle,
        with next to no expression.

        The heads read layer-normed features, whose length is the root of their number, so that weights of 0.02 alone
        would spread scale and translation by 0.55 about where they are to start.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for head in (self.fc_scale, self.fc_t):
            nn.init.zeros_(head.weight)
        self.fc_scale.bias.fill_(1.0)
        self.fc_exp.weight.mul_(0.1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x, dtype = image, self.norm.weight.dtype
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            # Under autocast the blocks' sums stay in the weights' own precision, too: 8 bits would round each of them.
            x = stage(downsample(x).to(dtype))
        heads = ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")
        # Key points and angles need more than 8 bits: under autocast the heads stay in the weights' own precision.
        with without_autocast(x.device):
            pooled = self.norm(x.mean(dim=(2, 3), dtype=dtype))
            return {head: getattr(self, f"fc_{head}")(pooled) for head in heads}


class MotionExtractor(nn.Module):
    """Raw motion heads of a picture.

    image: float [N, 3, S, S], RGB in [0, 1] -> pitch, yaw, roll: bin logits [N, num_pose_bins]; t [N, 3];
    exp [N, 3K]; scale [N, 1]; kp: canonical key points [N, 3K]. `model.keypoints.Motion.from_heads` turns them into
    numbers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.detector = MotionDetector(config)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.detector(image)
