"""How far eyes and lips are open, as the retargeting networks are asked and told it, with gradients.

The published measure, which released weights know: the gap in the middle. Labels of data sets hold the mean of the gaps
along lids and lips (`model.faces.openness`), which for lips is smaller and trembles less.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EPS = 1e-6


def _ratio(upper: Tensor, lower: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.linalg.vector_norm(upper - lower, dim=-1) / (torch.linalg.vector_norm(first - second, dim=-1) + EPS)


def open_ratios_68(landmarks: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """Gap between the lids (lips) over the distance of the corners, from iBUG landmarks [N, 68, 2] in any one unit.

    Returns float32 eyes [N, 2] (the first is the one at points 36 to 41, left in the image) and lips [N, 1].

    iBUG has two points on each lid, at thirds of the eye: the lid's middle is between them. The corners of the lips are
    the outer ones (48, 54), as of the published 203 points; the lips themselves are the inner ones (62, 66).
    """
    points = torch.as_tensor(landmarks, dtype=torch.float32)
    eyes = []
    for first in (36, 42):
        corner, upper_1, upper_2, other_corner, lower_1, lower_2 = (points[:, first + i] for i in range(6))
        eyes.append(_ratio((upper_1 + upper_2) / 2, (lower_1 + lower_2) / 2, corner, other_corner))
    lip = _ratio(points[:, 62], points[:, 66], points[:, 48], points[:, 54])
    return torch.stack(eyes, dim=1), lip[:, None]
