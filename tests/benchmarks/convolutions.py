"""Convolutions of a training step of stage I that may suit tensor cores badly, each alone and in several forms.

    python -m tests.benchmarks.convolutions [--batch-size 16]          # a minute or two on a GPU
    python -m tests.benchmarks.convolutions --shrink 8 --batch-size 1  # whether the forms agree, on a CPU

Forms: channels last and channels first as they are; padded, with channels filled up by zeros to multiples of eight;
slices, a 3D convolution as a 2D one over single slices whose taps along the depth are further output channels, added up
afterwards, so that few outputs fill a tensor core's tile. Each row: milliseconds forward, and forward and backward;
TFLOP/s of what the plain form needs; the largest difference from the plain form as a share of its largest value. The
shapes are those of the `paper` recipe.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor
from torch.nn import functional

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time convolutions one by one."""

    batch_size: int = 16
    """Pairs."""
    num_runs: int = 10
    """Of which the median counts, after three to warm up."""
    shrink: int = 1
    """Sides of maps and volumes are divided by this."""
    only: str = ""
    """Part of the names to measure."""


@dataclass(frozen=True)
class Shape:
    """One convolution that keeps the size, or halves it."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    size: tuple[int, ...]
    """[D,] H, W."""
    groups: int = 1
    stride: int = 1
    frames: int = 1
    """A pair."""


SHAPES = (
    Shape("W mask", 142, 22, 7, (16, 64, 64)),
    Shape("W hourglass, last", 142, 142, 3, (16, 64, 64)),
    Shape("W hourglass, first", 110, 64, 3, (16, 64, 64)),
    Shape("W hourglass, last up", 128, 32, 3, (16, 64, 64)),
    Shape("W hourglass, deep", 1024, 256, 3, (16, 8, 8)),
    Shape("F 3D", 32, 32, 3, (16, 64, 64)),
    Shape("W occlusion", 2272, 1, 7, (64, 64)),
    Shape("M depthwise, first", 96, 96, 7, (64, 64), groups=96, frames=3),
    Shape("M depthwise, third", 384, 384, 7, (16, 16), groups=384, frames=3),
    Shape("VGG first", 3, 64, 3, (512, 512)),
    Shape("VGG second", 64, 64, 3, (512, 512)),
    Shape("D first", 3, 64, 4, (512, 512), stride=2, frames=2),
    Shape("G last", 64, 12, 3, (256, 256)),
    Shape("G scale, up_1", 128, 256, 3, (256, 256)),
    Shape("G middle", 512, 512, 3, (64, 64)),
)


def plain(shape: Shape) -> Form:
    convolve = functional.conv3d if len(shape.size) == 3 else functional.conv2d
    padding = shape.kernel // 2 - (shape.stride == 2)
    return lambda x, weight, bias: convolve(x, weight, bias, shape.stride, padding, 1, shape.groups)


def padded(shape: Shape) -> Form:
    more_in, more_out = -shape.in_channels % 8, -shape.out_channels % 8
    none = (0, 0) * len(shape.size)

    def form(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = functional.pad(weight, (*none, 0, more_in, 0, more_out))
        y = plain(shape)(functional.pad(x, (*none, 0, more_in)), weight, functional.pad(bias, (0, more_out)))
        return y[:, : shape.out_channels].contiguous(memory_format=_LAST[x.dim()])

    return form


def slices(shape: Shape, *, multiple: int = 1) -> Form:
    """multiple: of the channels, filled up by zeros."""
    half, more = shape.kernel // 2, -shape.in_channels % multiple

    def form(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        num, _, depth, height, width = x.shape
        x = functional.pad(x, (0,) * 7 + (more,)).transpose(1, 2).flatten(0, 1)
        kernels = functional.pad(weight, (0,) * 7 + (more,)).permute(2, 0, 1, 3, 4).flatten(0, 1)
        kernels = functional.pad(kernels, (0,) * 7 + (-len(kernels) % multiple,))
        y = functional.conv2d(x, kernels.contiguous(memory_format=torch.channels_last), padding=half)
        y = y[:, : shape.kernel * shape.out_channels].unflatten(0, (num, depth)).unflatten(2, (shape.kernel, -1))
        total = bias[:, None, None].float().expand(num, depth, -1, height, width)
        for tap, part in enumerate(y.unbind(2)):
            shift = tap - half  # output slice d adds what tap saw in slice d + shift
            part = part[:, max(0, shift) : depth + min(0, shift)]
            total = total + functional.pad(part, (0,) * 6 + (max(0, -shift), max(0, shift)))
        return total.to(x.dtype).transpose(1, 2)

    return form


def forms(shape: Shape) -> dict[str, tuple[Form, bool]]:
    """Name -> form, and whether its operands are channels last."""
    made = {"channels last": (plain(shape), True), "channels first": (plain(shape), False)}
    if shape.groups == 1 and (shape.in_channels % 8 or shape.out_channels % 8):
        made["padded"] = (padded(shape), True)
    if len(shape.size) == 3:
        made["slices"] = (slices(shape), True)
        made["slices, padded"] = (slices(shape, multiple=8), True)
    return made


def median_ms(function: Callable[[], object], options: Options, device: torch.device) -> float:
    """Of single runs, each waited for."""
    spent = []
    for _run in range(3 + options.num_runs):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spent[3:])


def measure(shape: Shape, options: Options, device: torch.device) -> None:
    """Rows of one convolution."""
    torch.manual_seed(0)
    size = [max(1, side // options.shrink) for side in shape.size[-2:]]
    shape = dataclasses.replace(shape, size=(*shape.size[:-2], *size))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(shape.frames * options.batch_size, shape.in_channels, *shape.size, device=device, dtype=dtype)
    fan_in = (shape.in_channels // shape.groups, *(shape.kernel,) * len(shape.size))
    weight = torch.randn(shape.out_channels, *fan_in, device=device, dtype=dtype) / torch.tensor(fan_in).prod() ** 0.5
    bias = torch.randn(shape.out_channels, device=device, dtype=dtype)
    expected = None
    print(f"{shape.name}: {list(x.shape)} * {list(weight.shape)}")
    for name, (form, is_last) in forms(shape).items():
        layout = _LAST[x.dim()] if is_last else torch.contiguous_format
        operands = [value.contiguous(memory_format=layout).requires_grad_() for value in (x, weight)]
        operands.append(bias.clone().requires_grad_())
        try:
            y = form(*operands)
            expected = y.detach() if expected is None else expected
            gradient = torch.ones_like(y)
            forward = median_ms(lambda form=form, operands=operands: form(*operands), options, device)
            whole = median_ms(lambda f=form, o=operands, g=gradient: torch.autograd.grad(f(*o), o, g), options, device)
        except RuntimeError as error:
            print(f"    {name:<16} {str(error).splitlines()[0][:90]}")
            continue
        flops = 2 * expected.numel() * weight[0].numel()
        difference = ((y - expected).abs().max() / expected.abs().max()).item()
        print(
            f"    {name:<16} {forward:8.2f} ms {flops / forward / 1e9:7.1f} TFLOP/s   with backward {whole:8.2f} ms "
            f"{3 * flops / whole / 1e9:7.1f} TFLOP/s   differs {difference:.1e}",
            flush=True,
        )
        del operands, y, gradient


def main(options: Options) -> None:
    """Measure all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    for shape in SHAPES:
        if options.only in shape.name:
            measure(shape, options, device)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
