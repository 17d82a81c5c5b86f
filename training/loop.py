"""The training loop that all stages share: read, step, average, tell, validate, save, stop.

Order of data, augmentation and every random draw are functions of (seed, images seen), so the state of a run is
its weights, its optimisers and one number.
"""

from __future__ import annotations

import hashlib
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from manifests.store import write_bytes_atomically
from training.checkpoints import CheckpointFolder, RunState
from training.data import Batch, augment
from training.distributed import Process, ranks_that_share
from training.metrics import Reporter
from training.nonfinite import LostSteps
from training.recipe import Recipe, recipe_toml
from training.stage import Stage, open_loader
from training.stopping import stop_request
from training.validation import save_pictures, validate


def train(
    stage: Stage,
    recipe: Recipe,
    *,
    dataset: str,
    output: Path,
    process: Process,
    init: Path | None = None,
    allow_other_recipe: bool = False,
) -> int:
    """Train until `recipe.num_images`, from the newest checkpoint in `output` if there is one. Returns the exit status.

    SIGTERM and SIGINT end the run after the current step, with a checkpoint at once: pictures and validation that are
    due then are left out. init: what the stage's weights are from, to be noted. ValueError for what the user can mend,
    NonFiniteError for a run that diverged, or ends while steps are lost one after the other: their state is not saved.
    """
    with stop_request() as request:  # from here on: what reads and imports below would swallow an interrupt
        per_rank = batch_per_rank(recipe.batch_size, process)
        inputs = {"data": dataset, "init": str(init or "")}
        folder = CheckpointFolder(output, keep_last=recipe.checkpoints.keep_last, writes=process.is_main, inputs=inputs)
        require_same_judges(stage, process)
        state = folder.restore(stage, recipe, allow_other_recipe=allow_other_recipe)
        require_one_start(state, output, process)
        loader = open_loader(stage, recipe, dataset, process, per_rank, position=state.images)
        if process.is_main and state.images < recipe.num_images:
            folder.note_clips(clips := loader.order.index.describe(), state)
            stills = loader.order.describe_stills(learns_motion=stage.learns_motion)
            print(f"{dataset}: {clips}; {stills}", file=sys.stderr)
            write_bytes_atomically(output / "recipe.toml", recipe_toml(recipe).encode())
        with folder, Reporter(output, recipe, process, first_image=state.images) as reporter:
            (interrupted,) = process.any(request.made)
            if state.images == 0 and not interrupted:
                report_held_out(stage, recipe, state, dataset, output, process, reporter)
            batches, lost = reporter.timed(loader), LostSteps(output, process)
            done_at = state.images  # after the last good step, until which all that was due is done
            while state.images < recipe.num_images and not interrupted:
                batch, problem = read_batch(batches)
                interrupted, is_unreadable = process.any(request.made, problem is not None)  # meanwhile
                if is_unreadable:
                    raise_problem(problem, state, process, saved=save_last(stage, recipe, state, folder, lost))
                if interrupted:
                    break
                losses = step(stage, recipe, batch, state, process)
                interrupted, is_lost = process.any(request.made, not all(map(math.isfinite, losses.values())))
                reporter.add(losses, state.images, state.step, num_skipped=batch.num_skipped, is_lost=is_lost)
                lost.note(batch, losses, folder, good_until=done_at, is_lost=is_lost)
                if interrupted:
                    break
                # What is due waits for a good step: the one before may have broken the weights that lose all to come.
                if is_lost and (lost.num_in_a_row > 1 or state.images < recipe.num_images):
                    continue
                is_best = report_held_out(stage, recipe, state, dataset, output, process, reporter, done_at=done_at)
                if is_best or due(recipe.checkpoints.every_images, state.images, done_at):
                    folder.save(stage, recipe, state)
                done_at = state.images
                folder.poll()
            saved = save_last(stage, recipe, state, folder, lost)
            reporter.last(state.images, interrupted=interrupted, saved=saved)
            lost.end(folder, good_until=done_at)
        (failed,) = process.any(not saved)
        return 1 if failed else 130 if interrupted and request.by == signal.SIGINT else 0


def save_last(stage: Stage, recipe: Recipe, state: RunState, folder: CheckpointFolder, lost: LostSteps) -> bool:
    """Save the state that a run ends with, unless its weights may be broken. Whether there is nothing to lose."""
    return state.images == 0 or (not lost.may_be_broken and folder.save_last(stage, recipe, state))


