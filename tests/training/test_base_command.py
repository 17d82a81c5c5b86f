"""Stage I on the command line: what it takes over from the weights that it starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.networks import LivePortrait
from training.base import BaseRecipe, BaseStage
from training.base_command import Base, conventions_of
from training.checkpoints import CheckpointFolder, RunState
from training.distributed import Process
from training.landmarks import LandmarksRecipe, LandmarkStage
from training.motion import MotionRecipe, MotionStage
from training.networks.landmarks import LandmarkConfig
from training.recipe import load_recipe

OTHER_SLOTS = tuple(range(10))


@pytest.fixture
def recipe(quick_recipe: Path) -> BaseRecipe:
    return load_recipe(BaseRecipe, "base", str(quick_recipe))


def run_with_conventions(folder: Path, recipe: BaseRecipe, name: str) -> Path:
    """A run that has not learned anything, with other slots than the released ones and pitch the other way round."""
    of_motion = MotionRecipe(model=recipe.model)
    stage = MotionStage(of_motion, Process()) if name == "motion" else BaseStage(recipe, Process())
    stage.conventions.slots.copy_(torch.tensor(OTHER_SLOTS))
    stage.conventions.pose_signs[0] = -1
    CheckpointFolder(folder, keep_last=1, writes=True).save_last(
        stage, of_motion if name == "motion" else recipe, RunState()
    )
    return folder


@pytest.mark.parametrize("name", ["motion", "base"])
def test_a_start_from_a_run_keeps_its_conventions(name: str, recipe: BaseRecipe, tmp_path: Path, capsys) -> None:
    """Its key points, which mean nothing yet, are not asked, nor is any data."""
    run = run_with_conventions(tmp_path / "run", recipe, name)
    portrait = LivePortrait.untrained(config=recipe.model)
    command = Base(init=run, data=str(tmp_path / "none"), output=tmp_path / "base")
    conventions = command.make_stage(recipe, Process(), portrait).conventions
    assert conventions.slots_tuple == tuple(conventions.slots.tolist()) == OTHER_SLOTS
    assert conventions.pose_signs.tolist() == [-1, 1, 1]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        f"{run}: as in that run, pitch with the sign changed, and guidance landmarks follow the key points "
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    )
    dropped = f"{run}: the discriminators of that run are not taken over: they begin anew"
    assert said[1:] == ([dropped] if name == "base" else [])
    by_labels = dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, pose_signs="labels"))
    assert command.make_stage(by_labels, Process(), portrait).conventions.pose_signs.tolist() == [1, 1, 1]
    assert "as in that run, angles as labelled" in capsys.readouterr().err


def test_other_weights_have_none(recipe: BaseRecipe, tmp_path: Path) -> None:
    """An export, and a run of another stage."""
    LivePortrait.untrained(config=recipe.model).save(tmp_path / "weights")
    assert conventions_of(tmp_path / "weights") == {}
    of_landmarks = LandmarksRecipe(landmarks=LandmarkConfig(image_size=64, channels=(8,), heatmap_size=32))
    folder = CheckpointFolder(tmp_path / "run", keep_last=1, writes=True)
    folder.save_last(LandmarkStage(of_landmarks, Process()), of_landmarks, RunState())
    assert conventions_of(tmp_path / "run") == {}
