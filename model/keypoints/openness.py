"""How far eyes and lips are open: distance between the lids (lips) over the distance between the corners."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EPS = 1e-6
# (upper, lower, first corner, second corner) of the left eye, the right eye and the inner lips.
OPENINGS_203 = ((6, 18, 0, 12), (30, 42, 24, 36), (90, 102, 48, 66))


def _ratio(upper: Tensor, lower: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.linalg.vector_norm(upper - lower, dim=-1) / (torch.linalg.vector_norm(first - second, dim=-1) + EPS)


def open_ratios_203(landmarks: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """Openness from the published 203-point landmarks [N, 203, 2], px: eyes [N, 2] (left, right), lips [N, 1]."""
    points = torch.as_tensor(landmarks, dtype=torch.float32)
    left, right, lip = (_ratio(*(points[:, index] for index in opening)) for opening in OPENINGS_203)
    return torch.stack([left, right], dim=1), lip[:, None]


def open_ratios_68(landmarks: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """The same measure from iBUG landmarks [N, 68, 2], px: eyes [N, 2], lips [N, 1].

    iBUG has two points on each lid, at thirds of the eye: the lid's middle is between them. The corners of the lips are
    the outer ones (48, 54), as in the 203-point measure; the lips themselves are the inner ones (62, 66).
    """
    points = torch.as_tensor(landmarks, dtype=torch.float32)
    eyes = []
    for first in (36, 42):
        corner, upper_1, upper_2, other_corner, lower_1, lower_2 = (points[:, first + i] for i in range(6))
        eyes.append(_ratio((upper_1 + upper_2) / 2, (lower_1 + lower_2) / 2, corner, other_corner))
    lip = _ratio(points[:, 62], points[:, 66], points[:, 48], points[:, 54])
    return torch.stack(eyes, dim=1), lip[:, None]
