"""Gradients of one step of stage I on a fixed batch: `torchrun --nproc-per-node N step_gradients.py RECIPE OUTPUT`.

Every rank takes its rows of the batch; the first writes gradients, batch statistics and losses.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training.base import BaseRecipe, BaseStage
from training.data import PreparedBatch, PreparedFrames
from training.distributed import leave, start_process
from training.loop import seeded_generator
from training.recipe import load_recipe


def make_batch(num: int, size: int) -> PreparedBatch:
    """Smooth random pictures with labels."""
    generator = torch.Generator().manual_seed(7)

    def frames() -> PreparedFrames:
        coarse = torch.rand(num, 3, 8, 8, generator=generator)
        target = torch.nn.functional.interpolate(coarse, size=(2 * size, 2 * size), mode="bicubic").clamp(0, 1)
        return PreparedFrames(
            image=torch.nn.functional.avg_pool2d(target, 2),
            target=target,
            landmarks=torch.rand(num, 68, 2, generator=generator) - 0.5,
            pose=20 * torch.randn(num, 3, generator=generator),
        )

    return PreparedBatch(source=frames(), driving=frames(), is_still=torch.zeros(num, dtype=torch.bool))


def record_step(recipe_path: str, output: str, half: int | None = None) -> None:
    """One step on this rank's share of the batch of 4, or of a half of it."""
    recipe = load_recipe(BaseRecipe, "base", recipe_path)
    optimizer = dataclasses.replace(recipe.optimizer, max_gradient_norm=0.0)
    losses = dataclasses.replace(recipe.losses, landmark_flow=1.0, flow_openness=1.0)
    recipe = dataclasses.replace(recipe, optimizer=optimizer, losses=losses, told_share=0.5, edited_every=2)
    with start_process("cpu") as process:
        stage = BaseStage(recipe, process, allow_random_features=True)
        kept: dict[str, torch.Tensor] = {}
        for name, module in {**stage.model.networks(), "discriminators": stage.modules["discriminators"]}.items():
            for key, parameter in module.named_parameters():
                kept[f"{name}.{key}"] = parameter
        gradients: dict[str, torch.Tensor] = {}

        def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            gradients.update({n: p.grad.clone() for n, p in kept.items() if id(p) in mine and p.grad is not None})

        for optimizer in stage.optimizers.values():
            optimizer.register_step_pre_hook(keep)
        batch = make_batch(4, recipe.model.image_size)
        batch = batch if half is None else batch.parts(2)[half]
        mine = batch.parts(process.world_size)[process.rank]
        losses = stage.training_step(mine, 100, seeded_generator(process.device, 3))
        means = process.mean({name: value.item() for name, value in losses.items()})
        if process.is_main:
            statistics = {f"statistics.{k}": v for k, v in stage.model.state_dict().items() if "running" in k}
            told = {f"losses.{name}": torch.tensor(value) for name, value in means.items()}
            save_file({k: v.contiguous() for k, v in (gradients | statistics | told).items()}, output)


if __name__ == "__main__":
    torch.set_num_threads(1)
    record_step(*sys.argv[1:])
    leave(0)
