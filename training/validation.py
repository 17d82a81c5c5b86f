"""Held-out pairs during a run: figures over all ranks, and the sample grid."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from training.data import Batch, PreparedBatch, prepare
from training.distributed import Process
from training.metrics import Reporter
from training.pictures import draw_grid, write_png
from training.recipe import Recipe
from training.stage import Stage, open_loader

_log = logging.getLogger(__name__)
_CUT_OFF = ""  # among the names of figures: a rank could not read its pairs to the end


def validate(stage: Stage, recipe: Recipe, *, dataset: str, process: Process) -> dict[str, float]:
    """Means of the stage's figures over `num_validation` held-out pairs, the same ones every time; {} without any, and
    where a rank cannot read its own to the end: a mean of some of them is no figure to compare."""
    try:
        totals = sum_figures(stage, recipe, dataset=dataset, process=process)
    except OSError as error:  # what ends a run, in order, is that its training data cannot be read
        _log.warning("no validation: %s", error)
        totals = {_CUT_OFF: (0.0, 0)}
    totals = process.sum(totals)  # also where this rank has none: a data set may change between two ranks' looks
    return {} if _CUT_OFF in totals else {name: total / count for name, (total, count) in totals.items() if count}


def sum_figures(stage: Stage, recipe: Recipe, *, dataset: str, process: Process) -> dict[str, tuple[float, int]]:
    """Sum and number of this rank's figures that are known, by name; `_CUT_OFF` among them where damage ended the pairs
    too early. OSError where they cannot be read."""
    totals: dict[str, tuple[float, int]] = {}
    batch_size = recipe.compute.pairs_at_once(recipe.batch_size // process.world_size)
    of_all_ranks = batch_size * process.world_size
    num_batches = -(-recipe.reports.num_validation // of_all_ranks)
    batches = held_out_batches(stage, recipe, batch_size, dataset=dataset, process=process)
    if batches is None:
        return totals
    num_got = 0
    with torch.no_grad():
        for number, batch in enumerate(itertools.islice(batches, num_batches)):
            # Of the last batch, the pairs that are too many do not count.
            first = number * of_all_ranks + process.rank * batch_size
            wanted = max(0, recipe.reports.num_validation - first)
            for name, values in stage.validate(batch, first).items():
                values = values[:wanted]
                known = values[values.isfinite()].double()
                total, count = totals.get(name, (0.0, 0))
                totals[name] = (total + known.sum().item(), count + len(known))
            num_got += 1
    return totals if num_got == num_batches else {_CUT_OFF: (0.0, 0)}


def save_pictures(
    stage: Stage, recipe: Recipe, images: int, *, dataset: str, output: Path, process: Process, reporter: Reporter
) -> None:
    """Write the grid of the first held-out pairs, without augmentation: OUTPUT/pictures/images-N.png, TensorBoard."""
    if not process.is_main:
        return
    alone = Process(device=process.device)
    try:
        batches = held_out_batches(stage, recipe, recipe.reports.num_pictures, dataset=dataset, process=alone)
        batch = None if batches is None else next(batches, None)
    except OSError as error:
        _log.warning("no pictures: %s", error)
        return
    if batch is None:
        return
    with torch.no_grad():
        grid = draw_grid(stage.pictures(batch))
    try:
        write_png(output / "pictures" / f"images-{images:010d}.png", grid)
    except OSError as error:
        print(f"error: the sample grid could not be written ({error})", file=sys.stderr)
    reporter.picture(grid, images)


def held_out_batches(
    stage: Stage, recipe: Recipe, batch_size: int, *, dataset: str, process: Process
) -> Iterator[PreparedBatch] | None:
    """Batches that training does not see, without end: frames kept back of known persons where the recipe keeps some,
    else the persons of the split val. None, said once, where the data set has none."""
    split = "held_out" if recipe.data.held_out_share > 0 else "val"
    # Workers would cost more to start than they save on a few batches.
    config = dataclasses.replace(recipe.data, num_workers=0)
    if stage.validates_on_videos:
        config = dataclasses.replace(config, still_share=0.0)
    try:
        loader = open_loader(stage, dataclasses.replace(recipe, data=config), dataset, process, batch_size, split=split)
    except ValueError as error:
        advice = "; data.held_out_share keeps frames of training clips back" if split == "val" else ""
        _log.warning("no validation and no pictures: %s%s", error, advice)
        return None
    return _prepared_until_damaged(loader, recipe, process)


def _prepared_until_damaged(loader: Iterable[Batch], recipe: Recipe, process: Process) -> Iterator[PreparedBatch]:
    try:
        for batch in loader:
            yield prepare(batch.to(process.device), image_size=recipe.model.image_size)
    except ValueError as error:
        _log.warning("validation and pictures have no held-out pairs any more: %s", error)
