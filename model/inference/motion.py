"""M for inference: channels-last, layer norms and response-norm shifts folded, linear layers as 1x1 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.inference.folding import Convolution, fold_layer_norm
from model.networks.motion import NORM_EPS, ConvNextBlock, MotionExtractor


def _normalize_channels(x: Tensor) -> Tensor:
    """Layer norm without scale and shift over the channels of a channels-last map [N, C, H, W]."""
    return functional.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=NORM_EPS).permute(0, 3, 1, 2)


class FastConvNextBlock(nn.Module):
    def __init__(self, block: ConvNextBlock) -> None:
        super().__init__()
        dtype = torch.float32
        self.channels = block.dwconv.in_channels
        self.depthwise = Convolution(block.dwconv.weight, block.dwconv.bias, dtype=dtype, padding=3)
        expand, expand_bias = fold_layer_norm(block.pwconv1.weight, block.pwconv1.bias, block.norm)
        self.expand = Convolution(expand[:, :, None, None], expand_bias, dtype=dtype)
        # y = x (1 + gamma r) + beta with r the relative response: beta goes through the projection once, here.
        project = block.pwconv2.weight.double()
        bias = block.pwconv2.bias.double() + project @ block.grn.beta.double().flatten()
        self.project = Convolution(project[:, :, None, None], bias, dtype=dtype)
        self.register_buffer("gamma", block.grn.gamma.detach().view(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        y = functional.conv2d(x, self.depthwise.weight, self.depthwise.bias, padding=3, groups=self.channels)
        y = functional.gelu(self.expand(_normalize_channels(y)))
        response = y.square().sum(dim=(2, 3), keepdim=True).sqrt_()
        relative = response / (response.mean(dim=1, keepdim=True) + NORM_EPS)
        return self.project(y.mul_(1 + self.gamma * relative)).add_(x)


class FastMotionExtractor(nn.Module):
    """The same function as MotionExtractor. Float32 always: key points steer the picture, and M is 1 % of the work."""

    def __init__(self, plain: MotionExtractor) -> None:
        super().__init__()
        detector = plain.detector
        stem, self.stem_norm = detector.downsample_layers[0]
        self.downsamples = nn.ModuleList([Convolution(stem.weight, stem.bias, dtype=torch.float32, stride=4)])
        for norm, conv in detector.downsample_layers[1:]:
            weight, bias = fold_layer_norm(conv.weight, conv.bias, norm)
            self.downsamples.append(Convolution(weight, bias, dtype=torch.float32, stride=2))
        self.stages = nn.ModuleList(
            nn.Sequential(*(FastConvNextBlock(block) for block in stage)) for stage in detector.stages
        )
        self.norm = detector.norm
        names = ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")
        layers = [getattr(detector, f"fc_{name}") for name in names]
        self.head_widths = {name: layer.out_features for name, layer in zip(names, layers, strict=True)}
        self.register_buffer("head_weight", torch.cat([layer.weight.detach() for layer in layers]))
        self.register_buffer("head_bias", torch.cat([layer.bias.detach() for layer in layers]))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = image.contiguous(memory_format=torch.channels_last)
        for level, (downsample, stage) in enumerate(zip(self.downsamples, self.stages, strict=True)):
            x = downsample(x if level == 0 else _normalize_channels(x))
            x = stage(self.stem_norm(x) if level == 0 else x)
        pooled = self.norm(x.mean(dim=(2, 3)))
        heads = functional.linear(pooled, self.head_weight, self.head_bias)
        return dict(zip(self.head_widths, heads.split([*self.head_widths.values()], dim=1), strict=True))
