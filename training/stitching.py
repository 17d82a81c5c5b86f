"""python -m training stitching: S learns to keep the source's shoulders where they are (LivePortrait, section 3.3).

L_st = |(I_st - I_recon) * (1 - M_st)| + w |x_st - x_d|, with I_recon = G(W(f_s; x_s, x_s)), driving key points x_d of
another person, and x_st what S makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from manifests.recipes import require_no_negative
from model.keypoints import stitch
from training.correction import CorrectionStage, masked_mean
from training.data import PreparedBatch
from training.losses import shoulder_mask
from training.recipe import Recipe
from training.stage import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class StitchingLosses:
    """Weights of the terms; the paper does not give them."""

    shoulder: float = 10.0
    """Change of the shoulders: mean over their pixels."""
    offset: float = 1.0
    """Size of the correction: by how much key points move, offsets and common shift together, mean over 3K numbers. The
    paper takes the L1 norm of the network's 3K + 2 numbers, in which a common shift costs almost nothing. Without this
    term, S would simply undo the motion."""

    def __post_init__(self) -> None:
        require_no_negative(self)


@dataclass(frozen=True, kw_only=True)
class StitchingRecipe(Recipe):
    """Every option of the training of S."""

    losses: StitchingLosses = field(default_factory=StitchingLosses)


class StitchingStage(CorrectionStage):
    """Trains S on pairs of two persons."""

    name = "stitching"
    network = "stitching"
    cross_identity = True
    best_metric = "loss"  # by the shoulders alone, the strongest correction would be the best

    def __init__(self, portrait, recipe: StitchingRecipe, process, *, keep_network: bool = False) -> None:
        super().__init__(portrait, recipe, process, keep_network=keep_network)
        self.weights = recipe.losses

    def _key_points(self, batch: PreparedBatch) -> tuple[Tensor, Tensor]:
        """x_s, and x_d with the source's canonical key points and the other person's motion: [B, K, 3] each."""
        source, driving = self.base.motion(batch.source), self.base.motion(batch.driving)
        return source.keypoints(), driving.replace(kp=source.kp).keypoints()

    def losses(self, batch: PreparedBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x_s, x_d = self._key_points(batch)
        volume = self.base.appearance(batch.source)
        with torch.no_grad():
            reconstructed = self.base.render(volume, x_s, x_s)
        moved = stitch(self.training_networks, x_s, x_d)
        stitched = self.base.render(volume, x_s, moved)
        mask = shoulder_mask(batch.source.landmarks, stitched.shape[-2:])
        terms = {
            "shoulder": masked_mean(stitched - reconstructed, mask).mean(),
            "offset": (moved - x_d).abs().mean(),
        }
        return self._weighted(terms), terms

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        return self.weights.shoulder * terms["shoulder"] + self.weights.offset * terms["offset"]

    def validate(self, batch: PreparedBatch, first: int = 0) -> dict[str, Tensor]:
        x_s, x_d = self._key_points(batch)
        volume = self.base.appearance(batch.source)
        moved = stitch(self.averaged_networks, x_s, x_d)
        reconstructed, free, stitched = (self.base.render(volume, x_s, x) for x in (x_s, x_d, moved))
        mask = shoulder_mask(batch.source.landmarks, stitched.shape[-2:])
        terms = {
            "shoulder": masked_mean(stitched - reconstructed, mask),
            "offset": (moved - x_d).abs().mean(dim=(1, 2)),
        }
        has_shoulders = mask.flatten(1).any(dim=1)
        unknown = torch.full_like(has_shoulders, torch.nan, dtype=torch.float32)
        return {
            "loss": self._weighted(terms),
            "shoulder": torch.where(has_shoulders, terms["shoulder"], unknown),
            "offset": terms["offset"],
            "shoulder_unstitched": torch.where(has_shoulders, masked_mean(free - reconstructed, mask), unknown),
            # What is left of the motion: 1 keeps it all, 0 undoes it.
            "motion_kept": masked_mean(stitched - reconstructed, 1 - mask)
            / masked_mean(free - reconstructed, 1 - mask).clamp(min=1e-6),
        }

    def pictures(self, batch: PreparedBatch) -> dict[str, Tensor]:
        x_s, x_d = self._key_points(batch)
        volume = self.base.appearance(batch.source)
        moved = stitch(self.averaged_networks, x_s, x_d)
        rendered = [self.base.render(volume, x_s, x) for x in (x_s, x_d, moved)]
        titles = ("source", "driving", "reconstructed", "unstitched", "stitched")
        return dict(zip(titles, (batch.source.target, batch.driving.target, *rendered), strict=True))
