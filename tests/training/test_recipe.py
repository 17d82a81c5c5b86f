"""Recipes: presets, files, errors that name the key, and the hash that guards a resumed run."""

from __future__ import annotations

import dataclasses
import re
import tomllib

import pytest

from manifests.recipes import preset_names
from training.base import BaseRecipe
from training.distributed import Process
from training.loop import batch_per_rank
from training.motion import MotionRecipe
from training.recipe import PRESETS, OptimizerOptions, flatten, load_recipe, recipe_toml
from training.retargeting import RetargetingRecipe
from training.stitching import StitchingRecipe


def test_every_preset_loads_and_survives_being_written() -> None:
    assert {"paper", "finetune", "tiny", "small"} <= set(preset_names(PRESETS / "base"))
    for name in preset_names(PRESETS / "base"):
        recipe = load_recipe(BaseRecipe, "base", name)
        text = recipe_toml(recipe)
        assert tomllib.loads(text)["hash"] == recipe.hash


@pytest.mark.parametrize(
    ("cls", "stage", "name", "at_once"),
    [
        (BaseRecipe, "base", "paper", 13),
        (BaseRecipe, "base", "finetune", 16),
        (MotionRecipe, "motion", "default", 32),
        (StitchingRecipe, "stitching", "default", 16),
        (RetargetingRecipe, "retargeting", "default", 16),
    ],
)
def test_full_size_fits_one_device(cls: type, stage: str, name: str, at_once: int) -> None:
    recipe = load_recipe(cls, stage, name)
    assert recipe.compute.pairs_at_once(recipe.batch_size) == at_once


def test_a_written_recipe_reads_back_equal(tmp_path) -> None:
    recipe = load_recipe(BaseRecipe, "base", "tiny")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(recipe))
    assert load_recipe(BaseRecipe, "base", str(path)) == recipe


def test_paper_has_the_published_numbers() -> None:
    recipe = load_recipe(BaseRecipe, "base", "paper")
    assert recipe.model == dataclasses.replace(recipe.model.__class__())
    assert (recipe.batch_size, recipe.optimizer.learning_rate, recipe.optimizer.betas) == (104, 2e-4, (0.5, 0.999))
    weights = recipe.losses
    assert (weights.perceptual, weights.adversarial, weights.feature_matching) == (10, 1, 10)
    assert (weights.equivariance, weights.keypoint_prior) == (20, 10)
    assert weights.pixel == 0


def test_paper_suits_its_length() -> None:
    """80 M images: the rate falls to a tenth, grids stay below 2 GB, and a crash costs 250,000 images at most."""
    recipe = load_recipe(BaseRecipe, "base", "paper")
    assert [recipe.optimizer.factor(images, recipe.num_images) for images in (0, 80_000_000)] == pytest.approx([1, 0.1])
    grid_bytes = 10.6e6
    assert recipe.num_images / recipe.reports.pictures_every_images * grid_bytes < 2e9
    assert recipe.checkpoints.every_images <= 250_000
    assert recipe.compute.recompute == ()


GRADIENTS = {"equivariance": 0.07, "keypoint_prior": 0.8, "head_pose": 47.0, "deformation_prior": 0.3, "guidance": 10.2}
"""Norms of the terms' gradients at M's backbone, unweighted: of the recipe `small` of `training motion`, trained."""


@pytest.mark.parametrize(
    ("cls", "stage", "name"),
    [(BaseRecipe, "base", "paper"), (BaseRecipe, "base", "finetune"), (MotionRecipe, "motion", "default")],
)
def test_no_label_drowns_the_others_in_m(cls: type, stage: str, name: str) -> None:
    """Degrees are large numbers: at face-vid2vid's weight the angles had 85 % of the sum of all norms."""
    weights = load_recipe(cls, stage, name).losses
    pulls = {term: norm * getattr(weights, term) for term, norm in GRADIENTS.items()}
    assert pulls["head_pose"] < pulls["guidance"]
    assert pulls["deformation_prior"] < pulls["guidance"]
    assert max(pulls.values()) < 0.7 * sum(pulls.values())


