"""W for inference: the hourglass in channels-last with folded norms, the 7x7x7 mask as 2D convolutions of slices."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.inference.folding import Convolution, UpsampledConvolution, fold_batch_norm
from model.inference.sampling import warp_by_flow, warp_by_shifts
from model.networks.dense_motion import KEYPOINT_VARIANCE, SMALLEST_HEAT, DenseMotion, coordinate_grid
from model.networks.warping import LEAKY_SLOPE, WarpingNetwork, WarpOutput

CHANNEL_MULTIPLE = 16
"""Channels are padded with zeros to multiples of this, so that vector registers and matrix units fill."""


def _pad(weight: Tensor, dim: int, size: int) -> Tensor:
    """Zeros at the end of one dimension, up to a size."""
    shape = list(weight.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([weight, weight.new_zeros(shape)], dim=dim)


def _round_up(channels: int) -> int:
    return -(-channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def _slices(x: Tensor) -> Tensor:
    """The depth slices of a channels-last volume [N, C, D, H, W] as a batch [N * D, C, H, W], without a copy."""
    return x.transpose(1, 2).flatten(0, 1)


class FastHourglass(nn.Module):
    """The hourglass on channels-last buffers: [N, D, H, W, in] -> [N, out, D, H, W], both padded with zero channels."""

    def __init__(self, plain: DenseMotion, order: Tensor, dtype: torch.dtype) -> None:
        """order: which of the plain network's input channels each of our input channels is."""
        super().__init__()
        encoder, decoder = plain.hourglass.encoder, plain.hourglass.decoder
        self.in_channels = _round_up(len(order))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, block in enumerate(encoder.down_blocks):
            weight, bias = fold_batch_norm(block.conv, block.norm)
            if level == 0:
                weight = _pad(weight[:, order], 1, self.in_channels)
            self.downs.append(Convolution(weight, bias, dtype=dtype, padding=1))
        for block in decoder.up_blocks:
            weight, bias = fold_batch_norm(block.conv, block.norm)
            self.ups.append(UpsampledConvolution(weight, bias, factor=2, dtype=dtype))
        # The last convolution reads the last up block beside the input.
        weight, bias = fold_batch_norm(decoder.conv, decoder.norm)
        width = self.ups[-1].out_channels
        weight = torch.cat([weight[:, :width], _pad(weight[:, width + order], 1, self.in_channels)], dim=1)
        self.out_channels = _round_up(len(weight))
        self.last = Convolution(
            _pad(weight, 0, self.out_channels), _pad(bias, 0, self.out_channels), dtype=dtype, padding=1
        )

    def forward(self, x: Tensor) -> Tensor:
        levels = [x.movedim(-1, 1)]
        for down in self.downs:
            y = down(levels[-1]).relu_()
            pooled = functional.avg_pool2d(_slices(y), 2)
            levels.append(pooled.unflatten(0, (len(x), -1)).transpose(1, 2))
        y = levels.pop()
        for up in self.ups:
            skip = levels.pop().movedim(1, -1)
            joined = skip.new_empty(*skip.shape[:-1], up.out_channels + skip.shape[-1])
            up(y, [joined[..., : up.out_channels]])
            joined[..., up.out_channels :] = skip
            y = joined.movedim(-1, 1)
        return self.last(y).relu_()


