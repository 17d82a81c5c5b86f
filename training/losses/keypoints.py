"""Losses on key points and motion: equivariance, prior, head pose, expression and landmark guidance of stage I.

Sources: face-vid2vid (arXiv 2011.15126, section A.2) for L_E, L_L, L_H and L_delta; LivePortrait (arXiv 2407.03168,
section 3.2) for L_guide. Every loss is the mean over the batch of a value per sample, so the gradients of several ranks
average to those of the joined batch; unknown labels (NaN) add zero and stay in the denominator. All of it is float32,
also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.keypoints import Motion, open_ratios_68
from model.networks.blocks import without_autocast

PRIOR_DISTANCE_SQUARED = 0.1
PRIOR_DEPTH = 0.33
WING_WIDTH = 1.0
WING_CURVATURE = 0.01

GUIDANCE_LANDMARKS = (36, 39, 37, 42, 45, 43, 48, 54, 51, 57)
"""iBUG points of L_guide: outer corner, inner corner and upper lid of the right eye; inner corner, outer corner and
upper lid of the left eye; right and left corner of the mouth, upper and lower lip. Right and left as the subject has
them."""
RELEASED_SLOTS = (13, 12, 11, 18, 16, 15, 14, 20, 17, 19)
"""Key point of each guidance landmark that fits the released order.