def test_the_lines_for_torchrun_share_their_batch() -> None:
    """Every line of the README that says on how many GPUs stage I is trained, with its recipe and batch."""
    text = (PRESETS.parents[1] / "README.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.match(r"torchrun .*-m training base ", line)]
    figures = []
    for line in lines:
        found = dict(re.findall(r"--(nnodes|nproc-per-node|recipe|batch-size) (\S+)", line))
        recipe = load_recipe(BaseRecipe, "base", found.get("recipe", "paper"))
        ranks = int(found.get("nnodes", 1)) * int(found["nproc-per-node"])
        batch = int(found.get("batch-size", recipe.batch_size))
        figures.append((ranks, batch_per_rank(batch, Process(world_size=ranks))))
    assert figures == [(8, 13), (8, 4), (16, 7)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[losses]\npixels = 1.0", r"\[losses\]: unknown key 'pixels'; valid keys are .*pixel"),
        ("batch_size = 'many'", "batch_size is 'many', expected int"),
        ("batch_size = 0", "batch_size is 0, expected more than 0"),
        ("[optimizer]\nlearning_rate = inf", "optimizer.learning_rate is inf, expected a finite number"),
        ("[optimizer]\nbetas = [0.5, nan]", r"betas are \(0.5, nan\), expected at least 0 and less than 1"),
        ("[compute]\nprecision = 'float8'", "precision is 'float8', expected one of float32, bfloat16"),
        ("[model]\nimage_size = 100", "image_size must be a positive multiple"),
        ("[losses", "not valid TOML"),
        ("[losses]\npixel = -1.0", "pixel is -1.0, expected 0 or more"),
        ("[losses]\ndiscriminator_warmup_images = -4", "discriminator_warmup_images is -4, expected 0 or more"),
        ("[optimizer]\nbetas = [0.5, 1.0]", r"betas are \(0.5, 1.0\), expected at least 0 and less than 1"),
        ("[optimizer]\nfinal_share = 5.0", "final_share is 5.0, expected 0 to 1"),
        ("[optimizer]\nema_half_life_images = -3", "ema_half_life_images is -3, expected 0 or more"),
        ("[reports]\npictures_every_images = -1", "pictures_every_images is -1, expected 0 or more"),
        ("[model]\nvolume_channels = 0", "volume_channels is 0, expected 1 or more"),
        ("[model]\nbackbone_channels = [8, 0, 8, 8]", r"backbone_channels is \(8, 0, 8, 8\), expected 1 or more"),
        ("recipe_version = 9", "recipe version 9, this program has version 1"),
    ],
)
def test_errors_name_the_key(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(BaseRecipe, "base", str(path))


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ValueError, match="no recipe 'papre': expected one of finetune, paper, small, tiny"):
        load_recipe(BaseRecipe, "base", "papre")


def test_hash_covers_what_is_learned_and_nothing_else() -> None:
    recipe = BaseRecipe()
    same = dataclasses.replace(recipe, num_images=5, reports=dataclasses.replace(recipe.reports, log_every_images=1))
    other = dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, pixel=1.0))
    assert same.hash == recipe.hash != other.hash
    assert other.differences(flatten(dataclasses.asdict(recipe))) == ["losses.pixel: 0.0 -> 1.0"]


def changed(recipe: BaseRecipe, name: str, value: object) -> BaseRecipe:
    """The recipe with another value of `section.field`."""
    section, _, field = name.rpartition(".")
    if not section:
        return dataclasses.replace(recipe, **{field: value})
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **{field: value})})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.num_workers", 1),
        ("data.prefetch_batches", 1),
        ("data.worker_start", "spawn"),
        ("data.on_damage", "fail"),
        ("data.index_folder", "/scratch"),
        ("losses.vgg19", "/new/vgg19.pth"),
        ("losses.recogniser", "/new/w600k_r50.onnx"),
        ("losses.weights_dir", "/new"),
        ("model.crop_scale", 1.7),
    ],
)
def test_what_messages_advise_and_where_files_lie_is_no_other_recipe(name: str, value: object) -> None:
    recipe = BaseRecipe()
    other = changed(recipe, name, value)
    assert other.differences(flatten(dataclasses.asdict(recipe))) == []
    assert other.hash == recipe.hash


def test_workers_of_a_stream_decide_about_its_pairs() -> None:
    recipe = changed(BaseRecipe(), "data.reader", "webdataset")
    other = changed(recipe, "data.num_workers", 1)
    assert other.differences(flatten(dataclasses.asdict(recipe))) == ["data.num_workers: 4 -> 1"]
    assert other.hash != recipe.hash


@pytest.mark.parametrize(
    ("name", "value", "alike"),
    [
        ("optimizer.learning_rate", 1e-5, True),
        ("augmentation.brightness", 0.5, True),
        ("batch_size", 9, True),
        ("edited_every", 3, True),
        ("compute.micro_batch_size", 2, True),
        ("losses.vgg19", "/new/vgg19.pth", True),
        ("losses.pixel", 1.0, False),
        ("data.held_out_share", 0.5, False),
        ("seed", 7, False),
        ("model.crop_scale", 1.7, False),
        ("reports.num_validation", 9, False),
    ],
)
def test_what_leaves_figures_of_validation_comparable(name: str, value: object, alike: bool) -> None:
    recipe = BaseRecipe()
    assert changed(recipe, name, value).validates_like(flatten(dataclasses.asdict(recipe))) == alike


def test_course_of_the_learning_rate() -> None:
    options = OptimizerOptions(warmup_images=99, decay="linear", final_share=0.1)
    assert options.factor(0, 1099) == pytest.approx(0.01)
    assert options.factor(98, 1099) == pytest.approx(0.99)
    assert options.factor(99, 1099) == 1.0
    assert options.factor(599, 1099) == pytest.approx(0.55)
    assert options.factor(1099, 1099) == pytest.approx(0.1)
    cosine = OptimizerOptions(decay="cosine")
    assert cosine.factor(250, 1000) == pytest.approx(0.8535534)
    assert OptimizerOptions().factor(10**9, 1000) == 1.0
