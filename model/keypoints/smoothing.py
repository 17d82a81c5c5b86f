"""Kalman smoothing of expressions and rotations over a video, against jitter in video-to-video animation."""

from __future__ import annotations

import torch
from torch import Tensor

PROCESS_VARIANCE = 1e-5
INITIAL_VARIANCE = 1.0


def kalman_smooth(values: Tensor, observation_variance: float) -> Tensor:
    """Rauch-Tung-Striebel smoothing of a random walk, every number on its own.

    values: [T, ...] -> the same shape and dtype, computed in float64. The walk starts at the first value with variance
    1; all numbers share their variances, so the gains are scalars.
    """
    if values.shape[0] == 0:
        return values
    observed = values.double()
    means, variances = (
        [observed[0]],
        [INITIAL_VARIANCE * observation_variance / (INITIAL_VARIANCE + observation_variance)],
    )
    for value in observed[1:]:
        predicted = variances[-1] + PROCESS_VARIANCE
        gain = predicted / (predicted + observation_variance)
        means.append(means[-1] + gain * (value - means[-1]))
        variances.append((1 - gain) * predicted)
    for index in range(len(means) - 2, -1, -1):
        gain = variances[index] / (variances[index] + PROCESS_VARIANCE)
        means[index] = means[index] + gain * (means[index + 1] - means[index])
    return torch.stack(means).to(values.dtype)
