"""What a stage of training is to the loop, and what stages have in common: their batches, Adam, and its step.

A step takes its pairs in equal parts: each rank has one or more of them, one after the other. How many there are does
not change what is drawn for a pair, nor the step but for what follows the parts as they come: statistics of batch norm,
the discriminators' spectral norms, and the balancer's averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from training.data import BatchLoader, PreparedBatch, RandomTransform, make_loader
from training.distributed import Process
from training.ema import Ema
from training.recipe import Recipe

NORMS = "gradient_norm/"
"""What the names of gradients' norms begin with, among what a step tells."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one part of a step: its rows of what would be drawn for all pairs at once."""

    generator: torch.Generator
    """On the device, in the same state for all parts; the only source of random numbers."""
    part: int = 0
    """Number of this part among those of all ranks."""
    num_parts: int = 1
    """How many there are."""

    def uniform(self, num: int, *shape: int) -> Tensor:
        """Numbers in [0, 1) for the `num` pairs of the part: float32 [num, *shape] on the generator's device."""
        drawn = torch.rand(num * self.num_parts, *shape, generator=self.generator, device=self.generator.device)
        return drawn[self.part * num : (self.part + 1) * num]

    def transforms(self, num: int) -> RandomTransform:
        """One for each of the `num` pairs of the part."""
        return RandomTransform.sample_rows(num, part=self.part, num_parts=self.num_parts, generator=self.generator)


