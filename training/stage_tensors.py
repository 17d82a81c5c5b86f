"""All tensors of a stage by one flat name each, taken out for a checkpoint and put back from one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.stage import Stage


def stage_tensors(stage: Stage) -> dict[str, Tensor]:
    """All tensors of a stage by one flat name: weights, averages, and the state of every optimiser."""
    tensors = {}
    for name, module in stage.modules.items():
        tensors.update({f"modules.{name}.{key}": value for key, value in module.state_dict().items()})
    if stage.ema is not None:
        for name, module in stage.ema.modules.items():
            tensors.update({f"ema.{name}.{key}": value for key, value in module.state_dict().items()})
    for name, optimizer in stage.optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizers.{name}.{index}.{key}": value for key, value in values.items()})
    return {name: value.detach() for name, value in tensors.items()}


def lacking_parts(stage: Stage, names: Collection[str]) -> dict[str, str]:
    """Parts that a stage has and a checkpoint with tensors of these names lacks as a whole: what to set to do without,
    by what they are. No state could be put back into them."""
    parts = {
        "discriminators": ("modules.discriminators.", "losses.adversarial and losses.feature_matching 0"),
        "a balancer": ("modules.balancer.", "losses.balancer off"),
        "averaged weights": ("ema.", "optimizer.ema_half_life_images 0"),
    }
    ours = stage_tensors(stage)
    return {
        part: setting
        for part, (prefix, setting) in parts.items()
        if any(name.startswith(prefix) for name in ours) and not any(name.startswith(prefix) for name in names)
    }


def load_stage_tensors(stage: Stage, tensors: dict[str, Tensor], where: Path) -> None:
    """Put back what `stage_tensors` gave. ValueError when the networks are others than those that were saved."""
    try:
        for name, module in stage.modules.items():
            module.load_state_dict(_below(tensors, f"modules.{name}."))
        if stage.ema is not None:
            for name, module in stage.ema.modules.items():
                module.load_state_dict(_below(tensors, f"ema.{name}."))
        for name, optimizer in stage.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"optimizers.{name}.").items():
                index, _, field = key.partition(".")
                state.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            _lay_out_like_parameters(optimizer)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{where} does not hold this stage's networks: {' '.join(str(error).split())}") from error


def _lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Give moments the memory format of their parameters, in place: files keep none, and fused kernels assume it."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
