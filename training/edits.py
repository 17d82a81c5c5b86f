"""Landmarks whose eyes and lips are opened or closed by hand: what W is to make of them is known without a picture.

A few clips hold few blinks and few wide mouths, and heads turn far more than lids move, so a small model hears little
of eyes and lips from pictures. Where the edited landmarks came from is known exactly, which is a lesson for W's flow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.losses import guidance_points

EYES = (0.2, 1.4)
"""Range of the factor on the distance between the lids."""
LIPS = (-0.2, 0.5)
"""Range of the lower lip's shift away from the upper one, in widths of the mouth; at most until the lips meet."""

_LIDS = ((37, 41), (38, 40), (43, 47), (44, 46))  # upper, lower
_LOWER_LIP = {55: 0.5, 56: 0.85, 57: 1.0, 58: 0.85, 59: 0.5, 65: 0.85, 66: 1.0, 67: 0.85}  # point, share of the shift


def edit_landmarks(landmarks: Tensor, drawn: Tensor) -> Tensor:
    """Landmarks [B, 68, 2] with upper lids and lower lip moved.

    drawn: [B, 2] in [0, 1], from least to most open: eyes, lips. NaN stays NaN.
    """
    edited = landmarks.clone()
    factor = EYES[0] + (EYES[1] - EYES[0]) * drawn[:, :1]
    for upper, lower in _LIDS:
        edited[:, upper] = landmarks[:, lower] + factor * (landmarks[:, upper] - landmarks[:, lower])
    mouth = landmarks[:, 54] - landmarks[:, 48]
    down = torch.stack([-mouth[:, 1], mouth[:, 0]], dim=1)  # as long as the mouth is wide
    gap = ((landmarks[:, 66] - landmarks[:, 62]) * down).sum(dim=1) / down.square().sum(dim=1).clamp(min=1e-6)
    shift = torch.maximum(LIPS[0] + (LIPS[1] - LIPS[0]) * drawn[:, 1], -gap)[:, None]
    for point, share in _LOWER_LIP.items():
        edited[:, point] = landmarks[:, point] + share * shift * down
    return edited


def keypoint_offsets(landmarks: Tensor, edited: Tensor, slots: Sequence[int] | Tensor, num_keypoints: int) -> Tensor:
    """By how much the edit moves the guided key points: [B, K, 3]; 0 where landmarks are NaN."""
    moves = guidance_points(edited - landmarks).nan_to_num()
    offsets = landmarks.new_zeros(len(landmarks), num_keypoints, 3)
    offsets[:, slots if isinstance(slots, Tensor) else list(slots), :2] = moves
    return offsets
