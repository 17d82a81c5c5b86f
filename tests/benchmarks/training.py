"""How long a step of stage I takes, and where the time goes.

    python -m tests.benchmarks.training DATASET --recipe tiny
    python -m tests.benchmarks.training DATASET --recipe paper --batch-sizes 8 16 24 --allow-random-features  # on a GPU

Every batch size is measured alone in this process: images/s with the loader running, share of the time spent waiting
for it, memory (on a CPU the peak of the process so far), and on known GPUs the model-FLOP utilisation (floating-point
operations that the networks and losses of a step need without recomputation, over the device's dense peak). The parts
are measured afterwards, with the device waited for after each, so they add up to a little more. A batch that does not
fit is said, and ends the list.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import tyro
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from model.networks.blocks import Conv3d
from training.base import BaseRecipe, BaseStage
from training.checkpoints import RunState
from training.data import Batch, augment, make_loader
from training.distributed import Process, start_process
from training.loop import step
from training.metrics import peak_memory_gib
from training.recipe import load_recipe

# Dense bfloat16 peaks in TFLOP/s, by a part of the device's name.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure training steps on a data set."""

    data: tyro.conf.Positional[str]
    """Data set made by `python -m curation`."""
    recipe: str = "tiny"
    """Preset or a TOML file."""
    batch_sizes: tuple[int, ...] = ()
    """Pairs a step; empty: the recipe's."""
    micro_batch_size: int = 0
    """Pairs at once; 0: all of a step."""
    num_steps: int = 20
    """Measured steps of each batch size, after a few to warm up."""
    num_warmup: int = 5
    """Steps before."""
    device: str = "auto"
    """cpu, cuda or auto."""
    compile: bool = False
    """torch.compile for the networks' blocks."""
    allow_random_features: bool = False
    """Random features for VGG19 and the recogniser where weights are missing: the same time."""
    num_workers: int | None = None
    """Of the loader; None: the recipe's."""
    num_kernels: int = 0
    """Also list so many of the operations that take most of the device's time in a step, kernels on a GPU."""
    plain_3d: bool = False
    """Measure each batch size again with 3D kernels for shallow volumes too (`model.networks.blocks.Conv3d`)."""


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Parts:
    """Seconds by name of the parts of steps."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wait_for(self.device)
        start = time.perf_counter()
        yield
        wait_for(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return measured


def measure(options: Options, recipe: BaseRecipe, process: Process) -> None:
    """Lines of one batch size."""
    stage = BaseStage(recipe, process, allow_random_features=options.allow_random_features)
    loader = make_loader(
        options.data, config=recipe.data, batch_size=recipe.batch_size, seed=0, side_px=2 * recipe.model.image_size
    )
    batches = iter(loader)
    past_warmup = recipe.losses.discriminator_warmup_images  # so that all losses count
    state = RunState(images=past_warmup)
    for _ in range(options.num_warmup):
        step(stage, recipe, next(batches), state, process)
    if process.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(process.device)
    wait_s, start = 0.0, time.perf_counter()
    for _ in range(options.num_steps):
        before = time.perf_counter()
        batch = next(batches)
        wait_s += time.perf_counter() - before
        step(stage, recipe, batch, state, process)
    wait_for(process.device)
    seconds = time.perf_counter() - start
    step_s = seconds / options.num_steps
    line = (
        f"batch {recipe.batch_size}: {recipe.batch_size / step_s:.2f} images/s  {1e3 * step_s:.0f} ms/step  "
        f"data wait {100 * wait_s / seconds:.1f} %  {peak_memory_gib(process.device):.1f} GiB"
    )
    flops = count_flops(stage, recipe, batch, process)
    line += f"  {flops / recipe.batch_size / 1e12:.3f} TFLOP/image  {flops / step_s / 1e12:.2f} TFLOP/s"
    if process.device.type == "cuda":
        name = torch.cuda.get_device_name(process.device)
        peak = next((value for part, value in PEAK_TFLOPS.items() if part in name), None)
        line += f"  MFU {100 * flops / step_s / 1e12 / peak:.1f} % of {peak} TFLOP/s" if peak else "  (peak unknown)"
    print(line, flush=True)
    measure_parts(stage, recipe, batch, process)
    if options.num_kernels:
        list_kernels(stage, recipe, batch, process, options.num_kernels)


def measure_parts(stage: BaseStage, recipe: BaseRecipe, batch: Batch, process: Process) -> None:
    """Milliseconds of each part of a step."""
    parts = Parts(process.device)
    stage.replicated = parts.around("forward of F, M, W, G", stage.replicated)
    stage._judge = parts.around("discriminators", stage._judge)
    stage._terms = parts.around("losses", stage._terms)
    stage._backward = parts.around("backward", stage._backward)
    optimizer = stage.optimizers["networks"]
    optimizer.step = parts.around("optimiser", optimizer.step)
    if stage.ema is not None:
        stage.ema.update = parts.around("average", stage.ema.update)
    num, state = 3, RunState(images=recipe.losses.discriminator_warmup_images)
    for _ in range(num):
        with parts.part("copy and augmentation (also within the whole)"):
            augment(batch.to(process.device), config=recipe.augmentation, image_size=recipe.model.image_size, seed=0)
        with parts.part("whole step"):
            step(stage, recipe, batch, state, process)
    for name, seconds in parts.seconds.items():
        print(f"    {1e3 * seconds / num:8.1f} ms  {name}")


def list_kernels(stage: BaseStage, recipe: BaseRecipe, batch: Batch, process: Process, num: int) -> None:
    """Milliseconds, share and calls of what takes the device the most time in one step."""
    on_gpu = process.device.type == "cuda"
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        step(stage, recipe, batch, RunState(images=recipe.losses.discriminator_warmup_images), process)
        wait_for(process.device)
    spent = [
        ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count, event.key)
        for event in profiler.key_averages()
    ]
    spent = sorted((entry for entry in spent if entry[0] > 0), reverse=True)  # launches take the device no time
    total = sum(time_ms for time_ms, _, _ in spent)
    print(f"    {total:8.1f} ms  in {sum(count for _, count, _ in spent)} kernels or operations")
    for time_ms, count, name in spent[:num]:
        print(f"    {time_ms:8.1f} ms  {100 * time_ms / total:4.1f} %  {count:5d} x  {name[:150]}")


def convolution_backward_flops(
    grad_shape: Sequence[int], x_shape: Any, w_shape: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Of the gradients of input and weight: each as many as the convolution. torch's own count is times the groups for
    the weight's, 0.2 TFLOP a picture at full size for the depthwise ones of M, which need a thousandth."""
    of_input, of_weight, _ = rest[-1]
    return (of_input + of_weight) * 2 * math.prod(grad_shape) * math.prod(w_shape[1:])


