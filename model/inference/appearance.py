"""F for inference: channels-last, batch norms folded where a convolution comes first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.inference.folding import Convolution, fold_batch_norm
from model.networks.appearance import AppearanceExtractor
from model.networks.blocks import ResBlock3d


class FastResBlock3d(nn.Module):
    """The residual sum stays in float32, the convolutions run in `dtype`."""

    def __init__(self, block: ResBlock3d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        scale = block.norm1.weight.double() / torch.sqrt(block.norm1.running_var.double() + block.norm1.eps)
        shift = block.norm1.bias.double() - block.norm1.running_mean.double() * scale
        self.register_buffer("scale", scale.detach().float().view(-1, 1, 1, 1))
        self.register_buffer("shift", shift.detach().float().view(-1, 1, 1, 1))
        weight, bias = fold_batch_norm(block.conv1, block.norm2)
        self.conv1 = Convolution(weight, bias, dtype=dtype, padding=1)
        self.conv2 = Convolution(block.conv2.weight, block.conv2.bias, dtype=dtype, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addcmul(self.shift, x, self.scale).relu_().to(self.dtype)
        return self.conv2(self.conv1(y).relu_()).float() + x


class FastAppearanceExtractor(nn.Module):
    """The same function as AppearanceExtractor; the volume is float32."""

    def __init__(self, plain: AppearanceExtractor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.volume_shape = plain.volume_shape
        blocks = [plain.first, *plain.down_blocks]
        self.halve = [block.halve for block in blocks]
        self.convolutions = nn.ModuleList(
            Convolution(*fold_batch_norm(block.conv, block.norm), dtype=dtype, padding=1) for block in blocks
        )
        # Slice by slice, so that channels lie innermost as the volume leaves the 1x1 convolution.
        channels, depth = plain.volume_shape
        weight = plain.second.weight.detach().unflatten(0, (channels, depth)).transpose(0, 1).flatten(0, 1)
        bias = plain.second.bias.detach().view(channels, depth).T.flatten()
        self.second = Convolution(weight, bias, dtype=dtype)
        self.resblocks = nn.Sequential(*(FastResBlock3d(block, dtype) for block in plain.resblocks_3d))

    def forward(self, image: Tensor) -> Tensor:
        x = image.to(self.dtype).contiguous(memory_format=torch.channels_last)
        for convolution, halve in zip(self.convolutions, self.halve, strict=True):
            x = convolution(x).relu_()
            x = functional.avg_pool2d(x, 2) if halve else x
        channels, depth = self.volume_shape
        volume = self.second(x).unflatten(1, (depth, channels)).transpose(1, 2)
        return self.resblocks(volume.float().contiguous(memory_format=torch.channels_last_3d))
