"""Weights out of runs of both stages, which are made without training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.networks import LivePortrait
from training.base import BaseRecipe, BaseStage
from training.checkpoints import CheckpointFolder, RunState
from training.distributed import Process
from training.export import BASE_WEIGHTS, export, load_portrait
from training.recipe import Recipe, load_recipe
from training.stage import Stage
from training.stitching import StitchingRecipe, StitchingStage


def save(stage: Stage, recipe: Recipe, output: Path) -> Path:
    """A run with one checkpoint, whose last weights are others than the averaged ones."""
    with torch.no_grad():
        for module in stage.modules.values():
            for parameter in module.parameters():
                parameter.add_(0.1)
    assert CheckpointFolder(output, keep_last=1, writes=True).save_last(stage, recipe, RunState(images=4))
    return output


def stitching_on(init: Path, output: Path) -> Path:
    """A run of stage II on weights, as `--init` takes them."""
    portrait = load_portrait(init)
    portrait.save(output / BASE_WEIGHTS)
    recipe = StitchingRecipe(model=portrait.config)
    return save(StitchingStage(portrait, recipe, Process()), recipe, output)


@pytest.fixture
def base(quick_recipe: Path, tmp_path: Path) -> Path:
    recipe = load_recipe(BaseRecipe, "base", str(quick_recipe))
    return save(BaseStage(recipe, Process()), recipe, tmp_path / "base")


def test_what_is_told_of_another_base_leads_to_an_export(base: Path, tmp_path: Path) -> None:
    """Stage II builds on the average of the best checkpoint, so the last weights of its base do not go with it."""
    stitching, output = stitching_on(base, tmp_path / "stitching"), tmp_path / "weights"
    export((base, stitching), output)
    with pytest.raises(
        ValueError, match=rf"{stitching} was trained on another base .* leave {base} out.* or train"
    ) as told:
        export((base, stitching), tmp_path / "mixed", average=False)
    assert str(told.value).endswith(f"with --init an export of {base} alone, with these --weights and --checkpoint")
    assert not (tmp_path / "mixed").exists()
    export((stitching,), output, average=False)
    made, averaged = LivePortrait.from_pretrained(output), load_portrait(stitching)
    assert torch.equal(made.generator.fc.weight, load_portrait(base).generator.fc.weight)
    torch.testing.assert_close(made.stitching.mlp[-1].bias, averaged.stitching.mlp[-1].bias + 0.1)
    export((base,), tmp_path / "last", average=False)
    other = stitching_on(tmp_path / "last", tmp_path / "other")
    export((base, other), output, average=False)
    assert torch.equal(
        LivePortrait.from_pretrained(output).generator.fc.weight, load_portrait(other).generator.fc.weight
    )
    with pytest.raises(
        ValueError, match=rf"leave {tmp_path / 'last'} out.* or train it again with --init {tmp_path / 'last'}$"
    ):
        export((tmp_path / "last", stitching), output)
