"""python -m training base: stage I from scratch, or from weights."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from manifests.recipes import from_values
from model.config import ModelConfig
from model.networks import LivePortrait
from training.base import BaseRecipe, BaseStage
from training.checkpoints import CheckpointFolder, read_run, read_tensors
from training.data import PreparedBatch, prepare
from training.distributed import Process
from training.export import checkpoint_folder, is_run
from training.running import RunOptions, run_stage
from training.stage import open_loader
from training.start import load_start, note_seen_frames, with_crops_of, with_sizes_of

INIT_PAIRS = 64
"""Pairs on which the conventions of weights that are no run's are measured."""


@dataclass(frozen=True, kw_only=True)
class Base(RunOptions):
    """Train F, M, W and G from scratch, or from given weights. The same command again continues.

    - One CPU process: python -m training base --recipe tiny --data demo_dataset --output runs/tiny
    - 8 GPUs: torchrun --standalone --nproc-per-node 8 -m training base --data DATASET --losses.vgg19 vgg19.pth
    """

    output: Path = Path("runs/base")
    """Folder of the run; made if it is missing, continued if it holds checkpoints."""
    init: Path | None = None
    """Weights to start from: a run (also of `training motion`, for M alone), the released files, or an export;
    otherwise from scratch. The sizes of the networks come with whole models, and from a run also which key points
    follow which landmarks, which is measured for other weights. Discriminators and optimisers begin anew. A run that
    has begun does not read them again."""
    allow_random_features: bool = False
    """Train with random features where weights of VGG19 or of the recogniser are missing. Results are worse.
    A run keeps to what it began with: it goes on with other features only by --allow-other-recipe."""
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe")] = "paper"
    """Preset or a TOML file; further options override it."""
    recipe: Annotated[BaseRecipe, tyro.conf.arg(name="")] = field(default_factory=BaseRecipe)

    STAGE = "base"
    RECIPE = BaseRecipe

    def main(self) -> int:
        recipe, portrait = self.recipe, None
        if self.init is not None:
            newest = CheckpointFolder(self.output, keep_last=1, writes=False).newest_name()
            if newest is not None:  # the run has begun: all of it comes from there
                folder = self.output / "checkpoints" / newest
                config = from_values(ModelConfig, read_run(folder)["model"], f"{folder}: model")
                recipe = with_sizes_of(self, config, f"the run in {self.output}")
            else:
                portrait = load_start(self.init, recipe)
                note_seen_frames(self.init, recipe)
                recipe = with_sizes_of(self, portrait.config, f"--init {self.init}")
        recipe = with_crops_of(self, recipe)
        return run_stage(self, recipe, lambda process: self.make_stage(recipe, process, portrait), init=self.init)

    def make_stage(self, recipe: BaseRecipe, process: Process, portrait: LivePortrait | None) -> BaseStage:
        """The stage, with the conventions of weights that it starts from: those of their run, else measured."""
        stage = BaseStage(recipe, process, portrait=portrait, allow_random_features=self.allow_random_features)
        if portrait is None:
            return stage
        if of_run := conventions_of(self.init):
            notes = stage.conventions.take(of_run, signs=recipe.losses.pose_signs == "auto")
            if recipe.losses.has_discriminators and read_run(checkpoint_folder(self.init))["stage"] == BaseStage.name:
                notes.append("the discriminators of that run are not taken over: they begin anew")
        else:
            notes = stage.learn_conventions(self.first_batches(stage, recipe, process))
        for note in notes:
            if process.is_main:
                print(f"{self.init}: {note}", file=sys.stderr)
        return stage

    def first_batches(self, stage: BaseStage, recipe: BaseRecipe, process: Process) -> Iterator[PreparedBatch]:
        """The pairs on which conventions are measured, the same ones on every rank."""
        batch_size, alone = min(8, recipe.batch_size), Process(device=process.device)
        loader = open_loader(stage, recipe, self.data, alone, batch_size)
        for batch in itertools.islice(loader, -(-INIT_PAIRS // batch_size)):
            yield prepare(batch.to(process.device), image_size=recipe.model.image_size)


def conventions_of(path: Path) -> dict[str, Tensor]:
    """State of the `Conventions` that a run of `training base` or `training motion` trained with; {} for other weights.

    A run's M need not be sure of its slots yet, so they are not to be guessed from its key points.
    """
    path = path.expanduser()
    if not is_run(path):
        return {}
    prefix = "modules.conventions."
    tensors = read_tensors(checkpoint_folder(path), (prefix,))
    return {name.removeprefix(prefix): value for name, value in tensors.items()}
