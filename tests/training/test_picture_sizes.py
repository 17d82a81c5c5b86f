"""Sizes of pictures that training cannot work with are refused at the start, not by a traceback in the first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from model.networks import LivePortrait
from training.base import BaseRecipe, BaseStage
from training.correction import FrozenBase
from training.distributed import Process
from training.recipe import load_recipe


@pytest.fixture
def recipe(quick_recipe: Path) -> BaseRecipe:
    """32 px in, 64 px out: the lips' region has 16 px."""
    return load_recipe(BaseRecipe, "base", str(quick_recipe))


def changed(recipe: BaseRecipe, **sections: dict[str, Any]) -> BaseRecipe:
    new = {name: dataclasses.replace(getattr(recipe, name), **values) for name, values in sections.items()}
    return dataclasses.replace(recipe, **new)


@pytest.mark.parametrize("num_blocks", [4, 9])
def test_discriminators_that_cannot_see_the_smallest_region(num_blocks: int, recipe: BaseRecipe) -> None:
    recipe = changed(recipe, discriminators={"num_blocks": num_blocks})
    with pytest.raises(
        ValueError,
        match=rf"discriminators.num_blocks is {num_blocks}, for which pictures must have {2 ** (num_blocks + 1)} px, "
        r"but the smallest region of pictures of 64 px has 16 px: use --discriminators.num-blocks 3 or less, or a "
        r"larger --model.image-size",
    ):
        BaseStage(recipe, Process())
    BaseStage(changed(recipe, losses={"adversarial": 0.0, "feature_matching": 0.0}), Process())  # has none


def test_pictures_that_vgg19_cannot_see(recipe: BaseRecipe) -> None:
    model = {"image_size": 16, "num_hourglass_blocks": 1, "backbone_depths": (1,), "backbone_channels": (4,)}
    losses = {"adversarial": 0.0, "feature_matching": 0.0, "perceptual": 1.0}
    with pytest.raises(ValueError, match=r"of 32 px has 8 px, but VGG19 needs 16: use a larger --model.image-size"):
        BaseStage(changed(recipe, model=model, losses=losses), Process(), allow_random_features=True)


def test_models_whose_pictures_are_not_twice_what_they_see(recipe: BaseRecipe) -> None:
    recipe = changed(recipe, model={"num_down_blocks": 1})
    message = r"sees 32 px and makes 128 px, but .* of 64 px: model.shuffle_factor is 2, expected 1 with .*blocks 1$"
    with pytest.raises(ValueError, match=message):
        BaseStage(recipe, Process())
    with pytest.raises(ValueError, match=message):
        FrozenBase(LivePortrait.untrained(config=recipe.model), recipe, Process())
