"""The balancer against hand-computed gradients, over steps, batch sizes and ranks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from training.losses import GradientBalancer


def make_output(num: int = 1) -> torch.Tensor:
    return torch.zeros(num, 1, 1, 2, requires_grad=True)


def linear_losses(output, slopes: dict[str, tuple[float, float]]) -> dict[str, torch.Tensor]:
    """Losses whose gradient per sample of the summed batch is the given vector."""
    return {name: (output.flatten(1) @ torch.tensor(slope)).mean() for name, slope in slopes.items()}


def test_each_loss_gets_its_share_whatever_its_scale():
    balancer = GradientBalancer({"small": 1.0, "large": 3.0})
    output = make_output()
    gradient, norms = balancer.gradient(linear_losses(output, {"small": (0.003, 0.004), "large": (-500.0, 0)}), output)
    # Directions (0.6, 0.8) and (-1, 0) with norms 1/4 and 3/4.
    expected = torch.tensor([0.25 * 0.6 - 0.75, 0.25 * 0.8])
    torch.testing.assert_close(gradient.flatten(), expected)
    assert norms["small"].item() == pytest.approx(0.005, rel=1e-5)
    assert norms["large"].item() == pytest.approx(500)


def test_averages_forget_slowly_and_start_without_bias():
    balancer = GradientBalancer({"loss": 1.0}, decay=0.9)
    output = make_output()
    gradients = []
    for norm in (1.0, 4.0, 2.0):
        gradients.append(balancer.gradient(linear_losses(output, {"loss": (norm, 0)}), output)[0].flatten()[0].item())
    total, weight, expected = 0.0, 0.0, []
    for norm in (1.0, 4.0, 2.0):
        total, weight = 0.9 * total + 0.1 * norm, 0.9 * weight + 0.1
        expected.append(norm / (total / weight))
    assert gradients == pytest.approx(expected, rel=1e-5)


def test_a_loss_left_out_or_without_gradient_keeps_its_average():
    balancer = GradientBalancer({"picture": 1.0, "gan": 1.0}, decay=0.5)
    output = make_output()
    alone, _ = balancer.gradient(linear_losses(output, {"picture": (7.0, 0)}), output)
    assert alone.flatten()[0].item() == pytest.approx(1)  # the whole gradient while D warms up
    found = []
    for slope in (0.0, 0.01, 0.0, 0.04):
        gradient, _ = balancer.gradient(linear_losses(output, {"picture": (7.0, 0), "gan": (0, slope)}), output)
        found.append(gradient.flatten().tolist())
    # The last average is (0.25 * 0.01 + 0.5 * 0.04) / 0.75 = 0.03: steps without a gradient are no time that passes.
    expected = [[0.5, 0.0], [0.5, 0.5], [0.5, 0.0], [0.5, 0.5 * 0.04 / 0.03]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_norms_are_those_of_samples():
    balancer = GradientBalancer({"loss": 1.0})
    output = make_output(2)
    loss = (output[0, 0, 0, 0] * 3 + output[1, 0, 0, 1] * 5) / 2
    gradient, norms = balancer.gradient({"loss": loss}, output)
    assert norms["loss"].item() == pytest.approx(4)
    torch.testing.assert_close(gradient.flatten(1), torch.tensor([[3.0, 0], [0, 5.0]]) / 2 / 4)


def test_balanced_gradient_trains_what_lies_behind_the_output():
    weight = torch.tensor([2.0, 1.0], requires_grad=True)
    output = weight.view(1, 1, 1, 2) * 1.0
    balancer = GradientBalancer({"a": 1.0})
    gradient, _ = balancer.gradient({"a": (output * torch.tensor([30.0, 40.0])).sum()}, output)
    others = weight.square().sum()
    torch.autograd.backward([output, others], [gradient, None])
    torch.testing.assert_close(weight.grad, torch.tensor([0.6 + 4, 0.8 + 2]))


def test_averages_are_saved_with_the_module():
    balancer, resumed = (GradientBalancer({"a": 1.0, "b": 2.0}) for _ in range(2))
    output = make_output()
    for scale in (1.0, 3.0):
        balancer.gradient(linear_losses(output, {"a": (scale, 0), "b": (0, 2 * scale)}), output)
    resumed.load_state_dict(balancer.state_dict())
    losses = linear_losses(output, {"a": (2.0, 0), "b": (0, 9.0)})
    assert torch.equal(balancer.gradient(losses, output)[0], resumed.gradient(losses, output)[0])


@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_what_is_not_finite_is_seen_and_does_not_stay(slope):
    balancer = GradientBalancer({"a": 1.0})
    output = make_output()
    balancer.gradient(linear_losses(output, {"a": (1.0, 0)}), output)
    assert not balancer.gradient(linear_losses(output, {"a": (slope, 0)}), output)[0].isfinite().all()
    assert balancer.gradient(linear_losses(output, {"a": (1.0, 0)}), output)[0].flatten()[0].item() == pytest.approx(1)


def test_low_precision_output_gets_a_gradient_of_its_dtype():
    output = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16, requires_grad=True)
    gradient, norms = GradientBalancer({"a": 1.0}).gradient({"a": (output.float() * 1e-3).sum()}, output)
    assert gradient.dtype == torch.bfloat16
    assert norms["a"].dtype == torch.float32
    assert gradient.float().norm().item() == pytest.approx(1, rel=0.01)


def test_wrong_names_and_weights_are_said():
    output = make_output()
    with pytest.raises(ValueError, match=r"weights for \['a'\]; got losses \['b'\]"):
        GradientBalancer({"a": 1.0}).gradient({"b": output.sum()}, output)
    for weights in ({}, {"a": -1.0}, {"a": 1.0, "b": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            GradientBalancer(weights)


def _rank(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    slopes = torch.tensor([[3.0, 0.0], [0.0, 5.0]])[rank]
    output = make_output()
    gradient, _ = GradientBalancer({"a": 1.0}).gradient({"a": (output.flatten(1) * slopes).sum()}, output)
    torch.save(gradient, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_balance_as_one_with_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    output = make_output(2)
    loss = (output[0, 0, 0, 0] * 3 + output[1, 0, 0, 1] * 5) / 2
    joined, _ = GradientBalancer({"a": 1.0}).gradient({"a": loss}, output)
    torch.testing.assert_close(torch.cat(parts) / 2, joined)  # ranks average their gradients
