"""G for inference: spectral norms folded, SPADE modulations on the small map, broadcasts instead of upsampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.inference.folding import Convolution, UpsampledConvolution
from model.networks.generator import LEAKY_SLOPE, NORM_EPS, Spade, SpadeBlock, SpadeGenerator


def _instance_norm(x: Tensor) -> Tensor:
    """Instance norm of a channels-last map [N, C, H, W].

    Batch norm of one picture is the same and has a channels-last kernel on the CPU; instance norm there copies twice.
    """
    if x.device.type != "cpu":
        return functional.instance_norm(x, eps=NORM_EPS)
    images = [functional.batch_norm(image, None, None, training=True, eps=NORM_EPS) for image in x.split(1)]
    return torch.cat(images) if len(images) > 1 else images[0]


def _modulation(norm: Spade, dtype: torch.dtype) -> Convolution:
    """Scale and shift of a SPADE norm as one convolution; the one in 1 + gamma goes into its bias."""
    gamma, beta = norm.mlp_gamma, norm.mlp_beta
    weight, bias = torch.cat([gamma.weight, beta.weight]), torch.cat([gamma.bias + 1, beta.bias])
    return Convolution(weight, bias, dtype=dtype, padding=1)


def _modulate(normalized: Tensor, modulation: Tensor) -> Tensor:
    """leaky(normalized * scale + shift); scale and shift are the halves of the modulation's channels."""
    scale, shift = modulation.chunk(2, dim=1)
    return functional.leaky_relu_(torch.addcmul(shift, normalized, scale), LEAKY_SLOPE)


def _broadcast_doubled(small: Tensor) -> Tensor:
    """A channels-last map [N, C, h, w] as [N, h, 1, w, 1, C], beside which `_in_pairs` of its double broadcasts."""
    return small.permute(0, 2, 3, 1)[:, :, None, :, None, :]


