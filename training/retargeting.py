"""python -m training retargeting: R_eyes and R_lip learn to open eyes and lips as asked (LivePortrait, section 3.3).

L = |(I - I_recon) * (1 - M)| + w_c |c_pred - c_d| + w_r |delta|, with x' = x_s + R(x_s; c_s, c_d) and c_d drawn evenly.
c_pred comes from a differentiable landmark network that looks at the result: FaceMesh in torch (`networks.facemesh`),
or a small one of `training landmarks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from manifests.recipes import require_no_negative, require_positive
from model.keypoints import open_ratios_68, retarget_eye, retarget_lip
from training.correction import CorrectionStage, masked_mean, mean_over_known
from training.data import PreparedBatch, PreparedFrames
from training.losses import eye_mask, lip_mask
from training.recipe import Recipe
from training.stage import Draws

Part = Literal["eyes", "lip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetargetingLosses:
    """Weights of the terms; the paper does not give them. All terms are means."""

    outside: float = 10.0
    """Change of everything but the eyes (the mouth and chin): mean over those pixels."""
    condition: float = 5.0
    """Asked against achieved openness."""
    offset: float = 1.0
    """Size of the correction."""

    def __post_init__(self) -> None:
        require_no_negative(self)


@dataclass(frozen=True, kw_only=True)
class RetargetingRecipe(Recipe):
    """Every option of the training of R_eyes or R_lip."""

    max_eyes: float = 0.4
    """Asked openness of the eyes is drawn from 0 to this. By the 68 points of the labels wide eyes have 0.36; the paper
    draws up to 0.8, on points of its own."""
    max_lip: float = 0.8
    """The same for the lips, as in the paper."""
    losses: RetargetingLosses = field(default_factory=RetargetingLosses)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_eyes", "max_lip")


class RetargetingStage(CorrectionStage):
    """Trains R_eyes or R_lip on single pictures: the sources of the pairs.

    It is validated on the driving frames: the sources of the split `held_out` are frames that are trained on.
    """

    best_metric = "loss"

    def __init__(
        self,
        portrait,
        recipe: RetargetingRecipe,
        process,
        *,
        part: Part,
        landmarks: nn.Module,
        keep_network: bool = False,
    ) -> None:
        """landmarks: `MeshLandmarks` or a trained `LandmarkNetwork`, frozen here: pictures, and landmarks about where
        the face is -> landmarks."""
        self.part = part
        self.name = f"retargeting-{part}"
        self.network = "retarget_eye" if part == "eyes" else "retarget_lip"
        self.num_conditions = 3 if part == "eyes" else 2  # of each eye, or of the lips, and the asked one
        super().__init__(portrait, recipe, process, keep_network=keep_network)
        self.weights = recipe.losses
        self.max_condition = recipe.max_eyes if part == "eyes" else recipe.max_lip
        self.landmarks = landmarks.to(process.device).eval().requires_grad_(False)

    def losses(self, batch: PreparedBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        asked = draws.uniform(len(batch), 1) * self.max_condition
        near = vary_places(batch.source.landmarks, draws.uniform(len(batch), 4))
        terms, known, _ = self._retarget(batch.source, asked, self.training_networks, near)
        means = {name: mean_over_known(values, known) for name, values in terms.items()}
        return self._weighted(means), means

    def validate(self, batch: PreparedBatch, first: int = 0) -> dict[str, Tensor]:
        """Asked openness rises evenly over the pairs that count, so that figures of two moments can be compared."""
        frames = batch.driving
        numbers = torch.arange(first, first + len(batch), device=frames.image.device)
        asked = self.max_condition * (numbers + 0.5)[:, None] / self.recipe.reports.num_validation
        terms, known, _ = self._retarget(frames, asked, self.averaged_networks)
        terms["loss"] = self._weighted(terms)
        unknown = torch.full_like(terms["loss"], torch.nan)
        return {name: torch.where(known, values, unknown) for name, values in terms.items()}

    def pictures(self, batch: PreparedBatch) -> dict[str, Tensor]:
        frames = batch.driving
        columns = {"source": frames.target}
        for share in (0.0, 0.5, 1.0):
            asked = torch.full((len(batch), 1), share * self.max_condition, device=frames.image.device)
            _, _, columns[f"{self.part} {asked[0, 0]:.2f}"] = self._retarget(frames, asked, self.averaged_networks)
        return columns

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        return sum(getattr(self.weights, name) * terms[name] for name in ("outside", "condition", "offset"))

    def _retarget(
        self, frames: PreparedFrames, asked: Tensor, networks: object, near: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Terms by sample [B], which samples have labels [B], and pictures [B, 3, H, W], for asked openness [B, 1].

        near: where the landmark network is told that faces are; the frames' landmarks if not given.
        """
        is_eyes = self.part == "eyes"
        known = frames.landmarks.isfinite().all(dim=(1, 2))
        current = open_ratios_68(frames.landmarks)[0 if is_eyes else 1]  # as in use, where no label is at hand
        x_s = self.base.motion(frames).keypoints()
        offset = (retarget_eye if is_eyes else retarget_lip)(networks, x_s, current.nan_to_num(), asked)
        volume = self.base.appearance(frames)
        with torch.no_grad():
            reconstructed = self.base.render(volume, x_s, x_s)
        changed = self.base.render(volume, x_s, x_s + offset)
        mask = (eye_mask if is_eyes else lip_mask)(frames.landmarks, changed.shape[-2:])
        achieved = open_ratios_68(self.landmarks(changed, frames.landmarks if near is None else near))[
            0 if is_eyes else 1
        ]
        terms = {
            "outside": masked_mean(changed - reconstructed, 1 - mask),
            "condition": (achieved - asked).abs().mean(dim=1),
            "offset": offset.abs().mean(dim=(1, 2)),
        }
        return terms, known, changed


def vary_places(landmarks: Tensor, drawn: Tensor) -> Tensor:
    """Landmarks [B, 68, 2] turned by up to 10 degrees, scaled by up to a tenth, shifted by up to a tenth of their size.

    As places of crops: what is only seen as an open mouth in one crop must not satisfy R. drawn: [B, 4] in [0, 1).
    """
    turn, zoom, shift = (2 * drawn - 1).split((1, 1, 2), dim=1)
    center = landmarks.mean(dim=1, keepdim=True)
    size = (landmarks.amax(dim=1) - landmarks.amin(dim=1)).amax(dim=1)[:, None]
    angle, zoom = math.radians(10) * turn, 1 + 0.1 * zoom
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)], dim=1)
    return (landmarks - center) @ matrix + center + (0.1 * shift * size)[:, None]