class FastWarping(nn.Module):
    """The same function as WarpingNetwork; convolutions in `dtype`, flow and sampling in float32."""

    def __init__(self, plain: WarpingNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        motion = plain.dense_motion_network
        self.dtype = dtype
        self.num_motions = motion.mask.out_channels
        weight, bias = fold_batch_norm(motion.compress, motion.norm)
        self.compress = Convolution(weight, bias, dtype=torch.float32)
        compressed = motion.compress.out_channels

        # Our hourglass input: heat maps of the key points (the background's is zero and left out), then the warped
        # channels of every motion. The plain one interleaves them motion by motion.
        order = torch.arange(self.num_motions * (compressed + 1)).view(self.num_motions, -1)
        self.hourglass = FastHourglass(motion, torch.cat([order[1:, 0], order[:, 1:].flatten()]), dtype)
        self._fold_mask(motion)
        self._fold_occlusion(motion)

        weight, bias = fold_batch_norm(plain.third.conv, plain.third.norm)
        depth = weight.shape[1] // motion.compress.in_channels
        weight = weight.unflatten(1, (-1, depth)).transpose(1, 2).flatten(1, 2)  # slice by slice, as it is sampled
        self.third = Convolution(weight, bias, dtype=dtype, padding=1)
        self.fourth = Convolution(plain.fourth.weight, plain.fourth.bias, dtype=dtype)

    def _fold_mask(self, motion: DenseMotion) -> None:
        """A kernel of depth 7 is 7 kernels of depth 1 whose outputs are added with a shift in depth.

        The channels of the 2D convolution are its taps in depth, 22 motions each.
        """
        weight = _pad(motion.mask.weight.detach(), 1, self.hourglass.out_channels)
        self.mask_depth = weight.shape[2]
        self.mask = Convolution(weight.permute(2, 0, 1, 3, 4).flatten(0, 1), None, dtype=self.dtype, padding=3)
        self.register_buffer("mask_bias", motion.mask.bias.detach().clone())

    def _fold_occlusion(self, motion: DenseMotion) -> None:
        """A 7x7 convolution with one output is a matrix product with 49 outputs, one per tap, added with shifts."""
        weight = motion.occlusion.weight.detach()
        self.occlusion_size = weight.shape[-1]
        weight = weight.flip(2, 3).view(motion.mask.in_channels, -1, self.occlusion_size**2)
        weight = _pad(weight.transpose(0, 1), 1, self.hourglass.out_channels)  # [D, C, taps]
        self.register_buffer("occlusion_weight", weight.to(self.dtype).contiguous())
        self.register_buffer("occlusion_bias", motion.occlusion.bias.detach().clone())

    def forward(self, volume: Tensor, *, kp_driving: Tensor, kp_source: Tensor) -> WarpOutput:
        """volume and kp_source may have a first dimension of 1 where kp_driving has N."""
        volume, kp_driving, kp_source = volume.float(), kp_driving.float(), kp_source.float()
        shift = functional.pad(kp_source - kp_driving, (0, 0, 1, 0))  # the first motion is the still background
        prediction = self.hourglass(self._hourglass_input(volume, shift, kp_driving, kp_source))
        deformation = self._flow(prediction, shift)
        occlusion = self._occlusion(prediction)
        warped = warp_by_flow(volume, deformation)
        warped = warped.permute(0, 2, 3, 1, 4).flatten(3).to(self.dtype).permute(0, 3, 1, 2)
        feature = self.fourth(functional.leaky_relu_(self.third(warped), LEAKY_SLOPE))
        return WarpOutput(feature * occlusion.to(self.dtype), occlusion, deformation)

    def _hourglass_input(self, volume: Tensor, shift: Tensor, kp_driving: Tensor, kp_source: Tensor) -> Tensor:
        """Channels-last buffer [N, D, H, W, channels]."""
        compressed = torch.relu(self.compress(volume))
        warped = warp_by_shifts(compressed, shift)
        heat = self._heatmaps(kp_driving, volume.shape[2:]) - self._heatmaps(kp_source, volume.shape[2:])
        heat = functional.hardshrink(heat, SMALLEST_HEAT)
        num_heat, num_warped = heat.shape[-1], shift.shape[1] * compressed.shape[1]
        buffer = volume.new_zeros(len(shift), *volume.shape[2:], self.hourglass.in_channels, dtype=self.dtype)
        buffer[..., :num_heat] = heat
        buffer[..., num_heat : num_heat + num_warped] = warped.flatten(1, 2).movedim(1, -1)
        return buffer

    @staticmethod
    def _heatmaps(keypoints: Tensor, size: torch.Size) -> Tensor:
        """Gaussian bumps [N, D, H, W, K]; separable, so three short exponentials each."""
        bumps = []
        for axis, length in zip((2, 1, 0), size, strict=True):
            position = torch.linspace(-1, 1, length, device=keypoints.device)[:, None]
            bumps.append(torch.exp((position - keypoints[:, None, :, axis]).square() * (-0.5 / KEYPOINT_VARIANCE)))
        along_z, along_y, along_x = bumps
        plane = along_y[:, :, None] * along_x[:, None, :]
        return along_z[:, :, None, None] * plane[:, None]

    def _flow(self, prediction: Tensor, shift: Tensor) -> Tensor:
        """[N, D, H, W, 3]: the identity plus the shifts, weighted by the mask's softmax."""
        num, _, depth, height, width = prediction.shape
        logits = self.mask_bias.expand(num, depth, height, width, -1).contiguous()
        for slices, taps in self._mask_groups(depth):
            weight = self.mask.weight[taps.start * self.num_motions : taps.stop * self.num_motions]
            x = _slices(prediction[:, :, slices])
            parts = functional.conv2d(x, weight, padding=self.mask.padding).permute(0, 2, 3, 1)
            parts = parts.reshape(num, -1, height, width, len(taps), self.num_motions)
            for index, tap in enumerate(taps):
                offset = self.mask_depth // 2 - tap  # input slice d goes to output slice d + offset
                logits[:, slices.start + offset : slices.stop + offset] += parts[:, :, :, :, index]
        mask = torch.softmax(logits, dim=-1)
        grid = coordinate_grid(depth, height, width, device=mask.device, dtype=mask.dtype)
        return torch.matmul(mask.view(num, -1, self.num_motions), shift).view(num, depth, height, width, 3).add_(grid)

    def _mask_groups(self, depth: int) -> list[tuple[slice, range]]:
        """Runs of input slices with the taps that reach an output slice from them: fewer near both ends."""
        reach = self.mask_depth // 2
        groups: list[tuple[slice, range]] = []
        for index in range(depth):
            first, last = max(0, reach - (depth - 1 - index)), min(self.mask_depth - 1, reach + index)
            taps = range(first, last + 1)
            if groups and groups[-1][1] == taps:
                groups[-1] = (slice(groups[-1][0].start, index + 1), taps)
            else:
                groups.append((slice(index, index + 1), taps))
        return groups

    def _occlusion(self, prediction: Tensor) -> Tensor:
        """[N, 1, H, W], float32."""
        num, _, depth, height, width = prediction.shape
        slices = prediction.movedim(1, -1).reshape(num, depth, height * width, -1)
        taps = torch.matmul(slices, self.occlusion_weight).sum(dim=1, dtype=torch.float32).transpose(1, 2)
        size = self.occlusion_size
        return torch.sigmoid(functional.fold(taps, (height, width), size, padding=size // 2) + self.occlusion_bias)
