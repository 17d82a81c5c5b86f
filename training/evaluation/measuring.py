"""Measures frames against each other with whatever tools are at hand, and says which figures are missing and why."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from training.evaluation.catalogue import ALWAYS_MISSING
from training.evaluation.faces import (
    Asked,
    Face,
    FaceReader,
    identity_similarity,
    motion_figures,
    openness_figures,
)
from training.evaluation.fid import FeatureNetwork
from training.evaluation.lpips import Lpips
from training.evaluation.pixels import face_masks, pixel_figures, to_size, to_tensor


@dataclass(kw_only=True)
class Tools:
    """What measures. A group whose tool is absent stands in `missing` with the reason."""

    groups: tuple[str, ...]
    compare_size_px: int
    device: torch.device
    faces: FaceReader | None = None
    lpips: Lpips | None = None
    fid: FeatureNetwork | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Group -> why it cannot be measured."""

    def __post_init__(self) -> None:
        self.missing |= {group: why for group, why in ALWAYS_MISSING.items() if group in self.groups}

    def wants(self, *groups: str) -> bool:
        """Whether one of the groups was asked for and can be measured."""
        return any(group in self.groups and group not in self.missing for group in groups)

    def small(self, frames: np.ndarray) -> np.ndarray:
        """Frames in the size at which pictures are compared."""
        return to_size(frames, self.compare_size_px)

    def compare_pictures(self, result: np.ndarray, target: np.ndarray, points68: np.ndarray) -> dict[str, np.ndarray]:
        """Figures of each pair of pictures: figure -> float64 [N].

        result, target: uint8 [N, S, S, 3] of `compare_size_px`. points68: the target's landmarks as fractions.
        """
        first, second = (to_tensor(frames, self.device) for frames in (result, target))
        face = torch.from_numpy(face_masks(points68, self.compare_size_px)).to(self.device)
        figures = pixel_figures(first, second, face, self.groups)
        if self.wants("lpips"):
            figures["lpips"] = self.lpips(first, second).double().cpu().numpy()
        return figures

    def find_face(self, frame: np.ndarray) -> Face | None:
        """The face of a frame, uint8 [S, S, 3]; None if there is none or nobody looks for faces."""
        return self.faces.read(frame) if self.faces is not None else None

    def compare_faces(
        self, result: Face | None, *, asked: Asked | None, driving: Face | None, identity: Face | None
    ) -> dict[str, float]:
        """Figures of one face; those that a missing face leaves open are absent.

        driving: compare the openness with this face (self-reenactment). identity: the face that it should resemble.
        """
        if self.faces is None:
            return {}
        figures = {"face_found": 100.0 if result is not None else 0.0}
        if result is None:
            return figures
        if asked is not None:
            figures |= motion_figures(result, asked)
        if driving is not None:
            figures |= openness_figures(result, driving)
        if identity is not None and self.wants("csim"):
            figures["csim"] = identity_similarity(result, identity)
        return figures


class Distribution:
    """FID of pictures that come batch by batch."""

    def __init__(self) -> None:
        self._metric: nn.Module | None = None

    def add(self, features: torch.Tensor, *, real: bool) -> None:
        if self._metric is None:
            from torchmetrics.image.fid import FrechetInceptionDistance

            passed_on = nn.Identity()
            passed_on.num_features = features.shape[1]
            self._metric = FrechetInceptionDistance(feature=passed_on).to(features.device)
        self._metric.update(features, real=real)

    def value(self) -> float | None:
        """The distance; None with fewer than two frames on a side."""
        metric = self._metric
        if metric is None or min(metric.real_features_num_samples, metric.fake_features_num_samples) < 2:
            return None
        return float(metric.compute())


class Column:
    """Figures of one kind of picture (the result, or copies of the source) over the frames of a clip."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)

    def add(self, figures: dict[str, np.ndarray] | dict[str, float]) -> None:
        for name, value in figures.items():
            self.values[name] += np.atleast_1d(value).tolist()

    def means(self) -> dict[str, float | None]:
        """Mean of each figure over the frames where it has a value; None where it has none."""
        return {name: mean_of(values) for name, values in self.values.items()}

    def num_frames(self, name: str) -> int:
        return sum(math.isfinite(value) for value in self.values.get(name, []))


def mean_of(values: list[float | None]) -> float | None:
    """Mean of the finite numbers; None if there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None
