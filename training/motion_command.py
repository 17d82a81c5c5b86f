"""python -m training motion on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from training.motion import MotionRecipe, MotionStage
from training.running import RunOptions, run_stage


@dataclass(frozen=True, kw_only=True)
class Motion(RunOptions):
    """Train M alone on the labels of the shards, as a start for stage I. The same command again continues.

    Of the section `model`, image_size, num_keypoints, num_pose_bins and what begins with backbone count.

    $ python -m training motion --data DATASET --output runs/motion
    $ python -m training base --init runs/motion --data DATASET --losses.vgg19 vgg19.pth --output runs/base
    """

    output: Path = Path("runs/motion")
    """Folder of the run; made if it is missing, continued if it holds checkpoints."""
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe")] = "default"
    """Preset or a TOML file; further options override it."""
    recipe: Annotated[MotionRecipe, tyro.conf.arg(name="")] = field(default_factory=MotionRecipe)

    STAGE = "motion"
    RECIPE = MotionRecipe

    def main(self) -> int:
        return run_stage(self, self.recipe, lambda process: MotionStage(self.recipe, process))