def _in_pairs(large: Tensor) -> Tensor:
    """A channels-last map [N, C, 2h, 2w] as [N, h, 2, w, 2, C], without a copy."""
    return large.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def _from_pairs(pairs: Tensor) -> Tensor:
    """The inverse of `_in_pairs`, without a copy."""
    return pairs.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class FastMiddleBlock(nn.Module):
    """A SPADE block at the map's own size; its hidden modulation maps come from outside."""

    def __init__(self, block: SpadeBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.modulation_0 = _modulation(block.norm_0, dtype)
        self.modulation_1 = _modulation(block.norm_1, dtype)
        self.conv_0 = Convolution(block.conv_0.normalized_weight(), block.conv_0.bias, dtype=dtype, padding=1)
        self.conv_1 = Convolution(block.conv_1.normalized_weight(), block.conv_1.bias, dtype=dtype, padding=1)

    def forward(self, x: Tensor, hidden_0: Tensor, hidden_1: Tensor) -> Tensor:
        y = self.conv_0(_modulate(_instance_norm(x), self.modulation_0(hidden_0)))
        y = self.conv_1(_modulate(_instance_norm(y), self.modulation_1(hidden_1)))
        return y.add_(x)


class FastUpBlock(nn.Module):
    """Doubling followed by a SPADE block, whose feature map is `factor` times smaller than the result."""

    def __init__(self, block: SpadeBlock, factor: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.learned_shortcut = block.learned_shortcut
        norms = [block.norm_0, block.norm_1, *([block.norm_s] if block.learned_shortcut else [])]
        shared = [norm.mlp_shared[0] for norm in norms]
        self.hidden_channels = shared[0].out_channels
        self.factor = factor
        self.shared = UpsampledConvolution(
            torch.cat([conv.weight.detach() for conv in shared]),
            torch.cat([conv.bias.detach() for conv in shared]),
            factor=factor,
            dtype=dtype,
        )
        self.modulation_0 = _modulation(block.norm_0, dtype)
        self.modulation_1 = _modulation(block.norm_1, dtype)
        self.conv_0 = Convolution(block.conv_0.normalized_weight(), block.conv_0.bias, dtype=dtype, padding=1)
        self.conv_1 = Convolution(block.conv_1.normalized_weight(), block.conv_1.bias, dtype=dtype, padding=1)
        if block.learned_shortcut:
            self._fold_shortcut(block, dtype)

    def _fold_shortcut(self, block: SpadeBlock, dtype: torch.dtype) -> None:
        # The shortcut has no activation between its norm and its 1x1 convolution S, so S (x (1 + gamma) + beta) is
        # S (x (1 + gamma)) + (S beta), and S after beta's convolution is one convolution with fewer outputs.
        shortcut = block.conv_s.normalized_weight()
        gamma, beta = block.norm_s.mlp_gamma, block.norm_s.mlp_beta
        matrix = shortcut[:, :, 0, 0].double()
        beta_weight = torch.einsum("oc,cikl->oikl", matrix, beta.weight.double())
        self.in_channels = shortcut.shape[1]
        self.modulation_s = Convolution(
            torch.cat([gamma.weight.double(), beta_weight]),
            torch.cat([gamma.bias.double() + 1, matrix @ beta.bias.double()]),
            dtype=dtype,
            padding=1,
        )
        self.conv_s = Convolution(shortcut, None, dtype=dtype)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        num, _, height, width = feature.shape
        size = (num, height * self.factor, width * self.factor, self.hidden_channels)
        hidden = [feature.new_empty(size) for _ in range(3 if self.learned_shortcut else 2)]
        self.shared(feature, hidden)
        hidden_0, hidden_1, *hidden_s = (part.permute(0, 3, 1, 2) for part in hidden)

        normalized = _instance_norm(x)  # doubling changes neither mean nor variance
        y = self.conv_0(self._modulate_doubled(normalized, self.modulation_0(hidden_0)))
        y = self.conv_1(_modulate(_instance_norm(y), self.modulation_1(hidden_1)))
        if not self.learned_shortcut:
            return _from_pairs(_in_pairs(y).add_(_broadcast_doubled(x)))

        modulation = self.modulation_s(*hidden_s)
        scaled = _in_pairs(modulation[:, : self.in_channels]) * _broadcast_doubled(normalized)
        return y.add_(self.conv_s(_from_pairs(scaled))).add_(modulation[:, self.in_channels :])

    @staticmethod
    def _modulate_doubled(normalized: Tensor, modulation: Tensor) -> Tensor:
        """`_modulate` of the doubled map, without making it."""
        scale, shift = modulation.chunk(2, dim=1)
        y = torch.addcmul(_in_pairs(shift), _broadcast_doubled(normalized), _in_pairs(scale))
        return functional.leaky_relu_(_from_pairs(y), LEAKY_SLOPE)


class FastGenerator(nn.Module):
    """The same function as SpadeGenerator; everything in `dtype`, the picture in float32."""

    def __init__(self, plain: SpadeGenerator, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.fc = Convolution(plain.fc.weight, plain.fc.bias, dtype=dtype, padding=1)
        # All middle norms read the same map: their hidden maps are one convolution.
        shared = [norm.mlp_shared[0] for block in plain.middle_blocks for norm in (block.norm_0, block.norm_1)]
        weight, bias = (torch.cat([getattr(conv, name) for conv in shared]) for name in ("weight", "bias"))
        self.middle_shared = Convolution(weight, bias, dtype=dtype, padding=1)
        self.middle = nn.ModuleList(FastMiddleBlock(block, dtype) for block in plain.middle_blocks)
        self.up_0 = FastUpBlock(plain.up_0, 2, dtype)
        self.up_1 = FastUpBlock(plain.up_1, 4, dtype)
        image = plain.conv_img[0]
        self.image = Convolution(image.weight, image.bias, dtype=dtype, padding=1)
        self.shuffle_factor = plain.conv_img[1].upscale_factor

    def forward(self, feature: Tensor) -> Tensor:
        feature = feature.to(self.dtype).contiguous(memory_format=torch.channels_last)
        x = self.fc(feature)
        hidden = self.middle_shared(feature).relu_().chunk(2 * len(self.middle), dim=1)
        for index, block in enumerate(self.middle):
            x = block(x, hidden[2 * index], hidden[2 * index + 1])
        x = self.up_1(self.up_0(x, feature), feature)
        x = self.image(functional.leaky_relu_(x, LEAKY_SLOPE)).float()
        return torch.sigmoid(functional.pixel_shuffle(x, self.shuffle_factor))
