"""Sizes of pictures that training can work with, looked at before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.config import ModelConfig
from training.losses import CASCADE, crop_size
from training.networks.vgg import MIN_SIZE_PX

if TYPE_CHECKING:
    from training.base import BaseRecipe


def require_double_output(config: ModelConfig) -> None:
    """ValueError unless the model makes pictures twice as large as what it sees: training compares these."""
    if config.output_size != 2 * config.image_size:
        raise ValueError(
            f"the model sees {config.image_size} px and makes {config.output_size} px, but training compares pictures "
            f"of {2 * config.image_size} px: model.shuffle_factor is {config.shuffle_factor}, expected "
            f"{2**config.num_down_blocks / 2:g} with model.num_down_blocks {config.num_down_blocks}"
        )


def require_picture_sizes(recipe: BaseRecipe) -> None:
    """ValueError where stage I's pictures, or crops out of them, are too small for a network that judges them."""
    require_double_output(recipe.model)
    smallest = min(crop_size(region, recipe.model.output_size) for region in CASCADE if region != "global")
    where = f"the smallest region of pictures of {recipe.model.output_size} px has {smallest} px"
    if recipe.losses.perceptual and smallest < MIN_SIZE_PX:
        raise ValueError(
            f"{where}, but VGG19 needs {MIN_SIZE_PX}: use a larger --model.image-size, or --losses.perceptual 0"
        )
    num_blocks = recipe.discriminators.num_blocks
    if recipe.losses.has_discriminators and smallest < 2 ** (num_blocks + 1):
        most = smallest.bit_length() - 2
        fewer = f"--discriminators.num-blocks {most} or less, or " if most > 0 else ""
        raise ValueError(
            f"discriminators.num_blocks is {num_blocks}, for which pictures must have {2 ** (num_blocks + 1)} px, but "
            f"{where}: use {fewer}a larger --model.image-size"
        )
