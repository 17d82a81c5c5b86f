"""Exact algebra on weights: what changes the number of operations, or their shape, and not the result.

All of it is computed in float64 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Module):
    """A convolution with fixed weights, stored channels-last in the dtype of inference (2D or 3D by its weight)."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        padding: int | tuple[int, ...] = 0,
        stride: int = 1,
    ) -> None:
        super().__init__()
        layout = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
        self.register_buffer("weight", weight.detach().to(dtype).contiguous(memory_format=layout))
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.padding = padding
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        convolve = functional.conv2d if self.weight.ndim == 4 else functional.conv3d
        return convolve(x, self.weight, self.bias, padding=self.padding, stride=self.stride)


def fold_batch_norm(conv: nn.Conv2d | nn.Conv3d, norm: nn.BatchNorm2d | nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Weight and bias (float64) of a convolution followed by a batch norm in evaluation mode."""
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.double() * scale.view(-1, *[1] * (conv.weight.ndim - 1))
    return weight, (conv.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()


def fold_layer_norm(weight: Tensor, bias: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight [out, in, ...] and bias (float64) of a layer norm followed by an unpadded linear map or convolution."""
    weight = weight.double()
    scale, shift = (value.double().view(-1, *[1] * (weight.ndim - 2)) for value in (norm.weight, norm.bias))
    return weight * scale, bias.double() + (weight * shift).flatten(1).sum(dim=1)


def upsampled_phases(weight: Tensor, dim: int, factor: int) -> list[Tensor]:
    """The kernels that a 3-tap kernel becomes along one axis when its input is nearest-upsampled along that axis.

    Output row factor * i + a reads rows factor * i + a + (-1, 0, 1) of the upsampled map, which are only one or two
    rows of the small map. Returns the different ones: for factor 2 [(i - 1, i), (i, i + 1)]; for 4, where the two inner
    rows read row i alone, [(i - 1, i), (i,), (i, i + 1)].
    """
    before, centre, after = weight.split(1, dim=dim)
    first, last = torch.cat([before, centre + after], dim=dim), torch.cat([before + centre, after], dim=dim)
    if factor == 2:
        return [first, last]
    assert factor == 4
    return [first, before + centre + after, last]


PHASE_OF_ROW = {2: (0, 1), 4: (0, 1, 1, 2)}
"""Which of `upsampled_phases` makes row `factor * i + a` of the output."""


class UpsampledConvolution(nn.Module):
    """A 3x3 (or 3x3x3) convolution of a map nearest-upsampled in height and width, computed on the small map.

    Phases with kernels of the same shape run as one convolution. `forward` gives rows and columns in order.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, factor: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.factor = factor
        self.out_channels = weight.shape[0]
        weight = weight.double()
        groups: dict[tuple[int, int], list[tuple[int, int, Tensor]]] = {}
        for row, by_row in enumerate(upsampled_phases(weight, weight.ndim - 2, factor)):
            for column, kernel in enumerate(upsampled_phases(by_row, weight.ndim - 1, factor)):
                groups.setdefault(tuple(kernel.shape[-2:]), []).append((row, column, kernel))
        self.convolutions = nn.ModuleList()
        self.place: dict[tuple[int, int], tuple[int, int]] = {}  # phase -> (convolution, position in its channels)
        for number, (size, members) in enumerate(groups.items()):
            kernel = torch.cat([kernel for _, _, kernel in members])
            # A kernel of two rows is padded by one on both sides: output row j reads rows j - 1 and j.
            padding = (*[1] * (weight.ndim - 4), size[0] - 1, size[1] - 1)
            self.convolutions.append(Convolution(kernel, bias.repeat(len(members)), dtype=dtype, padding=padding))
            self.place.update({(row, column): (number, i) for i, (row, column, _) in enumerate(members)})

    def forward(self, x: Tensor, outputs: list[Tensor]) -> None:
        """Write ReLU of the result into channels-last `outputs` [N, ..., factor * H, factor * W, C], split by channels.

        x: [N, in_channels, H, W] or [N, in_channels, D, H, W].
        """
        height, width = x.shape[-2:]
        results = [convolution(x).movedim(1, -1) for convolution in self.convolutions]
        widths = [output.shape[-1] for output in outputs]
        assert sum(widths) == self.out_channels
        last_phase = max(PHASE_OF_ROW[self.factor])
        for a, row in enumerate(PHASE_OF_ROW[self.factor]):
            for b, column in enumerate(PHASE_OF_ROW[self.factor]):
                number, position = self.place[row, column]
                top, left = int(row == last_phase), int(column == last_phase)
                rows, columns = slice(top, top + height), slice(left, left + width)
                start = position * self.out_channels
                for output, channels in zip(outputs, widths, strict=True):
                    phase = results[number][..., rows, columns, start : start + channels]
                    target = output[..., a :: self.factor, b :: self.factor, :]
                    if target.device.type == "cpu":
                        torch.clamp_min(phase, 0, out=target)
                    else:  # the compiler fuses this, and does not know `out=` of a view
                        target.copy_(torch.relu(phase))
                    start += channels
