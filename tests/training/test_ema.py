"""The moving average against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.ema import Ema


def test_half_life_counts_images() -> None:
    """A weight that jumps from 0 to 1 is at one half after one half-life, whatever the batch."""
    for batch_size in (1, 10):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(layer.weight)
        ema = Ema({"layer": layer}, half_life_images=100)
        nn.init.ones_(layer.weight)
        for step in range(100 // batch_size):
            ema.update(100_000 + (step + 1) * batch_size, batch_size)
        assert ema.modules["layer"].weight.item() == pytest.approx(0.5, abs=1e-5)


def test_the_first_weights_are_forgotten_early() -> None:
    ema = Ema({"layer": nn.Linear(1, 1)}, half_life_images=10_000)
    assert ema.decay(100, 10) == pytest.approx(0.25)  # half-life 5: a twentieth of what was seen
    assert ema.decay(10**9, 10) == pytest.approx(0.5**0.001)


def test_statistics_follow_and_counters_are_copied() -> None:
    norm = nn.BatchNorm1d(2)
    ema = Ema({"norm": norm}, half_life_images=10)
    norm.running_mean.fill_(4.0)
    norm.running_var.fill_(3.0)
    norm.num_batches_tracked.fill_(7)
    ema.update(10**6, 10)
    assert torch.allclose(ema.modules["norm"].running_mean, torch.full((2,), 2.0))
    assert torch.allclose(ema.modules["norm"].running_var, torch.full((2,), 2.0))  # from 1
    assert ema.modules["norm"].num_batches_tracked.item() == 7
    assert not ema.modules["norm"].training
    assert not any(parameter.requires_grad for parameter in ema.modules["norm"].parameters())
    assert norm.weight.requires_grad
