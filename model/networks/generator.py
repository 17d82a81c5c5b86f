"""G: the SPADE decoder with pixel shuffle, feature map to picture (LivePortrait, section 3.2; SPADE, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import ModelConfig
from model.networks.blocks import instance_norm, upsample, without_autocast

LEAKY_SLOPE = 0.2
NORM_EPS = 1e-5
SIGMA_EPS = 1e-12


class SpectralConv2d(nn.Module):
    """Convolution whose weight is divided by its spectral norm, under the released keys `weight_orig, _u, _v`.

    A power iteration refines u and v; `SpadeGenerator` calls it before each pass in training, and `forward` changes
    nothing. The weight is computed in `forward`, so the module can be copied, compiled and wrapped like any other.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__()
        reference = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias)
        self.padding = kernel_size // 2
        if bias:
            self.bias = nn.Parameter(reference.bias.detach())
        else:
            self.register_parameter("bias", None)
        self.weight_orig = nn.Parameter(reference.weight.detach())
        self.register_buffer("weight_u", functional.normalize(torch.randn(out_channels), dim=0, eps=SIGMA_EPS))
        fan_in = self.weight_orig[0].numel()
        self.register_buffer("weight_v", functional.normalize(torch.randn(fan_in), dim=0, eps=SIGMA_EPS))

    @torch.no_grad()
    def power_iteration(self) -> None:
        """One step towards the largest singular vectors, in place; float32 even under autocast."""
        matrix = self.weight_orig.flatten(1)
        with without_autocast(matrix.device):
            self.weight_v.copy_(functional.normalize(matrix.T @ self.weight_u, dim=0, eps=SIGMA_EPS))
            self.weight_u.copy_(functional.normalize(matrix @ self.weight_v, dim=0, eps=SIGMA_EPS))

    def normalized_weight(self) -> Tensor:
        """weight_orig / (u^T W v), float32 even under autocast."""
        with without_autocast(self.weight_orig.device):
            # Clones: two forwards before one backward must not see each other's update of the buffers.
            u, v = self.weight_u.clone(), self.weight_v.clone()
            sigma = torch.dot(u, self.weight_orig.flatten(1) @ v)
            return self.weight_orig / sigma

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.normalized_weight(), self.bias, padding=self.padding)


class Spade(nn.Module):
    """Scale and shift of a normalised map, predicted from another map of its size (SPADE, equation 1)."""

    def __init__(self, channels: int, map_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(map_channels, hidden_channels, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden_channels, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden_channels, channels, 3, padding=1)

    def forward(self, normalized: Tensor, feature_map: Tensor) -> Tensor:
        hidden = self.mlp_shared(feature_map)
        return normalized * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SpadeBlock(nn.Module):
    """Residual block of two SPADE-normalised 3x3 convolutions; a third norm and a 1x1 where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, map_channels: int, hidden_channels: int) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.learned_shortcut = in_channels != out_channels
        self.conv_0 = SpectralConv2d(in_channels, middle, 3)
        self.conv_1 = SpectralConv2d(middle, out_channels, 3)
        if self.learned_shortcut:
            self.conv_s = SpectralConv2d(in_channels, out_channels, 1, bias=False)
        self.norm_0 = Spade(in_channels, map_channels, hidden_channels)
        self.norm_1 = Spade(middle, map_channels, hidden_channels)
        if self.learned_shortcut:
            self.norm_s = Spade(in_channels, map_channels, hidden_channels)

    def forward(self, x: Tensor, feature_map: Tensor) -> Tensor:
        """x: [N, in_channels, H, W]; feature_map: [N, map_channels, H / n, W / n]."""
        if (factor := x.shape[-1] // feature_map.shape[-1]) > 1:
            feature_map = upsample(feature_map, (factor, factor))
        normalized = instance_norm(x, NORM_EPS)
        shortcut = self.conv_s(self.norm_s(normalized, feature_map)) if self.learned_shortcut else x
        residual = self.conv_0(functional.leaky_relu(self.norm_0(normalized, feature_map), LEAKY_SLOPE))
        normalized = instance_norm(residual, NORM_EPS)
        residual = self.conv_1(functional.leaky_relu(self.norm_1(normalized, feature_map), LEAKY_SLOPE))
        return shortcut + residual


class SpadeGenerator(nn.Module):
    """Picture from W's feature map: [N, feature_channels, H, W] -> [N, 3, 4 f H, 4 f W], RGB in (0, 1).

    f is the `shuffle_factor`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, hidden = config.feature_channels, config.modulation_channels
        out_channels, factor = config.generator_out_channels, config.shuffle_factor
        self.num_middle_blocks = config.num_middle_blocks
        self.fc = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        for index in range(config.num_middle_blocks):
            self.add_module(f"G_middle_{index}", SpadeBlock(2 * channels, 2 * channels, channels, hidden))
        self.up_0 = SpadeBlock(2 * channels, channels, channels, hidden)
        self.up_1 = SpadeBlock(channels, out_channels, channels, hidden)
        self.conv_img = nn.Sequential(nn.Conv2d(out_channels, 3 * factor**2, 3, padding=1), nn.PixelShuffle(factor))

    @property
    def middle_blocks(self) -> list[SpadeBlock]:
        return [getattr(self, f"G_middle_{index}") for index in range(self.num_middle_blocks)]

    def spectral_convolutions(self) -> list[SpectralConv2d]:
        """All convolutions with a spectral norm."""
        return [module for module in self.modules() if isinstance(module, SpectralConv2d)]

    def forward(self, feature: Tensor) -> Tensor:
        if self.training:
            for convolution in self.spectral_convolutions():
                convolution.power_iteration()
        x = self.fc(feature)
        for block in self.middle_blocks:
            x = block(x, feature)
        for block in (self.up_0, self.up_1):
            x = block(upsample(x, (2, 2)), feature)
        return torch.sigmoid(self.conv_img(functional.leaky_relu(x, LEAKY_SLOPE)))
