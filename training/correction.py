"""Stage II: one small network of the model learns to correct key points while everything else is frozen.

What S, R_eyes and R_lip have in common: the frozen base model renders key points, gradients pass through it to the
corrected key points and reach the small network alone, and the whole base model is kept beside the run's checkpoints,
so that the run can be animated with and exported by itself.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from model.keypoints import Motion
from model.networks import LivePortrait
from model.networks.retargeting import make_retarget_eye, make_retarget_lip, make_stitching
from training.base_model import apply_compute_options, use_channels_last
from training.data import PreparedBatch, PreparedFrames
from training.distributed import Process
from training.picture_sizes import require_double_output
from training.recipe import Recipe
from training.stage import Draws, Stage, make_adam

_MAKE = {"stitching": make_stitching, "retarget_eye": make_retarget_eye, "retarget_lip": make_retarget_lip}


class FrozenBase:
    """The base model in evaluation mode: pictures to key points, key points to pictures."""

    def __init__(self, portrait: LivePortrait, recipe: Recipe, process: Process) -> None:
        require_double_output(portrait.config)
        self.portrait = portrait.to(process.device).eval().requires_grad_(False)
        if recipe.compute.channels_last:
            use_channels_last(self.portrait)
        apply_compute_options(self.portrait, recipe.compute)
        self._autocast = partial(recipe.compute.autocast, process.device)

    @torch.no_grad()
    def motion(self, frames: PreparedFrames) -> Motion:
        """Motion of pictures, float32."""
        with self._autocast():
            heads = self.portrait.motion(frames.image)
        return Motion.from_heads(heads)

    @torch.no_grad()
    def appearance(self, frames: PreparedFrames) -> Tensor:
        """Volumes of pictures."""
        with self._autocast():
            return self.portrait.appearance(frames.image)

    def render(self, volume: Tensor, x_s: Tensor, x_d: Tensor) -> Tensor:
        """Pictures float32 [B, 3, H, W] at key points x_d; gradients reach x_d if it has any."""
        with self._autocast():
            warped = self.portrait.warping(volume, kp_driving=x_d, kp_source=x_s)
            return self.portrait.generator(warped.feature).float()


class CorrectionStage(Stage):
    """A stage that trains the network `network` of the portrait. Derived classes give losses, figures and pictures."""

    network: str
    """Its name in `LivePortrait`."""
    num_conditions: int = 0
    """How many of its last inputs are openness."""
    takes_recompute = True

    def __init__(self, portrait: LivePortrait, recipe: Recipe, process: Process, *, keep_network: bool = False) -> None:
        """keep_network: go on from the portrait's own small network; otherwise a new one by the recipe's seed takes its
        place, and starts at no correction."""
        self.recipe, self.process = recipe, process
        if not keep_network:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                setattr(portrait, self.network, _MAKE[self.network](portrait.config))
            getattr(portrait, self.network).start_at_zero(self.num_conditions)
        self.base = FrozenBase(portrait, recipe, process)
        trained = getattr(portrait, self.network).requires_grad_(True)
        self.modules = {self.network: trained}
        self.optimizers = {"networks": make_adam(trained, recipe.optimizer.learning_rate, recipe.optimizer.betas)}
        self.keep_average(self.modules)
        self.replicas = (process.replicate(trained),)

    @property
    def training_networks(self) -> SimpleNamespace:
        """S, R_eyes and R_lip with the trained one as gradients need it."""
        return self._networks(self.replicas[0])

    @property
    def averaged_networks(self) -> SimpleNamespace:
        """S, R_eyes and R_lip with the averaged weights of the trained one."""
        return self._networks(self.averaged(self.network))

    def _networks(self, trained: torch.nn.Module) -> SimpleNamespace:
        portrait = self.base.portrait
        small = {name: getattr(portrait, name) for name in ("stitching", "retarget_eye", "retarget_lip")}
        return SimpleNamespace(**{**small, self.network: trained})

    def losses(self, batch: PreparedBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and its terms before weighting. Gradients reach the trained network alone."""
        raise NotImplementedError

    def add_gradients(self, batch: PreparedBatch, images: int, draws: Draws) -> dict[str, Tensor]:
        total, terms = self.losses(batch, draws)
        total.backward()
        return {"loss": total, **terms}


def masked_mean(difference: Tensor, mask: Tensor) -> Tensor:
    """Mean of |difference| [B, C, H, W] over the pixels of a soft mask [B, 1, H, W]: [B]; 0 where the mask is empty."""
    area = mask.sum(dim=(1, 2, 3)) * difference.shape[1]
    return (difference.abs() * mask).sum(dim=(1, 2, 3)) / area.clamp(min=1.0)


def mean_over_known(values: Tensor, known: Tensor) -> Tensor:
    """Sum of `values` [B] where `known` (bool [B]), over B: unknown samples add nothing, on any number of ranks."""
    return torch.where(known, values, torch.zeros_like(values)).mean()
