"""What every training command does around its stage: options, recipe, dry run, processes, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from manifests.console import amount
from training.checkpoints import CheckpointFolder
from training.distributed import Process, start_process
from training.loop import batch_per_rank, train
from training.nonfinite import NonFiniteError
from training.recipe import Recipe, part_sizes, recipe_toml
from training.run_folder import check_output, only_command
from training.stage import Stage, open_loader


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every training command besides its recipe; derived classes add `recipe_name` and `recipe`."""

    data: str = "demo_dataset"
    """Folder or fsspec URL of a data set made by `python -m curation`."""
    output: Path
    """Folder of the run; made if it is missing, continued if it holds checkpoints."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    dry_run: bool = False
    """Show the resolved recipe and the sizes of the networks, check data and weights, and whether a run that is there
    can be continued, and train nothing."""
    allow_other_recipe: bool = False
    """Continue a run whose recipe was another, but for discriminators, balancer and averages that it has not had.
    Workers (but of the reader webdataset), places of files and what the sections compute, reports and checkpoints say
    are free. The best checkpoint so far counts on where validation measures the same."""

    STAGE: ClassVar[str]
    """Name of the folder of presets."""
    RECIPE: ClassVar[type[Recipe]]


def run_stage(
    options: RunOptions, recipe: Recipe, make_stage: Callable[[Process], Stage], *, init: Path | None = None
) -> int:
    """Make the stage in this process and train it. Returns the exit status.

    init: what the stage's weights are from, to be noted.
    0: finished, or stopped by SIGTERM with everything saved. 130: the same by Ctrl-C. 1: diverged, or the last state
    could not be saved. What the user can mend is a ValueError; OSError where a batch is too large for the device.
    """
    check_output(options.output)
    with start_process(options.device) as process:
        per_rank = batch_per_rank(recipe.batch_size, process)
        check_data(options.data)
        if process.device.type == "cpu" and recipe.compute.precision == "bfloat16":
            raise ValueError(
                "compute.precision is bfloat16, but on the CPU PyTorch's bfloat16 convolutions are slow and corrupt "
                "memory in the backward pass (2.13): use --compute.precision float32, or a GPU"
            )
        # Products of matrices stay whole: key-point algebra, grids and M's heads are float32 for their digits.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = recipe.compute.tf32
        torch.backends.cudnn.benchmark = process.device.type == "cuda"
        if options.dry_run:
            if process.is_main and not options.output.exists():
                with only_command(options.output):  # makes it, and removes it again
                    pass
            stage = make_stage(process)
            open_loader(stage, recipe, options.data, process, per_rank)
            folder = CheckpointFolder(options.output, keep_last=recipe.checkpoints.keep_last, writes=False)
            newest = folder.to_resume(stage, recipe, allow_other_recipe=options.allow_other_recipe)
            if process.is_main:
                print(recipe_toml(recipe), end="")
                print(describe(stage, recipe, process))
                if newest is not None:
                    print(f"would resume from {newest}")
            return 0
        with only_command(options.output) if process.is_main else nullcontext():
            stage = make_stage(process)
            if process.is_main:
                print(describe(stage, recipe, process), file=sys.stderr)
                if process.device.type == "cuda":
                    print("the first steps may take minutes: cuDNN tries its kernels for every shape", file=sys.stderr)
            try:
                return train(
                    stage,
                    recipe,
                    dataset=options.data,
                    init=init,
                    output=options.output,
                    process=process,
                    allow_other_recipe=options.allow_other_recipe,
                )
            except NonFiniteError as error:
                if process.is_main:
                    print(f"error: {error}", file=sys.stderr)
                process.any(True)  # torchrun ends all ranks when one ends: not before it is told
                return 1
            except torch.OutOfMemoryError as error:
                raise OSError(too_large(stage, recipe, process, str(error).split(". ")[0])) from error


def too_large(stage: Stage, recipe: Recipe, process: Process, cause: str) -> str:
    """What to tell where the device's memory does not hold what a step needs."""
    pairs = recipe.batch_size // process.world_size
    at_once = recipe.compute.pairs_at_once(pairs, stage.pairs_multiple)
    remedies = []
    if fewer := [size for size in part_sizes(pairs, stage.pairs_multiple) if size < at_once]:
        remedies.append(f"--compute.micro-batch-size {fewer[-1]}")
    if stage.takes_recompute and not {"up_1", "up_0"} <= {*recipe.compute.recompute}:
        remedies.append("--compute.recompute up_1 up_0, which takes time")
    return (
        f"the memory of {process.device.type} does not hold {amount(at_once, 'pair')} at once ({cause}): use "
        f"{', or '.join(remedies) or 'a device with more of it'}; the checkpoints so far are good"
    )


def check_data(data: str) -> None:
    """ValueError unless there is a data set, or something at a URL that the loader will judge."""
    if "://" not in data and not (Path(data).expanduser() / "manifests").is_dir():
        raise ValueError(
            f"--data {data}: no data set there; expected a folder with manifests/ and shards/, which "
            "`python -m curation run VIDEOS --output DATASET` makes (`python -m curation demo` needs no videos)"
        )


def describe(stage: Stage, recipe: Recipe, process: Process) -> str:
    """A line on what is about to be trained, and one on parts of a step that are smaller than they need be."""
    sizes = ", ".join(f"{name} {_millions(module)}" for name, module in stage.modules.items() if _count(module))
    pairs = recipe.batch_size // process.world_size
    at_once = recipe.compute.pairs_at_once(pairs, stage.pairs_multiple)
    parts = f" in {pairs // at_once} parts of {at_once}" if at_once < pairs else ""
    return (
        f"{stage.name}: {sizes}; {recipe.model.image_size} px in, {recipe.model.output_size} px out; "
        f"{recipe.num_images:,} images in batches of {recipe.batch_size} on {process.world_size} x "
        f"{process.device.type}{parts}, {recipe.compute.precision}{_note_small_parts(stage, recipe, process)}"
    )


def _note_small_parts(stage: Stage, recipe: Recipe, process: Process) -> str:
    """A line where a rank's pairs have no divisor near what it may take at once; else nothing."""
    limit, pairs = recipe.compute.micro_batch_size, recipe.batch_size // process.world_size
    at_once = recipe.compute.pairs_at_once(pairs, stage.pairs_multiple)
    if at_once == pairs or 2 * at_once >= limit:
        return ""
    larger = min(size for size in part_sizes(pairs, stage.pairs_multiple) if size > limit)
    step = process.world_size * (limit - limit % stage.pairs_multiple)
    below = recipe.batch_size // step * step
    return (
        f"\nnote: {pairs} pairs a rank fall into parts of {at_once} where compute.micro_batch_size is {limit}: that is "
        f"slow, and batch norm, where it learns, sees so few at once. Use --compute.micro-batch-size {larger} if the "
        f"memory allows, or --batch-size {below} or {below + step}, which is another recipe"
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _millions(module: nn.Module) -> str:
    count: Any = _count(module)
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.1f} K"
