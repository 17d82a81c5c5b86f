"""python -m training landmarks: a small differentiable landmark network learns from the labels of the shards.

Stage II needs it to see how far eyes and lips are open in a result. It learns on turned, moved, scaled and blurred
pictures, so that it reads what a half-trained generator draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from manifests.recipes import require_between, require_no_negative
from model.keypoints import open_ratios_68
from training.base_model import use_channels_last
from training.data import PreparedBatch
from training.distributed import Process
from training.networks.landmarks import LandmarkConfig, LandmarkNetwork
from training.recipe import Recipe
from training.stage import Draws, Stage, make_adam


@dataclass(frozen=True, kw_only=True, slots=True)
class LandmarkOptions:
    """Variation of the pictures, and weights of the two terms. Ranges are uniform."""

    rotation_deg: float = 20.0
    """Turn, ± this."""
    scale: float = 0.25
    """Part of the picture that is seen, in width and height: 1 ± this."""
    shift: float = 0.15
    """Shift along each axis, ± this, in [-1, 1] of the picture."""
    blur: float = 0.5
    """Share of the pictures that are made smaller (to a quarter at least) and larger again."""
    position: float = 10.0
    """Weight of the mean absolute error of the coordinates."""
    openness: float = 1.0
    """Weight of the mean absolute error of the openness of eyes and lips that the points give."""

    def __post_init__(self) -> None:
        require_no_negative(self)
        require_between(0, 180, self, "rotation_deg")
        require_between(0, 1, self, "blur")
        if self.scale >= 1:
            raise ValueError(f"scale is {self.scale}, expected less than 1")


@dataclass(frozen=True, kw_only=True)
class LandmarksRecipe(Recipe):
    """Every option of the training of the landmark network."""

    landmarks: LandmarkConfig = field(default_factory=LandmarkConfig)
    options: LandmarkOptions = field(default_factory=LandmarkOptions)


class LandmarkStage(Stage):
    """Trains the landmark network on both frames of every pair."""

    name = "landmarks"
    best_metric = "position"

    def __init__(self, recipe: LandmarksRecipe, process: Process) -> None:
        torch.manual_seed(recipe.seed)
        network = LandmarkNetwork(recipe.landmarks).to(process.device)
        recipe.compute.refuse("compile", "recompute", stage=self.name)
        if recipe.compute.channels_last:
            use_channels_last(network)
        self.recipe, self.options, self.process = recipe, recipe.options, process
        self.modules = {"landmarks": network}
        self.optimizers = {"networks": make_adam(network, recipe.optimizer.learning_rate, recipe.optimizer.betas)}
        self.keep_average(self.modules)
        self.replicas = (process.replicate(network),)

    def add_gradients(self, batch: PreparedBatch, images: int, draws: Draws) -> dict[str, Tensor]:
        pictures = torch.cat([batch.source.target, batch.driving.target])
        labels = torch.cat([batch.source.landmarks, batch.driving.landmarks])
        drawn = draws.uniform(len(batch), 2, 5).transpose(0, 1).flatten(0, 1)
        blur_size = torch.rand((), generator=draws.generator, device=draws.generator.device).item()
        pictures, labels = vary(pictures, labels, self.options, drawn, blur_size)
        found = self._find(self.replicas[0], pictures)
        terms = {name: values.nan_to_num().mean() for name, values in errors(found, labels).items()}
        total = self.options.position * terms["position"] + self.options.openness * (terms["eyes"] + terms["lip"])
        total.backward()
        return {"loss": total, **terms}

    def validate(self, batch: PreparedBatch, first: int = 0) -> dict[str, Tensor]:
        return errors(self._find(self.averaged("landmarks"), batch.driving.target), batch.driving.landmarks)

    def pictures(self, batch: PreparedBatch) -> dict[str, Tensor]:
        frames = batch.driving
        found = self._find(self.averaged("landmarks"), frames.target)
        return {"labels": dotted(frames.target, frames.landmarks), "found": dotted(frames.target, found)}

    def _find(self, network: nn.Module, images: Tensor) -> Tensor:
        with self.recipe.compute.autocast(self.process.device):
            return network(images)


def errors(found: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Mean absolute errors by sample [B] of landmarks [B, 68, 2]: position (in [-1, 1]), eyes and lip (openness)."""
    eyes, lip = open_ratios_68(found)
    true_eyes, true_lip = open_ratios_68(labels)
    return {
        "position": (found - labels).abs().mean(dim=(1, 2)),
        "eyes": (eyes - true_eyes).abs().mean(dim=1),
        "lip": (lip - true_lip).abs().mean(dim=1),
    }


def vary(
    images: Tensor, landmarks: Tensor, options: LandmarkOptions, drawn: Tensor, blur_size: float
) -> tuple[Tensor, Tensor]:
    """Turned, scaled, moved and blurred pictures [B, 3, H, W] and the landmarks [B, 68, 2] that follow them.

    drawn: [B, 5] in [0, 1). blur_size: in [0, 1), for a quarter to three quarters of the size before they grow again.
    """
    size = images.shape[-1]
    varied = 2 * drawn - 1
    angle, zoom = varied[:, 0] * math.radians(options.rotation_deg), 1 + varied[:, 1] * options.scale
    cos, sin, shift = zoom * angle.cos(), zoom * angle.sin(), varied[:, 2:4] * options.shift
    # Output position -> input position, as grid_sample wants it; points go the other way.
    matrix = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    grid = functional.affine_grid(
        torch.cat([matrix, shift[:, :, None]], dim=2), list(images.shape), align_corners=False
    )
    moved = functional.grid_sample(images, grid, align_corners=False)
    points = torch.linalg.solve(matrix, (landmarks - shift[:, None]).transpose(1, 2)).transpose(1, 2)
    small_size = max(8, round(size * (0.25 + 0.5 * blur_size)))
    small = functional.interpolate(moved, size=(small_size, small_size), mode="bilinear", antialias=True)
    blurred = functional.interpolate(small, size=(size, size), mode="bilinear")
    is_blurred = drawn[:, 4] < options.blur
    return torch.where(is_blurred[:, None, None, None], blurred, moved), points


def dotted(images: Tensor, landmarks: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] with a green dot at each landmark [B, 68, 2]."""
    images, (height, width) = images.clone(), images.shape[-2:]
    column, row = ((landmarks[..., axis] + 1) / 2 * side for axis, side in ((0, width), (1, height)))
    sample = torch.arange(len(images), device=images.device)[:, None].expand_as(column)
    known = column.isfinite() & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    where = (sample[known], slice(None), row[known].long(), column[known].long())
    images[where] = images.new_tensor([0.0, 1.0, 0.0])
    return images
