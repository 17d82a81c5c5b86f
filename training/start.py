"""Weights that training starts from: whole models and M alone, with the sizes that come with them."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import tomllib
from pathlib import Path
from typing import Any

from manifests.storage import read_bytes
from manifests.store import Dataset
from model.config import ModelConfig
from model.networks import LivePortrait
from training.checkpoints import read_run
from training.export import checkpoint_folder, is_run, known_held_out_share, load_portrait, network_states
from training.motion import MotionStage
from training.recipe import OF_THE_DATA, AnyRecipe, Recipe, load_recipe
from training.running import RunOptions

_log = logging.getLogger(__name__)


def load_start(path: Path, recipe: Recipe | None = None) -> LivePortrait:
    """Weights to start from: a whole model, or M of a run of `training motion` in a new model of the recipe's sizes.

    FileNotFoundError or ValueError with one line that says what to do.
    """
    path = path.expanduser()
    if not path.exists():
        raise ValueError(
            f"--init {path} does not exist: give the folder of a run, of an export, or of the released files "
            "(the KwaiVGI/LivePortrait model repository)"
        )
    if not is_run(path) or read_run(checkpoint_folder(path))["stage"] != MotionStage.name:
        return load_portrait(path)
    if recipe is None:
        raise ValueError(
            f"--init {path} holds M alone: train a base model on it first, "
            f"`python -m training base --init {shlex.quote(str(path))}`"
        )
    portrait = LivePortrait.untrained(recipe.seed, recipe.model)
    try:
        portrait.motion.load_state_dict(network_states(checkpoint_folder(path))["motion"])
    except RuntimeError as error:
        raise ValueError(
            f"--init {path}: its M has other sizes than this recipe's model; give both recipes the same num_keypoints, "
            f"num_pose_bins, backbone_depths and backbone_channels ({str(error).splitlines()[-1].strip()})"
        ) from error
    return portrait


def crops_of(data: str) -> dict[str, float]:
    """Scale and offset of a data set's crops, as `ModelConfig` names them; {} where its recipe is not there."""
    crop = _recipe_section(data, "crop")
    return {name: crop[key] for name in OF_THE_DATA if (key := name.removeprefix("crop_")) in crop}


def landmarker_of(data: str) -> str | None:
    """The analyser that gave a data set its landmarks: open, insightface or `module:Class`; None where not known."""
    faces = _recipe_section(data, "faces")
    landmarker = faces.get("landmarker", "none")
    return faces.get("analyser") if landmarker == "none" else landmarker


def _recipe_section(data: str, name: str) -> dict[str, Any]:
    """Of a data set's recipe; {} where that is not there."""
    try:
        return tomllib.loads(read_bytes(Dataset(data).recipe_file).decode()).get(name, {})
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--data {data}: its recipe.toml cannot be read ({error})") from error


def with_crops_of(options: RunOptions, recipe: AnyRecipe) -> AnyRecipe:
    """The recipe of a model that is to see faces as the data set's crops show them.

    ValueError where the command line asks for other crops.
    """
    crops = crops_of(options.data)
    preset = load_recipe(options.RECIPE, options.STAGE, options.recipe_name).model
    for name, value in crops.items():
        asked = getattr(options.recipe.model, name)
        if asked not in (value, getattr(preset, name)):
            raise ValueError(
                f"--model.{name.replace('_', '-')} is {asked}, but the crops of --data {options.data} have {value}: it "
                "comes with the data, leave the option out"
            )
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **crops))


def note_other_crops(data: str, config: ModelConfig, weights: str) -> None:
    """Say where a data set shows faces at another scale than the one that a model has learned from."""
    for name, value in crops_of(data).items():
        if (learned := getattr(config, name)) != value:
            _log.warning("note: --data %s has %s %s, %s learned from %s", data, name, value, weights, learned)


def note_other_landmarks(data: str, judge: str, advice: str) -> None:
    """Say where openness in the labels, and in what is made, is measured on the points of two analysers."""
    if (landmarker := landmarker_of(data)) not in (None, judge):
        _log.warning(
            "note: the landmarks of --data %s are by %s, results are judged by those of %s, which differ: %s",
            *(data, landmarker, judge, advice.format(landmarker=landmarker)),
        )


def note_seen_frames(init: Path, recipe: Recipe) -> None:
    """Say where weights were trained on frames of clips that a run is to hold back."""
    share, ours = known_held_out_share(init), recipe.data.held_out_share
    if share is not None and share < ours:
        _log.warning(
            "note: this run validates on the last %s of each clip's frames, --init %s has held back the last %s: give "
            "both the same --data.held-out-share where they are trained on the same clips",
            *(f"{ours:.0%}", init, f"{share:.0%}"),
        )


def with_sizes_of(options: RunOptions, config: ModelConfig, where: str) -> Recipe:
    """The recipe with the networks' sizes of given weights; a line tells where its own sizes were others.

    where: whose weights these are, for messages. ValueError where the command line asks for other sizes.
    """
    recipe: Recipe = options.recipe
    preset = load_recipe(options.RECIPE, options.STAGE, options.recipe_name).model
    names = [f.name for f in dataclasses.fields(config) if f.name not in OF_THE_DATA]
    others = [name for name in names if getattr(recipe.model, name) != getattr(config, name)]
    for name in others:
        if (asked := getattr(recipe.model, name)) != getattr(preset, name):
            raise ValueError(
                f"--model.{name.replace('_', '-')} is {asked}, but {where} has {getattr(config, name)}: the sizes of "
                "the networks come with the weights, leave the option out"
            )
    if told := [name for name in others if getattr(preset, name) != getattr(ModelConfig(), name)]:
        _log.warning("note: %s sets the networks' sizes, not the recipe (%s)", where, ", ".join(told))
    return dataclasses.replace(recipe, model=config)
