"""The tensors of a stage, put back from a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from training.base import BaseRecipe
from training.base_model import use_channels_last
from training.checkpoints import CheckpointFolder, RunState
from training.ema import Ema
from training.stage import Stage, make_adam
from training.stage_tensors import stage_tensors


@pytest.mark.parametrize("saved_so", [False, True], ids=["from contiguous", "from channels last"])
def test_moments_are_laid_out_like_their_weights(tmp_path: Path, saved_so: bool) -> None:
    """Files keep no memory format, and the fused kernel pairs moments with weights by their place in memory."""

    def make(channels_last: bool) -> tuple[Stage, nn.Module]:
        torch.manual_seed(0)
        stage = Stage()
        network = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        if channels_last:
            use_channels_last(network)
        stage.name, stage.modules = "base", {"net": network}
        stage.optimizers = {"networks": make_adam(network, 1e-2, (0.5, 0.9))}
        stage.ema = Ema({"net": network}, half_life_images=10)
        return stage, network

    def work(stage: Stage, step: int) -> None:
        pictures = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(step))
        stage.modules["net"](pictures).square().mean().backward()
        stage.optimizers["networks"].step()
        stage.optimizers["networks"].zero_grad()
        stage.ema.update(100, 10)

    (before, _), folder = make(saved_so), CheckpointFolder(tmp_path, keep_last=2, writes=True)
    for step in range(3):
        work(before, step)
    folder.save(before, BaseRecipe(), RunState(images=8))
    assert folder.finish()
    after, network = make(True)
    folder.restore(after, BaseRecipe())
    for parameter in network.parameters():
        for name in ("exp_avg", "exp_avg_sq"):
            assert after.optimizers["networks"].state[parameter][name].stride() == parameter.stride()
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert after.ema.modules["net"][0].weight.is_contiguous(memory_format=torch.channels_last)
    for stage in (before, after):
        work(stage, 3)
    wanted, got = stage_tensors(before), stage_tensors(after)
    for name, value in wanted.items():
        if saved_so:
            assert torch.equal(got[name], value), name
        else:  # convolutions in another format add up in another order
            assert torch.allclose(got[name], value, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(
    ("name", "part", "told"),
    [
        (
            "base",
            "discriminators",
            "discriminators, .*: keep losses.adversarial and losses.feature_matching 0, or begin a",
        ),
        (
            "base",
            "balancer",
            "a balancer, .*: keep losses.balancer off, or begin a new run with --init '{0}' and another",
        ),
        ("motion", "ema", "averaged weights, .*: keep optimizer.ema_half_life_images 0, or begin a new run in another"),
    ],
    ids=["discriminators", "balancer", "ema"],
)
def test_a_part_that_the_run_has_not_had_is_refused(tmp_path: Path, name: str, part: str, told: str) -> None:
    """Whatever is allowed: there is no state of it to go on from. A dry run asks `to_resume` alike."""

    def make(*parts: str) -> Stage:
        stage = Stage()
        stage.name, stage.optimizers = name, {}
        stage.modules = {part: nn.Linear(2, 2) for part in ("net", *parts) if part != "ema"}
        stage.ema = Ema({"net": stage.modules["net"]}, half_life_images=10) if "ema" in parts else None
        return stage

    run, recipe = tmp_path / "my run", BaseRecipe()
    folder = CheckpointFolder(run, keep_last=2, writes=True)
    folder.save(make(), recipe, RunState(images=8))
    assert folder.finish()
    with pytest.raises(ValueError, match=f"images-0000000008 cannot be continued with {told.format(run)}"):
        folder.to_resume(make(part), recipe, allow_other_recipe=True)
    with pytest.raises(ValueError, match=r"use the same recipe, or another --output$"):
        folder.to_resume(make(part), dataclasses.replace(recipe, seed=7))
    folder.save(make(part), recipe, RunState(images=16))
    assert folder.finish()
    for stage in (make(part), make()):
        assert folder.restore(stage, recipe).images == 16
