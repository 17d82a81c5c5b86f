"""Sizes of the LivePortrait networks, the published ones and a tiny preset, and the crops that they look at."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of all seven networks. The defaults are the published model: 256x256 in, 512x512 out.

    Checkpoints of the released model load only with the defaults (or with other `image_size`s: every network is
    convolutional or pooled, so the picture's size changes no weight).
    """

    image_size: int = 256
    """Side of the square input picture of F and M, px."""
    num_keypoints: int = 21
    """Implicit 3D key points. Regions and edits of the expression (`model.keypoints`) need the released 21."""

    base_channels: int = 64
    """Channels of F's first convolution; doubled by every down block."""
    max_channels: int = 512
    """Bound on the channels of F's first convolution and down blocks, and of the feature map that G decodes."""
    num_down_blocks: int = 2
    """Halvings of F: the volume's side is `image_size / 2**num_down_blocks`."""
    volume_channels: int = 32
    """Channels of the 3D appearance volume."""
    volume_depth: int = 16
    """Depth slices of the 3D appearance volume, 2 or more."""
    num_volume_blocks: int = 6
    """3D residual blocks at the end of F."""

    backbone_depths: tuple[int, ...] = (3, 3, 9, 3)
    """ConvNeXtV2 blocks in each stage of M (Tiny)."""
    backbone_channels: tuple[int, ...] = (96, 192, 384, 768)
    """ConvNeXtV2 channels of each stage of M (Tiny)."""
    num_pose_bins: int = 66
    """Classes of each Euler angle, 3 degrees apart from -97.5 on: the 66 reach as far to both sides."""

    hourglass_channels: int = 32
    """Channels of the last up block of the dense-motion hourglass; the first down block has twice as many."""
    hourglass_max_channels: int = 1024
    """Bound on the channels of the hourglass's down blocks."""
    num_hourglass_blocks: int = 5
    """Spatial halvings (depth is kept) of the hourglass."""
    compressed_channels: int = 4
    """Channels to which the volume is compressed before it is warped by every key point."""

    num_middle_blocks: int = 6
    """SPADE residual blocks of G before the first upsampling."""
    modulation_channels: int = 128
    """Hidden channels of every SPADE modulation branch."""
    generator_out_channels: int = 64
    """Channels of G's last SPADE block."""
    shuffle_factor: int = 2
    """Pixel shuffle of G's last convolution; the output's side is four times this times the volume's side."""

    stitching_channels: tuple[int, ...] = (128, 128, 64)
    """Hidden widths of S."""
    retarget_eye_channels: tuple[int, ...] = (256, 256, 128, 128, 64)
    """Hidden widths of R_eyes."""
    retarget_lip_channels: tuple[int, ...] = (128, 128, 64)
    """Hidden widths of R_lip."""

    crop_scale: float = 2.3
    """Side of the crops that the networks learned from, in sizes of the face; animation cuts its sources likewise, and
    driving videos in proportion. Training takes it from its data set (`crop.scale` there)."""
    crop_vy_ratio: float = -0.125
    """Vertical offset of those crops in shares of their side, likewise (`crop.vy_ratio`)."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, float):
                if type(value) not in (int, float) or not math.isfinite(value):
                    raise ValueError(f"{item.name} is {value!r}, expected a number")
                continue
            numbers = value if isinstance(value, tuple) else (value,)
            is_list = isinstance(item.default, tuple)
            if isinstance(value, tuple) != is_list or not all(type(number) is int for number in numbers):
                kind = "a list of whole numbers" if is_list else "a whole number"
                raise ValueError(f"{item.name} is {value!r}, expected {kind}")
            if min(numbers, default=0) < 1:
                raise ValueError(f"{item.name} is {value}, expected 1 or more")
        if self.crop_scale <= 0:
            raise ValueError(f"crop_scale is {self.crop_scale}, expected more than 0")
        if self.volume_depth < 2:
            raise ValueError(f"volume_depth is {self.volume_depth}, expected 2 or more: key points move in depth, too")
        stride = max(
            2 ** (self.num_down_blocks + self.num_hourglass_blocks), 4 * 2 ** (len(self.backbone_channels) - 1)
        )
        if self.image_size % stride:
            raise ValueError(
                f"image_size must be a positive multiple of {stride} for these networks, got {self.image_size}"
            )
        if len(self.backbone_depths) != len(self.backbone_channels):
            raise ValueError(
                f"backbone_depths and backbone_channels name the same stages, got {len(self.backbone_depths)} and "
                f"{len(self.backbone_channels)} entries"
            )

    @property
    def feature_size(self) -> int:
        """Side of the appearance volume and of the warped feature map."""
        return self.image_size // 2**self.num_down_blocks

    @property
    def feature_channels(self) -> int:
        """Channels of the warped 2D feature map that G decodes."""
        return min(self.max_channels, self.base_channels * 2**self.num_down_blocks)

    @property
    def output_size(self) -> int:
        """Side of the square picture that G makes, px."""
        return self.feature_size * 4 * self.shuffle_factor

    @classmethod
    def tiny(cls, image_size: int = 64) -> ModelConfig:
        """The same structure with few channels (64x64 in, 128x128 out), for tests and trials that must be quick."""
        return cls(
            image_size=image_size,
            base_channels=8,
            max_channels=32,
            volume_channels=4,
            volume_depth=4,
            num_volume_blocks=2,
            backbone_depths=(1, 1, 2, 1),
            backbone_channels=(8, 16, 24, 32),
            hourglass_channels=4,
            hourglass_max_channels=32,
            num_hourglass_blocks=3,
            compressed_channels=2,
            num_middle_blocks=2,
            modulation_channels=8,
            generator_out_channels=8,
            stitching_channels=(16, 16),
            retarget_eye_channels=(16, 16),
            retarget_lip_channels=(16, 16),
        )