def read_batch(batches: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """The next batch, or why there is none: a data set that was changed or is gone, a store or a worker that died."""
    try:
        return next(batches), None
    except (ValueError, OSError, RuntimeError) as problem:
        return None, problem


def raise_problem(problem: Exception | None, state: RunState, process: Process, *, saved: bool) -> NoReturn:
    """End all ranks alike when some (those with a `problem`) have no batch to go on with.

    ValueError where all problems are ValueErrors, else OSError.
    """
    # Of another process's error, its last line: the others are a traceback.
    what = None if problem is None else (isinstance(problem, ValueError), str(problem).strip().rpartition("\n")[2])
    found = process.gather(what)
    problems = [one for one in found if one is not None]
    (is_lost,) = process.any(not saved)
    after = "" if is_lost or not state.images else f". All is saved at {state.images:,} images"
    kind = ValueError if all(is_value_error for is_value_error, _ in problems) else OSError
    raise kind(f"{problems[0][1]}{after}") from problem


def require_one_start(state: RunState, output: Path, process: Process) -> None:
    """ValueError on all ranks where they did not resume from the same place: they would train on apart."""
    found = process.gather(state.images)
    if len(set(found)) > 1:
        places = ", ".join(f"rank {rank} at {images:,}" for rank, images in enumerate(found[:8]))
        raise ValueError(
            f"ranks found different checkpoints in --output {output} ({places} images): it must be one folder that all "
            "nodes see"
        )


def require_same_judges(stage: Stage, process: Process) -> None:
    """ValueError on all ranks where their losses ask different networks, as of nodes of which one could fetch none."""
    found = process.gather(dict(stage.judges))
    for name in stage.judges:
        if len({judges[name] for judges in found}) > 1:
            told = ", ".join(f"rank {rank} {judges[name]}" for rank, judges in enumerate(found[:8]))
            raise ValueError(f"ranks have different networks for {name} ({told}): give all nodes the same file")


def step(stage: Stage, recipe: Recipe, batch: Batch, state: RunState, process: Process) -> dict[str, float]:
    """One step of the stage on one batch; `state` moves on. Returns what the stage tells, as numbers."""
    generator = seeded_generator(process.device, recipe.seed, state.images)
    prepared = augment(
        batch.to(process.device), config=recipe.augmentation, image_size=recipe.model.image_size, seed=recipe.seed
    )
    factor = recipe.optimizer.factor(state.images, recipe.num_images)
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
    losses = stage.training_step(prepared, state.images, generator)
    state.images, state.step = state.images + recipe.batch_size, state.step + 1
    if stage.ema is not None:
        stage.ema.update(state.images, recipe.batch_size)
    values = torch.stack([value.detach().float() for value in losses.values()]).tolist()  # one wait for the device
    return dict(zip(losses, values, strict=True))


def report_held_out(
    stage: Stage,
    recipe: Recipe,
    state: RunState,
    dataset: str,
    output: Path,
    process: Process,
    reporter: Reporter,
    *,
    done_at: int = 0,
) -> bool:
    """Pictures and validation of held-out pairs where they are due, also before the first step.

    Whether the figure that tells the best checkpoint is the best so far, which `state` then notes.
    done_at: images at which what was due was last done.
    """
    reports, images = recipe.reports, state.images
    at_end = images >= recipe.num_images
    if reports.pictures_every_images and (at_end or due(reports.pictures_every_images, images, done_at)):
        with reporter.paused():
            save_pictures(stage, recipe, images, dataset=dataset, output=output, process=process, reporter=reporter)
    if not reports.validate_every_images:
        return False
    if not (at_end or due(reports.validate_every_images, images, done_at)):
        return False
    with reporter.paused():
        figures = validate(stage, recipe, dataset=dataset, process=process)
    reporter.validation(figures, images)
    value = figures.get(stage.best_metric) if stage.best_metric else None
    if value is None or not images or images < stage.best_from_images or value >= state.best_value:
        return False
    state.best_value, state.best_images = value, images
    return True


def due(every_images: int, images: int, done_at: int) -> bool:
    """Whether there is a multiple of `every_images` among the images after `done_at` until `images`."""
    return images == 0 or images // every_images > done_at // every_images


def batch_per_rank(batch_size: int, process: Process) -> int:
    """Pairs that each rank takes a step. ValueError where the batch cannot be divided evenly."""
    if batch_size % (num := process.world_size):
        below = batch_size // num * num
        sizes = f"{below} or {below + num}" if below else str(num)
        raise ValueError(
            f"batch_size is {batch_size} over all ranks, which {num} ranks cannot share evenly: use "
            f"{ranks_that_share(batch_size)} (--nproc-per-node, on all nodes together), or --batch-size {sizes}, which "
            "is another recipe"
        )
    return batch_size // process.world_size


def seeded_generator(device: torch.device, *key: Any) -> torch.Generator:
    """Random numbers that depend on `key` alone; the global generators are set likewise."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "little")
    torch.manual_seed(seed)
    return torch.Generator(device).manual_seed(seed)
