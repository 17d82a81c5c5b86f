"""What a stage of training is to the loop, and what stages have in common: their batches, Adam, and its step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.data import BatchLoader, PreparedBatch, make_loader
from training.distributed import Process
from training.ema import Ema
from training.recipe import Recipe


class Stage:
    """What a stage of training is to the loop. Derived classes set the attributes and write the three methods."""

    name: str
    """As checkpoints and messages name it."""
    modules: dict[str, nn.Module]
    """What is trained, unwrapped; all of it goes into checkpoints."""
    optimizers: dict[str, Optimizer]
    """All of them, by name."""
    ema: Ema | None = None
    """Averaged weights of the networks that will be exported."""
    cross_identity: bool = False
    """Whether the driving frame is of another person than the source."""
    validates_on_videos: bool = False
    """Whether validation leaves stills out where there are videos: source and driving frame of a still are one."""
    best_metric: str | None = None
    """Figure of `validate` whose smallest mean marks the best checkpoint."""

    def training_step(self, batch: PreparedBatch, images: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Forward, backward and `take_step` of every optimiser. Returns scalars to tell: losses, gradient norms.

        images: pairs seen by all ranks in the steps before. generator: on the device, seeded for this step alike on all
        ranks; the only source of random numbers. What is drawn for the pairs of all ranks, of which this one takes its
        rows (`Process.draw`), does not depend on the number of ranks.
        """
        raise NotImplementedError

    def validate(self, batch: PreparedBatch) -> dict[str, Tensor]:
        """Figures of each pair [B], by the averaged weights; NaN where a pair has none. Called without gradients."""
        raise NotImplementedError

    def pictures(self, batch: PreparedBatch) -> dict[str, Tensor]:
        """Columns of the sample grid by title, each [B, 3, H, W] in [0, 1]. Called without gradients."""
        raise NotImplementedError


def open_loader(
    stage: Stage,
    recipe: Recipe,
    dataset: str,
    process: Process,
    batch_size: int,
    *,
    split: str = "train",
    position: int = 0,
) -> BatchLoader:
    """Batches of this rank, of the pairs and at the size that the stage learns from.

    batch_size: pairs of this rank. position: pairs of all ranks that are passed over. ValueError where the data set
    does not serve.
    """
    return make_loader(
        dataset,
        config=recipe.data,
        batch_size=batch_size,
        rank=process.rank,
        world_size=process.world_size,
        seed=recipe.seed,
        position=position,
        split=split,
        cross_identity=stage.cross_identity,
        side_px=2 * recipe.model.image_size,
    )


def make_adam(module: nn.Module, learning_rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam of all parameters of a module; the schedule multiplies `learning_rate`."""
    group = {"params": [*module.parameters()], "lr": learning_rate, "initial_lr": learning_rate}
    return torch.optim.Adam([group], betas=betas, fused=True)


def take_step(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Clip the gradients of the optimiser's parameters together, step, and drop them. Returns the norm before.

    max_norm 0 never clips. The norm is that of the gradients averaged over ranks, so it is equal on all of them.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
