"""Exponential moving average of weights, its half-life counted in images, as EDM's code does (arXiv 2206.00364)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

RAMP_UP = 0.05
"""Early in a run the half-life is at most this share of the images seen, so that the first weights are forgotten."""
AVERAGED_BUFFERS = ("running_mean", "running_var")
"""Statistics that belong to the weights of their time are averaged with them; other buffers are copied."""


class Ema:
    """Averages of networks: `modules` are frozen copies in evaluation mode that `update` moves along."""

    def __init__(self, modules: Mapping[str, nn.Module], *, half_life_images: int) -> None:
        if half_life_images <= 0:
            raise ValueError(f"half_life_images is {half_life_images}, expected more than 0")
        self.half_life_images = half_life_images
        self._trained = dict(modules)
        self.modules = {name: copy.deepcopy(module).eval().requires_grad_(False) for name, module in modules.items()}

    def decay(self, images: int, batch_size: int) -> float:
        """Share of the average that is kept in a step that ends after `images`."""
        half_life = min(self.half_life_images, RAMP_UP * images)
        return 0.5 ** (batch_size / max(half_life, 1e-6))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Take in the weights as they are after a step; `images` were seen in all."""
        new_share = 1 - self.decay(images, batch_size)
        for name, average in self.modules.items():
            trained = self._trained[name].state_dict()
            parameters = {key for key, _ in average.named_parameters()}
            followed, values = [], []
            for key, value in average.state_dict().items():
                if key in parameters or key.rpartition(".")[2] in AVERAGED_BUFFERS:
                    followed.append(value)
                    values.append(trained[key].to(value.dtype))
                else:
                    value.copy_(trained[key])
            torch._foreach_lerp_(followed, values, new_share)