CORRECTED_FLOPS = {torch.ops.aten.convolution_backward: convolution_backward_flops}


def count_flops(stage: BaseStage, recipe: BaseRecipe, batch: Batch, process: Process) -> int:
    """Floating-point operations of one step, counted while it runs; recomputed ones are left out."""
    recomputed = [getattr(stage.model.generator, name) for name in recipe.compute.recompute]
    wrapped = [block.__dict__.pop("forward") for block in recomputed]
    try:
        with FlopCounterMode(display=False, custom_mapping=CORRECTED_FLOPS) as counter:
            step(stage, recipe, batch, RunState(images=recipe.losses.discriminator_warmup_images), process)
        return counter.get_total_flops()
    finally:
        for block, forward in zip(recomputed, wrapped, strict=True):
            block.forward = forward


def main(options: Options) -> None:
    recipe = load_recipe(BaseRecipe, "base", options.recipe)
    with start_process(options.device) as process:
        if process.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            print(f"{torch.cuda.get_device_name(process.device)}, torch {torch.__version__}")
        else:
            recipe = dataclasses.replace(recipe, compute=dataclasses.replace(recipe.compute, precision="float32"))
            print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")
        compute = dataclasses.replace(
            recipe.compute, compile=options.compile, micro_batch_size=options.micro_batch_size
        )
        workers = recipe.data.num_workers if options.num_workers is None else options.num_workers
        data = dataclasses.replace(recipe.data, num_workers=workers)
        recipe = dataclasses.replace(recipe, compute=compute, data=data)
        for batch_size in options.batch_sizes or (recipe.batch_size,):
            try:
                measure(options, dataclasses.replace(recipe, batch_size=batch_size), process)
                if options.plain_3d:
                    print("the same with 3D kernels:")
                    with mock.patch.object(Conv3d, "forward", torch.nn.Conv3d.forward):
                        measure(options, dataclasses.replace(recipe, batch_size=batch_size), process)
            except torch.OutOfMemoryError:
                print(f"batch {batch_size}: does not fit")
                break


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