class Stage:
    """What a stage of training is to the loop. Derived classes set the attributes and write three methods."""

    name: str
    """As checkpoints and messages name it."""
    recipe: Recipe
    process: Process
    modules: dict[str, nn.Module]
    """What is trained, unwrapped; all of it goes into checkpoints."""
    optimizers: dict[str, Optimizer]
    """All of them, by name."""
    pairs_multiple: int = 1
    """Of what number of pairs a part of a step must be a multiple."""
    takes_recompute: bool = False
    """Whether gradients pass through G, some of whose activations can be computed again."""
    replicas: tuple[nn.Module, ...] = ()
    """What is trained, as `Process.replicate` gives it: `add_gradients` calls each once."""
    ema: Ema | None = None
    """Averaged weights of the networks that will be exported."""
    cross_identity: bool = False
    """Whether the driving frame is of another person than the source."""
    learns_motion: bool = False
    """Whether it learns from what moves between source and driving frame: in stills nothing does."""
    validates_on_videos: bool = False
    """Whether validation leaves stills out where there are videos: source and driving frame of a still are one."""
    best_metric: str | None = None
    """Figure of `validate` whose smallest mean marks the best checkpoint."""
    best_from_images: int = 0
    """From how many images on that figure counts: before, it may be small for what has not been learned yet."""
    judges: Mapping[str, str] = MappingProxyType({})
    """Frozen networks that losses ask, by the field of the recipe that names their file: what they are, in words."""

    def keep_average(self, modules: Mapping[str, nn.Module]) -> None:
        """From now on, average the weights of these of its `modules`, unless the recipe wants no average.

        Before anything wraps them, so that the copies are plain; but after they are laid out, so that the copies are
        laid out alike.
        """
        if half_life_images := self.recipe.optimizer.ema_half_life_images:
            self.ema = Ema(modules, half_life_images=half_life_images)

    def averaged(self, name: str) -> nn.Module:
        """One of `modules` by its averaged weights, or itself where no average is kept."""
        return (self.modules if self.ema is None else self.ema.modules)[name]

    def training_step(self, batch: PreparedBatch, images: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of every optimiser, by the mean gradients of the batch. Returns scalars to tell: losses, norms.

        Where the norm of any gradient is NaN or infinite, weights, moments and buffers stay as they are. All ranks have
        the same norms, and nobody waits for them.
        images: pairs seen by all ranks in the steps before. generator: on the device, seeded for this step alike on all
        ranks.
        """
        before = BuffersBefore(self.modules.values())
        num = len(batch) // self.recipe.compute.pairs_at_once(len(batch), self.pairs_multiple)
        state = generator.get_state()
        first, total, told = self.process.rank * num, self.process.world_size * num, []
        for number, part in enumerate(batch.parts(num)):
            generator.set_state(state)
            with ExitStack() as stack:
                if number < num - 1:  # ranks exchange the gradients of all parts at once
                    for replica in self.replicas:
                        if isinstance(replica, DistributedDataParallel):
                            stack.enter_context(replica.no_sync())
                draws = Draws(generator=generator, part=first + number, num_parts=total)
                values = self.add_gradients(part, images, draws)
                told.append({name: value.detach() for name, value in values.items()})
        means = {name: torch.stack([values[name] for values in told]).mean() for name in told[0]}
        norms: dict[str, Tensor] = {}
        for name, optimizer in self.optimizers.items():
            norms |= clip_gradients(optimizer, self.recipe.optimizer.max_gradient_norm, num, name=name)
        is_lost = ~torch.stack([*norms.values()]).isfinite().all()
        for optimizer in self.optimizers.values():
            take_step(optimizer, is_lost)
        before.restore_if(is_lost)
        return means | {f"{NORMS}{name}": norm for name, norm in norms.items()}

    def add_gradients(self, batch: PreparedBatch, images: int, draws: Draws) -> dict[str, Tensor]:
        """Forward and backward of one part of a step: gradients of its mean losses are added to those that are there.

        Returns scalars to tell, of the same names for every part. Arguments as of `training_step`.
        """
        raise NotImplementedError

    def validate(self, batch: PreparedBatch, first: int = 0) -> dict[str, Tensor]:
        """Figures of each pair [B], by the averaged weights; NaN where a pair has none. Called without gradients.

        first: number of the batch's first pair among those of all ranks, from 0. Nothing else may depend on how pairs
        fall into batches: figures by other batches, or on other ranks, are to be the same.
        """
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


def make_adam(
    module: nn.Module, learning_rate: float, betas: tuple[float, float], *, apart: bool = False
) -> torch.optim.Adam:
    """Adam of all parameters of a module; the schedule multiplies `learning_rate`.

    apart: each of its children has a group of its own, whose gradients are clipped by themselves.
    """
    common = {"lr": learning_rate, "initial_lr": learning_rate}
    parts = module.named_children() if apart else [("", module)]
    groups = [{"params": [*part.parameters()], "name": name, **common} for name, part in parts]
    return torch.optim.Adam(groups, betas=betas, fused=True)


def clip_gradients(optimizer: Optimizer, max_norm: float, num_parts: int = 1, *, name: str = "") -> dict[str, Tensor]:
    """Scale the gradients of each of the optimiser's groups down to a norm. Returns the norms before, by group.

    max_norm 0 never scales. num_parts: how many gradients were added up, to take their mean. Norms are those of the
    gradients averaged over parts and ranks, so they are equal on all of them. name: of a group that has none.
    """
    norms = {}
    for group in optimizer.param_groups:
        gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        if num_parts > 1:
            torch._foreach_div_(gradients, num_parts)
        norm = nn.utils.clip_grad_norm_(group["params"], max_norm if max_norm > 0 else math.inf)
        norms[group.get("name") or name] = norm
    return norms


def take_step(optimizer: Optimizer, is_lost: Tensor) -> None:
    """Step, unless the step is lost, and drop the gradients. Without waiting for the device, by a fused optimiser.

    is_lost: bool scalar on the device.
    """
    optimizer.found_inf = is_lost.float()  # what `torch.amp.GradScaler` tells fused optimisers by
    optimizer.step()
    del optimizer.found_inf
    optimizer.zero_grad(set_to_none=True)


class BuffersBefore:
    """Buffers of networks as they are before a step, whose forward pass changes them: statistics of batch norm, vectors
    of spectral norms, averages of the balancer."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for module in modules:
            for buffer in module.buffers():
                kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._kinds = [(buffers, _joined(buffers)) for buffers in kinds.values()]

    @torch.no_grad()
    def restore_if(self, is_lost: Tensor) -> None:
        """Put them back where the step is lost, without waiting for the device. is_lost: bool scalar on the device."""
        for buffers, before in self._kinds:
            values = torch.where(is_lost, before, _joined(buffers)).split([buffer.numel() for buffer in buffers])
            parts = [value.view_as(buffer) for value, buffer in zip(values, buffers, strict=True)]
            torch._foreach_copy_(buffers, parts)


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
