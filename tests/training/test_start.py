"""What training takes over from its data set: how tightly faces are cropped, which animation must do alike."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from model.checkpoint import read_config
from model.config import ModelConfig
from training.base import BaseRecipe, BaseStage
from training.base_command import Base
from training.checkpoints import CheckpointFolder, RunState
from training.correction_commands import Retargeting
from training.distributed import Process
from training.export import export
from training.recipe import flatten, load_recipe
from training.start import landmarker_of, note_other_crops, with_crops_of


@pytest.fixture
def data(tmp_path: Path) -> str:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "recipe.toml").write_text("recipe_version = 1\n[crop]\nscale = 1.7\nvy_ratio = -0.1\nfps = 25.0\n")
    return str(folder)


def test_exported_weights_tell_the_crops_that_they_learned_from(quick_recipe: Path, data: str, tmp_path: Path) -> None:
    recipe = load_recipe(BaseRecipe, "base", str(quick_recipe))
    of_data = with_crops_of(Base(data=data, recipe_name=str(quick_recipe), recipe=recipe), recipe)
    assert (of_data.model.crop_scale, of_data.model.crop_vy_ratio) == (1.7, -0.1)
    run = tmp_path / "run"
    CheckpointFolder(run, keep_last=1, writes=True).save_last(BaseStage(of_data, Process()), of_data, RunState())
    export((run,), tmp_path / "weights")
    config = read_config(tmp_path / "weights")
    assert config == of_data.model != recipe.model


def test_a_data_set_without_a_recipe_changes_nothing(tmp_path: Path) -> None:
    for data in (tmp_path, tmp_path / "none"):
        assert with_crops_of(Base(data=str(data)), BaseRecipe()).model == ModelConfig()


def test_other_crops_than_the_data_have_are_refused(data: str) -> None:
    asked = dataclasses.replace(BaseRecipe(), model=ModelConfig(crop_scale=2.0))
    with pytest.raises(ValueError, match=r"--model.crop-scale is 2.0, but the crops of --data .* have 1.7"):
        with_crops_of(Base(data=data, recipe=asked), asked)


def test_crops_of_the_data_are_no_other_recipe() -> None:
    """Like the data set itself, which may grow: a run of an earlier version knew nothing of them."""
    recipe = BaseRecipe()
    other = dataclasses.replace(recipe, model=ModelConfig(crop_scale=1.7))
    before = flatten(dataclasses.asdict(recipe))
    del before["model.crop_scale"]
    assert other.hash == recipe.hash
    assert other.differences(before) == []


def test_weights_that_learned_from_other_crops_are_named(data: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        note_other_crops(data, ModelConfig(crop_scale=1.7, crop_vy_ratio=-0.1), "--init runs/base")
        assert not caplog.messages
        note_other_crops(data, ModelConfig(), "--init runs/base")
    assert caplog.messages == [
        f"note: --data {data} has crop_scale 1.7, --init runs/base learned from 2.3",
        f"note: --data {data} has crop_vy_ratio -0.1, --init runs/base learned from -0.125",
    ]


@pytest.mark.parametrize(
    ("faces", "landmarker"),
    [
        ("", None),
        ('[faces]\nanalyser = "open"\nlandmarker = "none"\n', "open"),
        ('[faces]\nanalyser = "insightface"\nlandmarker = "none"\n', "insightface"),
        ('[faces]\nanalyser = "insightface"\nlandmarker = "open"\n', "open"),
        ('[faces]\nanalyser = "open"\nlandmarker = "mine:Landmarks"\n', "mine:Landmarks"),
    ],
)
def test_labels_of_another_analyser_than_the_one_that_judges_are_named(
    faces: str, landmarker: str | None, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open(Path(data) / "recipe.toml", "a") as file:
        file.write(faces)
    assert landmarker_of(data) == landmarker
    command = Retargeting(
        part="lip", data=data, init=tmp_path, output=tmp_path / "run", weights_dir=str(tmp_path / "none")
    )
    with pytest.raises(ValueError, match="FaceMesh measures openness"):
        command.main()
    advice = "train `training landmarks` on this data, and give --landmarks that run"
    who = f"note: the landmarks of --data {data} are by {landmarker}, results are judged by those of open"
    assert caplog.messages == ([] if landmarker in (None, "open") else [f"{who}, which differ: {advice}"])
