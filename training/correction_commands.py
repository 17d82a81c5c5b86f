"""python -m training stitching | retargeting: stage II on the command line."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from model.faces.weights import WeightsError
from model.networks import LivePortrait
from training.checkpoints import CheckpointFolder
from training.distributed import Process
from training.export import BASE_WEIGHTS, checkpoint_folder, known_held_out_share, save_portrait
from training.landmarks_command import load_landmarks
from training.networks.facemesh import MeshLandmarks
from training.recipe import Recipe
from training.retargeting import RetargetingRecipe, RetargetingStage
from training.running import RunOptions, run_stage
from training.start import load_start, note_other_crops, note_other_landmarks, note_seen_frames, with_sizes_of
from training.stitching import StitchingRecipe, StitchingStage

_log = logging.getLogger(__name__)
FACEMESH = "facemesh"
LANDMARKS = "landmark_network"
"""Folder in a run of retargeting that holds the landmark network which judged it, as a run of `training landmarks`."""


@dataclass(frozen=True, kw_only=True)
class _Correction(RunOptions):
    """What both commands that build on a finished base model have in common."""

    init: Path
    """The base model: a run of `training base`, an export, or the released files."""
    keep_network: bool = False
    """Go on from the small network that --init holds; otherwise a new one starts at no correction."""

    def on_base(self) -> tuple[LivePortrait, Recipe]:
        """The base model, and the recipe with its sizes. The first time, it is copied into the run.

        A run that has begun takes its own copy: --init may have been trained further since.
        """
        has_begun = self._has_begun()
        portrait = load_start(self.output / BASE_WEIGHTS if has_begun else self.init)
        if not has_begun:
            note_seen_frames(self.init, self.recipe)
        where = f"the run in {self.output}" if has_begun else f"--init {self.init}"
        note_other_crops(self.data, portrait.config, where)
        return portrait, with_sizes_of(self, portrait.config, where)

    def keep_base(self, portrait: LivePortrait, process: Process) -> None:
        """Have the run hold its base model, and which frames that has not seen."""
        self.keep(
            BASE_WEIGHTS, lambda folder: save_portrait(portrait, folder, known_held_out_share(self.init)), process
        )

    def keep(self, name: str, write: Callable[[Path], object] | None, process: Process) -> None:
        """Have `write` make the folder `name` in the run, which needs nothing from elsewhere then, unless it has begun.

        The folder is complete or not there. One of a start that came to nothing, maybe from other weights, is replaced,
        or removed where `write` is None.
        """
        if not process.is_main or self.dry_run or self._has_begun():
            return
        own, temporary = self.output / name, self.output / f".{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        if write is not None:
            write(temporary)
        shutil.rmtree(own, ignore_errors=True)
        if write is not None:
            temporary.rename(own)

    def _has_begun(self) -> bool:
        """Whether there is something to go on from. ValueError where it is of another stage."""
        begun = CheckpointFolder(self.output, keep_last=1, writes=False).newest_name() is not None
        if begun and not (self.output / BASE_WEIGHTS).is_dir():
            raise ValueError(f"--output {self.output} is a run of another stage: use another folder")
        return begun


@dataclass(frozen=True, kw_only=True)
class Stitching(_Correction):
    """Train S, which keeps the source's shoulders where they are, on a finished base model.

    torchrun --standalone --nproc-per-node 8 -m training stitching --data DATASET --init runs/base
    """

    output: Path = Path("runs/stitching")
    """Folder of the run; made if it is missing, continued if it holds checkpoints."""
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe")] = "default"
    """Preset or a TOML file; further options override it."""
    recipe: Annotated[StitchingRecipe, tyro.conf.arg(name="")] = field(default_factory=StitchingRecipe)

    STAGE = "stitching"
    RECIPE = StitchingRecipe

    def main(self) -> int:
        portrait, recipe = self.on_base()

        def make_stage(process: Process) -> StitchingStage:
            self.keep_base(portrait, process)
            return StitchingStage(portrait, recipe, process, keep_network=self.keep_network)

        return run_stage(self, recipe, make_stage, init=self.init)


@dataclass(frozen=True, kw_only=True)
class Retargeting(_Correction):
    """Train R_eyes or R_lip, which open eyes and lips as asked, on a finished base model.

    torchrun --standalone --nproc-per-node 8 -m training retargeting --part eyes --data DATASET --init runs/base
    """

    part: Literal["eyes", "lip"]
    """Which of the two networks."""
    landmarks: str = FACEMESH
    """What measures the openness that is achieved: facemesh, the landmarker of the open analyser, run in torch; or a
    run of `training landmarks`, for shards with labels of another analyser. A copy of that network stays in this run,
    and once that has begun, what it began with stays in use."""
    weights_dir: str | None = None
    """Folder with the analysers' weight files, where FaceMesh's is not to be fetched."""
    output: Path | None = None
    """Folder of the run; runs/eyes or runs/lip if not given."""
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe")] = "default"
    """Preset or a TOML file; further options override it."""
    recipe: Annotated[RetargetingRecipe, tyro.conf.arg(name="")] = field(default_factory=RetargetingRecipe)

    STAGE = "retargeting"
    RECIPE = RetargetingRecipe

    def main(self) -> int:
        if self.output is None:
            return dataclasses.replace(self, output=Path("runs") / self.part).main()
        judge = self._judge()
        if judge is None:
            note_other_landmarks(
                self.data, "open", "train `training landmarks` on this data, and give --landmarks that run"
            )
        landmarks = self._facemesh() if judge is None else load_landmarks(judge)
        portrait, recipe = self.on_base()

        def make_stage(process: Process) -> RetargetingStage:
            self.keep(LANDMARKS, None if self.landmarks == FACEMESH else self._copy_landmarks, process)
            self.keep_base(portrait, process)
            return RetargetingStage(
                portrait, recipe, process, part=self.part, landmarks=landmarks, keep_network=self.keep_network
            )

        return run_stage(self, recipe, make_stage, init=self.init)

    def _judge(self) -> Path | None:
        """The run whose landmark network judges, a copy in a run that has begun; None: FaceMesh."""
        if not self._has_begun():
            return None if self.landmarks == FACEMESH else Path(self.landmarks)
        own = self.output / LANDMARKS
        if own.is_dir() == (self.landmarks == FACEMESH):
            began = "a landmark network of its own" if own.is_dir() else FACEMESH
            _log.warning("note: --landmarks %s is not read: this run began with %s", self.landmarks, began)
        return own if own.is_dir() else None

    def _facemesh(self) -> MeshLandmarks:
        try:
            return MeshLandmarks(weights_dir=self.weights_dir)
        except WeightsError as error:
            raise ValueError(
                f"FaceMesh measures openness here: {str(error).rstrip('.')}. Or give the folder of its file with "
                "--weights-dir, or a run of `training landmarks` with --landmarks"
            ) from error

    def _copy_landmarks(self, target: Path) -> None:
        """Make a run of `target` that holds the checkpoint of the landmark network."""
        checkpoint = checkpoint_folder(Path(self.landmarks).expanduser())
        shutil.copytree(checkpoint, target / "checkpoints" / checkpoint.name)
