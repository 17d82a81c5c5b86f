"""Gradient-norm balancer: each loss gets a set share of the gradient at the output picture (EnCodec, arXiv 2210.13438,
section 3.4), so that a weight means the same for every loss. An answer to weights that nobody published.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce, get_world_size, is_available, is_initialized

EPS = 1e-12


class GradientBalancer(nn.Module):
    """Rescales the gradients of several losses with respect to one picture to fixed shares of their sum.

    With g_i the gradient of loss i per sample and n_i the moving average of its norm:
    g = sum_i w_i / (sum of w over the losses of the step) * g_i / n_i.

    Norms are per sample of the sum over the batch, mean over the batch and all ranks, so that shares depend neither
    on the batch size nor on the number of ranks. The averages are buffers, saved with the module; they start without
    bias at the first step of each loss. A loss that is left out of a step, or has no gradient yet, keeps its average.
    """

    def __init__(self, weights: Mapping[str, float], *, decay: float = 0.999) -> None:
        super().__init__()
        if not weights or min(weights.values()) <= 0:
            raise ValueError(f"balancer weights must be positive numbers by loss; got {dict(weights)}")
        self.weights = dict(weights)
        self.decay = decay
        self.register_buffer("norm_sum", torch.zeros(len(weights)))
        self.register_buffer("weight_sum", torch.zeros(len(weights)))

    def gradient(self, losses: Mapping[str, Tensor], output: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Balanced gradient at `output` and the norm of each loss's own gradient before balancing.

        losses: unweighted scalars (mean over the local batch) that depend on output [B, ...]; all ranks give the same
        names. Use it as `torch.autograd.backward([output, *others], [gradient, *ones])`: the graph behind `output` is
        untouched, the graphs between it and the losses are kept.
        """
        unknown = sorted(set(losses) - set(self.weights))
        if unknown or not losses:
            raise ValueError(f"the balancer has weights for {[*self.weights]}; got losses {[*losses]}")
        names = [name for name in self.weights if name in losses]
        gradients = [torch.autograd.grad(losses[name], output, retain_graph=True)[0].float() for name in names]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1).mean() * len(output) for g in gradients])
        norms = _mean_over_ranks(norms)
        averages = self._update(names, norms)
        shares = norms.new_tensor([self.weights[name] for name in names])
        factors = shares / shares.sum() / averages.clamp(min=EPS)
        balanced = sum(factor * gradient for factor, gradient in zip(factors, gradients, strict=True))
        return balanced.to(output.dtype), dict(zip(names, norms, strict=True))

    @torch.no_grad()
    def _update(self, names: list[str], norms: Tensor) -> Tensor:
        """Moving averages of the norms after this step."""
        index = torch.tensor([[*self.weights].index(name) for name in names], device=self.norm_sum.device)
        device, norms = norms.device, norms.to(self.norm_sum)
        usable = norms.isfinite() & (norms > 0)
        decay = torch.where(usable, self.decay, 1.0)
        added = torch.where(usable, (1 - self.decay) * norms, 0.0)
        self.norm_sum[index] = self.norm_sum[index] * decay + added
        self.weight_sum[index] = self.weight_sum[index] * decay + torch.where(usable, 1 - self.decay, 0.0)
        averages = self.norm_sum[index] / self.weight_sum[index].clamp(min=EPS)
        return averages.to(device)


def _mean_over_ranks(values: Tensor) -> Tensor:
    if not (is_available() and is_initialized()):
        return values
    values = values.clone()
    all_reduce(values, op=ReduceOp.SUM)
    return values / get_world_size()
