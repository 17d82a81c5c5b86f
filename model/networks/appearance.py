"""F: the appearance extractor, picture to 3D feature volume (LivePortrait, section 3.1; after face-vid2vid)."""

from __future__ import annotations

from torch import Tensor, nn

from model.config import ModelConfig
from model.networks.blocks import ConvNorm2d, ResBlock3d, prepared


class AppearanceExtractor(nn.Module):
    """Appearance volume of a source picture.

    image: float [N, 3, S, S], RGB in [0, 1] -> [N, volume_channels, volume_depth, feature_size, feature_size].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [
            min(config.max_channels, config.base_channels * 2**level) for level in range(config.num_down_blocks + 1)
        ]
        self.volume_shape = (config.volume_channels, config.volume_depth)
        self.first = ConvNorm2d(3, widths[0])
        self.down_blocks = nn.ModuleList(
            ConvNorm2d(widths[level], widths[level + 1], halve=True) for level in range(config.num_down_blocks)
        )
        self.second = nn.Conv2d(widths[-1], config.volume_channels * config.volume_depth, 1)
        self.resblocks_3d = nn.Sequential()
        for index in range(config.num_volume_blocks):
            self.resblocks_3d.add_module(f"3dr{index}", ResBlock3d(config.volume_channels))

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        for block in self.down_blocks:
            x = block(x)
        volume = self.second(x).unflatten(1, self.volume_shape)
        return self.resblocks_3d(prepared(volume, self.resblocks_3d[0].conv1.weight))
