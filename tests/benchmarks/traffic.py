"""What a training step of stage I reads and writes, operation by operation, counted without a GPU.

    python -m tests.benchmarks.traffic [--recipe paper] [--batch-size 16] [--num-kinds 40]

One step runs on fake tensors, which have shapes, types and strides but no numbers, so the full size takes seconds
anywhere. Outside convolutions a GPU's time goes with the bytes moved, and operands of different memory layouts (or a
layout that the next operation does not take) cost a multiple of their bytes. Each row: gigabytes, calls, operation,
types and layouts of the large tensors, and the line that caused the most. Launches are those of operations that run a
kernel at all; the small ones take the device less than the CPU, so the lines that cause the most are told as well.

Bytes are those of inputs and outputs, once each; what a kernel keeps in between, and the conversions that cuDNN makes
inside a convolution, are not seen. Autocast is the CPU's, whose lists differ from CUDA's in a few operations, and the
norms for clipping are taken one by one, where a GPU takes many at once: about 970 launches too many.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.base import BaseRecipe, BaseStage
from training.data.batch import PreparedBatch, PreparedFrames
from training.distributed import Process
from training.recipe import load_recipe

ROOT = str(Path(__file__).resolve().parents[2])
_LARGE = 1_000_000  # elements from which on a layout matters
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_NO_KERNEL = (
    "_unsafe_view",
    "detach",
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty_strided",
)
_MULTIPLIES = ("convolution", "convolution_backward", "mm", "addmm", "bmm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Count what a training step moves."""

    recipe: str = "paper"
    """Preset or a TOML file."""
    batch_size: int = 16
    """Pairs."""
    num_kinds: int = 40
    """Rows."""
    recompute: tuple[str, ...] = ()
    """Blocks of G whose activations the backward pass computes again, in place of the recipe's."""


class Traffic(TorchDispatchMode):
    """Bytes and calls by kind of operation: (name, types, layouts)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: Counter[tuple[str, str, str]] = Counter()
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self.places: dict[tuple[str, str, str], Counter[str]] = {}
        self.small: Counter[str] = Counter()
        """Launches without a large tensor, by place."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        inputs, outputs = _tensors((arguments, options)), _tensors(result)
        name = function.overloadpacket.__name__
        if function.is_view or function.namespace != "aten" or not outputs or name in _NO_KERNEL:
            return result
        large = [tensor for tensor in inputs + outputs if tensor.numel() >= _LARGE]
        types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in large})
        layouts = sorted({layout(tensor) for tensor in large} - {"any"})
        kind = (name, "/".join(types), "+".join(layouts))
        moved = sum(map(size_bytes, inputs + outputs))
        self.num_bytes[kind] += moved
        self.calls[kind] += 1
        place = _place()
        self.places.setdefault(kind, Counter())[place] += moved
        if not large:
            self.small[place] += 1
        return result

    def share(self, kinds: Iterable[tuple[str, str, str]]) -> float:
        """Gigabytes of some kinds."""
        return sum(self.num_bytes[kind] for kind in kinds) / 1e9


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place() -> str:
    """The innermost line of these packages; of the backward pass, the node of the graph."""
    if (node := torch._C._current_autograd_node()) is not None:
        return f"backward: {node.name()}"
    frames = [frame for frame in traceback.extract_stack(limit=40) if frame.filename.startswith(ROOT)]
    own = [frame for frame in frames if "benchmarks" not in frame.filename]
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}" if own else "?"


def size_bytes(tensor: Tensor) -> int:
    """Of the elements that there are: those of an expanded dimension count once."""
    num = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        num *= size if stride else 1
    return num * tensor.element_size()


def layout(tensor: Tensor) -> str:
    """channels first, channels last, strided (neither), or any (both, or no picture or volume)."""
    first = tensor.is_contiguous()
    if tensor.dim() not in _CHANNELS_LAST:
        return "any" if first else "strided"
    last = tensor.is_contiguous(memory_format=_CHANNELS_LAST[tensor.dim()])
    return {(True, True): "any", (True, False): "first", (False, True): "last", (False, False): "strided"}[first, last]


def fake_batch(num: int, side: int) -> PreparedBatch:
    """Pairs without numbers; call within a FakeTensorMode."""

    def frames() -> PreparedFrames:
        return PreparedFrames(
            image=torch.empty(num, 3, side, side),
            target=torch.empty(num, 3, 2 * side, 2 * side),
            landmarks=torch.empty(num, 68, 2),
            pose=torch.empty(num, 3),
        )

    return PreparedBatch(source=frames(), driving=frames(), is_still=torch.zeros(num, dtype=torch.bool))


def count_step(recipe: BaseRecipe) -> Traffic:
    """Forward and backward of everything, without the optimisers."""
    stage = BaseStage(recipe, Process(), allow_random_features=True)
    for optimizer in stage.optimizers.values():
        optimizer.step = lambda: None
    past_warmup = recipe.losses.discriminator_warmup_images  # so that all losses count
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch, generator = fake_batch(recipe.batch_size, recipe.model.image_size), torch.Generator()
        with Traffic() as traffic:
            stage.training_step(batch, past_warmup, generator)
    return traffic


def main(options: Options) -> None:
    """Count and print."""
    recipe = load_recipe(BaseRecipe, "base", options.recipe)
    compute = dataclasses.replace(recipe.compute, recompute=options.recompute or recipe.compute.recompute)
    traffic = count_step(dataclasses.replace(recipe, batch_size=options.batch_size, compute=compute))
    multiplies = [kind for kind in traffic.num_bytes if kind[0] in _MULTIPLIES]
    others = [kind for kind in traffic.num_bytes if kind[0] not in _MULTIPLIES]
    mixed = [kind for kind in others if "+" in kind[2] or "strided" in kind[2]]
    print(
        f"batch {options.batch_size}: convolutions and products {traffic.share(multiplies):.1f} GB, "
        f"everything else {traffic.share(others):.1f} GB, of it in mixed or other layouts {traffic.share(mixed):.1f} GB"
    )
    places = ", ".join(f"{place} {calls}" for place, calls in traffic.small.most_common(8))
    print(f"{traffic.calls.total()} launches, of them small {traffic.small.total()}: {places}")
    others.sort(key=lambda kind: -traffic.num_bytes[kind])
    for kind in others[: options.num_kinds]:
        name, types, layouts = kind
        places = ", ".join(f"{place} {moved / 1e9:.1f}" for place, moved in traffic.places[kind].most_common(3))
        print(
            f"{traffic.num_bytes[kind] / 1e9:8.1f} GB {traffic.calls[kind]:5d} x "
            f"{name:<30} {types:<18} {layouts:<14} {places}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
