"""Which numbers of the expression belong to which part of the face, in the released order of the 21 key points."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Region = Literal["all", "exp", "pose", "lip", "eyes"]
REGIONS: tuple[Region, ...] = ("all", "exp", "pose", "lip", "eyes")

NUM_KEYPOINTS = 21
EYE_KEYPOINTS = (11, 13, 15, 16, 18)
LIP_KEYPOINTS = (6, 12, 14, 17, 19, 20)
_WHOLE_KEYPOINTS = (1, 2, 6, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
_SINGLE_AXES = ((3, 1), (4, 1), (5, 2), (8, 2), (9, 1), (9, 2))

# The published neutral lip expression: what a driving still's expression is measured against.
NEUTRAL_EXPRESSION = (
    (-9.45240e-05, 2.42220e-04, -4.00974e-05),
    (2.08596e-04, 4.68054e-04, 1.27464e-05),
    (-1.24602e-04, 3.24972e-04, 4.42500e-06),
    (1.19652e-04, -4.56624e-04, 5.40852e-05),
    (-2.65254e-04, -7.45980e-05, -1.55280e-05),
    (-3.34884e-05, -1.83036e-04, -3.49404e-06),
    (-4.75428e-07, -4.52466e-07, 1.59498e-06),
    (-5.41296e-04, 2.63280e-03, 7.24860e-06),
    (-1.16940e-05, 5.00502e-06, 9.98880e-06),
    (8.02860e-07, 5.19132e-06, -4.09344e-04),
    (1.66878e-04, -1.98150e-05, -8.85480e-05),
    (-1.51536e-05, 8.25060e-05, 5.94012e-06),
    (-2.61054e-07, 2.75910e-06, 2.21028e-06),
    (-6.62820e-05, -6.82860e-05, -3.45318e-06),
    (-8.32620e-04, -1.79592e-03, -2.59176e-06),
    (6.97140e-06, 3.65514e-05, -1.89780e-06),
    (-4.80876e-06, 7.11480e-06, -1.03236e-05),
    (-6.36840e-04, -1.16610e-03, 5.62314e-05),
    (2.83290e-04, -1.45656e-05, 1.09746e-05),
    (-4.16022e-06, -1.50906e-02, -2.54940e-03),
    (2.22474e-04, 5.62788e-03, 2.72646e-03),
)


def require_released_keypoints(num_keypoints: int, what: str, remedy: str) -> None:
    """ValueError where `what` is told to move key points by their numbers and there are others than the released 21."""
    if num_keypoints != NUM_KEYPOINTS:
        raise ValueError(
            f"{what} needs networks with the released {NUM_KEYPOINTS} key points, these have {num_keypoints}: "
            f"{remedy}, or take weights of {NUM_KEYPOINTS} key points"
        )


def neutral_expression(like: Tensor) -> Tensor:
    """The neutral expression [1, 21, 3] with the device and dtype of a tensor."""
    return torch.tensor([NEUTRAL_EXPRESSION], dtype=like.dtype, device=like.device)


def region_mask(region: Region, like: Tensor) -> Tensor:
    """Which numbers of an expression [N, 21, 3] a region replaces, on the device of a tensor: bool [21, 3].

    `all` and `exp` leave out the numbers that carry head pose or hold still in the released model.
    """
    mask = torch.zeros(NUM_KEYPOINTS, 3, dtype=torch.bool, device=like.device)
    if region in ("all", "exp"):
        mask[list(_WHOLE_KEYPOINTS)] = True
        for keypoint, axis in _SINGLE_AXES:
            mask[keypoint, axis] = True
    elif region == "lip":
        mask[list(LIP_KEYPOINTS)] = True
    elif region == "eyes":
        mask[list(EYE_KEYPOINTS)] = True
    return mask