Published tools move eyes by the slots 11, 13, 15, 16, 18 and lips by 6, 12, 14, 17, 19, 20. What they do with each
tells what it is: 11 and 15 turn down to wink and follow the gaze (lids), 13 and 16 rise with a smile (outer corners),
14 and 20 rise with it (corners of the mouth), 19 drops and 17 rises to part the lips (lower and upper lip). Six eye
landmarks meet five eye slots, and 12, a lip slot that no edit uses and whose neutral expression is zero, takes an
inner corner, which hardly moves. Which side is which is not published and is our choice.
"""


def require_slots(num_keypoints: int) -> None:
    """ValueError for a model that lacks key points which RELEASED_SLOTS name."""
    if num_keypoints <= max(RELEASED_SLOTS):
        raise ValueError(
            f"model.num_keypoints is {num_keypoints}, but landmarks guide key points by the released order, which "
            f"numbers them up to {max(RELEASED_SLOTS)}: expected at least {max(RELEASED_SLOTS) + 1}"
        )


def equivariance_loss(
    keypoints: Tensor, keypoints_of_warped: Tensor, warp_points: Callable[[Tensor], Tensor]
) -> Tensor:
    """L_E: mean absolute difference of x_d[:2] and T(x_T(d)[:2]) over batch, key points and both axes.

    keypoints: x_d, float [B, K, 3] of the picture d. keypoints_of_warped: the same of T(d). warp_points: T on points
    [B, K, 2] that leads from T(d) back to d. Both sides get gradients. face-vid2vid sums over key points (factor 2K).
    """
    with without_autocast(keypoints.device):
        returned = warp_points(keypoints_of_warped[..., :2].float())
        return (keypoints[..., :2].float() - returned).abs().mean()


def keypoint_prior_loss(keypoints: Tensor) -> Tensor:
    """L_L: sum over ordered pairs i != j of max(0, 0.1 - |x_i - x_j|^2), plus |mean z - 0.33|; mean over the batch.

    keypoints: float [B, K, 3]. Distances are of 3D points. A pair counts twice, as in the formula.
    """
    points = keypoints.float()
    distance = (points[:, :, None] - points[:, None]).square().sum(dim=-1)
    crowding = (PRIOR_DISTANCE_SQUARED - distance).clamp(min=0)
    others = 1 - torch.eye(points.shape[1], device=points.device)
    depth = (points[..., 2].mean(dim=1) - PRIOR_DEPTH).abs()
    return ((crowding * others).sum(dim=(1, 2)) + depth).mean()


def head_pose_loss(motion: Motion, labels: Tensor) -> Tensor:
    """L_H: absolute error of pitch, yaw and roll in degrees, summed over the three angles, mean over the batch.

    labels: float [B, 3], pitch, yaw, roll in degrees; NaN where unknown, which adds zero.
    """
    angles, labels = motion.angles.float(), labels.float()
    if labels.shape != angles.shape:
        raise ValueError(f"head_pose_loss wants labels [B, 3]; got {tuple(labels.shape)} for {len(motion)} frames")
    # The label is replaced before the subtraction: NaN times zero would be NaN in the gradient.
    error = angles - torch.where(labels.isnan(), angles.detach(), labels)
    return error.abs().sum(dim=1).mean()


def deformation_prior_loss(motion: Motion) -> Tensor:
    """L_delta: mean absolute expression offset over batch, key points and axes (face-vid2vid: the sum, factor 3K)."""
    return motion.exp.float().abs().mean()


def wing(error: Tensor, width: float = WING_WIDTH, curvature: float = WING_CURVATURE) -> Tensor:
    """Wing of every number (Feng et al., arXiv 1711.06753, equation 5): logarithmic below `width`, linear above.

    The defaults are omega 1 and epsilon 0.01 for coordinates in [-1, 1] (the paper has 10 and 2 in pixels).
    """
    size = error.float().abs()
    offset = width - width * math.log1p(width / curvature)
    return torch.where(size < width, width * torch.log1p(size / curvature), size - offset)


def guidance_points(landmarks: Tensor) -> Tensor:
    """The points of GUIDANCE_LANDMARKS among landmarks [B, 68, 2]: [B, 10, 2], without waiting for the device."""
    return torch.stack([landmarks[:, point] for point in GUIDANCE_LANDMARKS], dim=1)


def guided_points(keypoints: Tensor, slots: Sequence[int] | Tensor) -> Tensor:
    """x and y of the key points [B, K, 3] in `slots`: [B, len(slots), 2]."""
    return keypoints[:, slots if isinstance(slots, Tensor) else list(slots), :2]


def wing_guidance_loss(
    keypoints: Tensor, landmarks: Tensor, *, slots: Sequence[int] | Tensor = RELEASED_SLOTS
) -> Tensor:
    """One frame's half of L_guide: Wing of l_i - x_i[:2] summed over x and y, mean over the 10 points and the batch.

    L_guide = (loss(x_s, landmarks of s) + loss(x_d, landmarks of d)) / 2, each frame against its own landmarks.
    keypoints: float [B, K, 3]. landmarks: float [B, 68, 2] in [-1, 1]; points with a NaN add zero.

    slots: which key point each of GUIDANCE_LANDMARKS is tied to; on a GPU as int64 tensor there, because numbers wait
    for it. For training from scratch RELEASED_SLOTS is the sensible choice and the default: it costs nothing, and
    `region="eyes"`, the face edits and third-party tools, all of which name key points by the released order, keep
    their meaning. Others (the first public port had the first ten) give that up. When fine-tuning released weights, use
    `match_slots` on their own key points, so that the loss does not pull them into another order.
    """
    wanted, points = guidance_points(landmarks).float(), guided_points(keypoints, slots).float()
    if points.shape != wanted.shape:
        raise ValueError(f"wing_guidance_loss wants {wanted.shape[1]} slots; got {len(slots)}")
    error = points - torch.where(wanted.isnan(), points.detach(), wanted)
    return wing(error).sum(dim=-1).mean()


def openness_loss(keypoints: Tensor, landmarks: Tensor, *, slots: Sequence[int] | Tensor = RELEASED_SLOTS) -> Tensor:
    """Mean absolute error of the openness that guided key points show, mouth plus eyes; mean over the batch.

    L_guide sees the places of single points; how far a mouth is open is a small difference of two of them, which this
    term asks for. Ours, not the paper's. Arguments as for `wing_guidance_loss`; frames with a NaN add zero.
    """
    wanted, points = guidance_points(landmarks).float(), guided_points(keypoints, slots).float()
    wanted = torch.where(wanted.isnan().flatten(1).any(dim=1)[:, None, None], points.detach(), wanted)
    pairs = zip(guided_openness(points), guided_openness(wanted), strict=True)
    return sum((found - true).abs().mean() for found, true in pairs)


def guided_openness(points: Tensor) -> tuple[Tensor, Tensor]:
    """Openness of mouth and eyes by the ten points of GUIDANCE_LANDMARKS, in widths of mouth and eye: [B] each.

    points: float [B, 10, 2]. Mouth: distance between the outer edges of the lips. Eyes: distance of the upper lid from
    the line between the corners, mean of both.
    """

    def length(vector: Tensor) -> Tensor:
        return vector.square().sum(dim=-1).clamp(min=1e-6).sqrt()

    heights = []
    for first in (0, 3):
        # Right eye: outer corner, inner corner, lid; left eye: inner corner, outer corner, lid.
        across, to_lid = points[:, first + 1] - points[:, first], points[:, first + 2] - points[:, first]
        heights.append((across[:, 0] * to_lid[:, 1] - across[:, 1] * to_lid[:, 0]).abs() / length(across) ** 2)
    mouth = length(points[:, 9] - points[:, 8]) / length(points[:, 7] - points[:, 6])
    return mouth, torch.stack(heights).mean(dim=0)


def landmark_flow_loss(deformation: Tensor, source: Tensor, driving: Tensor) -> Tensor:
    """Where W looks for a driving landmark in the source, against the source's landmark: mean absolute difference over
    batch, points and both axes; the jaw, whose points slide along its line, is left out.

    deformation: W's backward flow [B, D, H, W, 3] in [-1, 1]. source, driving: landmarks float [B, 68, 2] in [-1, 1];
    points with a NaN in either add zero. Of the depth slices the mean counts. Ours, not the paper's: pixels tell a
    small model only slowly which key point moves which part of the picture.
    """
    found, wanted = _looked_up(deformation, driving), source.float()
    known = ~(wanted.isnan() | driving.isnan()).any(dim=-1, keepdim=True)
    difference = (found - wanted.nan_to_num()).abs() * known
    return difference[:, 17:].mean()


def flow_openness_loss(deformation: Tensor, source: Tensor, driving: Tensor) -> Tensor:
    """Mean absolute error of the openness of eyes plus lips that W finds in the source where the driving landmarks are.

    A lid that W takes from a pixel beside it hardly counts in `landmark_flow_loss` and decides whether a blink is seen.
    Arguments as there; frames with a NaN in either add zero. Ours, not the paper's.
    """
    known = ~(source.isnan() | driving.isnan()).flatten(1).any(dim=1)[:, None]
    found = open_ratios_68(_looked_up(deformation, driving))
    return sum(
        ((there - true).abs() * known).mean()
        for there, true in zip(found, open_ratios_68(source.nan_to_num()), strict=True)
    )


def _looked_up(deformation: Tensor, driving: Tensor) -> Tensor:
    """Where W looks for landmarks [B, 68, 2] of the driving frame: points of the source [B, 68, 2]."""
    flow = deformation[..., :2].float().mean(dim=1).permute(0, 3, 1, 2)
    places = driving.float().nan_to_num()[:, None]
    return functional.grid_sample(flow, places, padding_mode="border", align_corners=False)[:, :, 0].mT


@torch.no_grad()
def match_slots(keypoints: Tensor, landmarks: Tensor) -> tuple[int, ...]:
    """The key points that lie nearest to the guidance landmarks, each used once: slots for `wing_guidance_loss`.

    keypoints: float [N, K, 3] of N frames by trained weights. landmarks: float [N, 68, 2] in [-1, 1]; frames with NaN
    are left out. The assignment minimises the sum of mean distances (Hungarian method).
    """
    from scipy.optimize import linear_sum_assignment

    wanted = landmarks[:, GUIDANCE_LANDMARKS].double().cpu()
    known = ~wanted.isnan().flatten(1).any(dim=1)
    if not known.any():
        raise ValueError("match_slots needs at least one frame with landmarks; got none")
    distance = torch.cdist(wanted[known], keypoints[..., :2].double().cpu()[known]).mean(dim=0)
    _, slots = linear_sum_assignment(np.asarray(distance))
    return tuple(int(slot) for slot in slots)
