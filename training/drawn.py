"""What a base model draws, with landmarks: pictures for the landmark network that are like those it is to judge.

R_eyes and R_lip are trained by what the landmark network sees. One that knows photographs alone can be pleased by
changes that no face analyser takes for an open mouth; so it also learns on pictures of the base model whose key points
were moved, and the analyser, which cannot be differentiated, says what they show.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.faces import FaceAnalyser
from model.keypoints.regions import EYE_KEYPOINTS, LIP_KEYPOINTS
from training.correction import FrozenBase
from training.data import PreparedFrames
from training.evaluation.faces import FaceReader


class DrawnFaces:
    """Draws persons with moved key points, and reads the landmarks off the pictures."""

    def __init__(self, base: FrozenBase, analyser: FaceAnalyser, *, offset: float) -> None:
        """offset: largest standard deviation of the moves, in key-point units (the picture is about 2 wide)."""
        self._base, self._offset = base, offset
        self._reader = FaceReader(analyser, embed=False)

    @torch.no_grad()
    def draw(self, frames: PreparedFrames, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One picture a frame, float32 [B, 3, H, W], and landmarks [B, 68, 2] in [-1, 1], NaN where no face is seen."""
        x_s = self._base.motion(frames).keypoints()
        moved = x_s + self._moves(len(x_s), generator)
        pictures = self._base.render(self._base.appearance(frames), x_s, moved)
        return pictures, self._read(pictures).to(pictures.device)

    def _moves(self, count: int, generator: torch.Generator) -> Tensor:
        """Normal offsets [B, K, 3] of a size drawn evenly; of every other picture the eyes' and lips' points alone."""
        device = generator.device
        size = torch.rand(count, 1, 1, generator=generator, device=device) * self._offset
        moves = size * torch.randn(count, 21, 3, generator=generator, device=device)
        others = [k for k in range(21) if k not in EYE_KEYPOINTS + LIP_KEYPOINTS]
        moves[::2, others] = 0
        return moves

    def _read(self, pictures: Tensor) -> Tensor:
        landmarks = np.full((len(pictures), 68, 2), np.nan, np.float32)
        for row, picture in enumerate((pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()):
            if (face := self._reader.read(picture)) is not None:
                landmarks[row] = 2 * face.points68 - 1
        return torch.from_numpy(landmarks)
