"""python -m training landmarks on the command line, and the network that such a run gives."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from manifests.recipes import from_values
from training.checkpoints import read_run, read_tensors
from training.export import checkpoint_folder, is_run
from training.landmarks import LandmarksRecipe, LandmarkStage
from training.networks.landmarks import LandmarkConfig, LandmarkNetwork
from training.running import RunOptions, run_stage


@dataclass(frozen=True, kw_only=True)
class Landmarks(RunOptions):
    """Train a small differentiable landmark network for retargeting, on the labels of the shards.

    Of the section `model`, image_size counts alone: pictures are twice as large, before `landmarks.image_size`.

    python -m training landmarks --data DATASET --output runs/landmarks
    """

    output: Path = Path("runs/landmarks")
    """Folder of the run; made if it is missing, continued if it holds checkpoints."""
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe")] = "default"
    """Preset or a TOML file; further options override it."""
    recipe: Annotated[LandmarksRecipe, tyro.conf.arg(name="")] = field(default_factory=LandmarksRecipe)

    STAGE = "landmarks"
    RECIPE = LandmarksRecipe

    def main(self) -> int:
        return run_stage(self, self.recipe, lambda process: LandmarkStage(self.recipe, process))


def load_landmarks(run: Path) -> LandmarkNetwork:
    """The averaged landmark network of a run, frozen. ValueError with one line that says what to do."""
    run = run.expanduser()
    if not run.exists():
        raise ValueError(
            f"--landmarks {run}: nothing there; make a run with "
            f"`python -m training landmarks --output {shlex.quote(str(run))}`"
        )
    if not is_run(run):
        raise ValueError(f"--landmarks {run} is no run; expected the folder that `training landmarks` wrote into")
    folder = checkpoint_folder(run)
    told = read_run(folder)
    if told["stage"] != LandmarkStage.name:
        raise ValueError(f"--landmarks {run} is a run of stage {told['stage']!r}, expected one of `training landmarks`")
    sizes = {k.removeprefix("landmarks."): v for k, v in told["recipe"].items() if k.startswith("landmarks.")}
    network = LandmarkNetwork(from_values(LandmarkConfig, sizes, f"{folder}: landmarks"))
    tensors = read_tensors(folder, ("ema.landmarks.", "modules.landmarks."))
    kind = "ema" if any(name.startswith("ema.") for name in tensors) else "modules"
    prefix = f"{kind}.landmarks."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return network.eval().requires_grad_(False)
