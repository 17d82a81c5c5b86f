"""Real faces as training sees them: 512-pixel crops with their landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model import framing
from model.faces import FacesConfig, load_analyser
from tests.conftest import SHARED

SIZE_PX = 512


@dataclass(frozen=True, kw_only=True)
class RealFace:
    """One face of the shared stills."""

    crop: np.ndarray
    """uint8 [512, 512, 3]."""
    landmarks_px: np.ndarray
    """float [68, 2], crop pixels."""
    embedding: np.ndarray
    """What the analyser makes of it, unit [128]."""
    image: Tensor
    """float32 [1, 3, 512, 512] in [0, 1]."""
    landmarks: Tensor
    """float32 [1, 68, 2] in [-1, 1]."""


@pytest.fixture(scope="session")
def sface_folder() -> str:
    folder = SHARED / "models" / "open"
    if not folder.is_dir():
        pytest.skip("needs the shared folder 'models' beside the checkout")
    return str(folder)


@pytest.fixture(scope="session")
def real_faces(sface_folder, media) -> list[RealFace]:
    """Four faces: with glasses, bearded, a woman upright, a man laughing with his head turned."""
    analyser = load_analyser(FacesConfig(weights_dir=sface_folder))
    faces = []
    for prefix in ("i16", "i21", "i30", "i32"):
        picture = np.asarray(Image.open(next((media / "images").glob(f"{prefix}_*"))).convert("RGB"))
        found = analyser.landmarks(picture, analyser.detect([picture])[0][:1])
        box = framing.driving_box(found.points68[0], scale=framing.SOURCE_SCALE, vy_ratio=framing.SOURCE_VY_RATIO)
        matrix = framing.box_transform(box, size_px=SIZE_PX)
        crop = framing.warp(picture, matrix, SIZE_PX)
        landmarks_px = framing.transform_points(found.points68[0], matrix)
        points5 = framing.transform_points(found.points5[0], matrix)
        faces.append(
            RealFace(
                crop=crop,
                landmarks_px=landmarks_px,
                embedding=analyser.embed(crop, points5[None])[0],
                image=torch.from_numpy(crop).permute(2, 0, 1)[None] / 255,
                landmarks=torch.from_numpy((2 * landmarks_px + 1) / SIZE_PX - 1).float()[None],
            )
        )
    return faces


@pytest.fixture
def face_landmarks() -> Tensor:
    """Hand-made upright landmarks [1, 68, 2]: face 0.8 wide and high at (0, 0.1), eyes at y = -0.1, mouth at 0.3."""
    points = np.zeros((68, 2), np.float32)
    angle = np.linspace(np.pi, 0, 17)
    points[0:17] = np.stack([0.4 * np.cos(angle), -0.1 + 0.6 * np.sin(angle)], axis=1)
    points[17:27] = np.stack([np.linspace(-0.3, 0.3, 10), np.full(10, -0.3)], axis=1)
    points[27:36] = [[0, y] for y in (-0.1, -0.05, 0, 0.1)] + [[x, 0.12] for x in (-0.1, -0.05, 0, 0.05, 0.1)]
    for first, middle in ((36, -0.2), (42, 0.2)):
        shape = [(-0.08, 0), (-0.03, -0.03), (0.03, -0.03), (0.08, 0), (0.03, 0.03), (-0.03, 0.03)]
        points[first : first + 6] = [(middle + x, -0.1 + y) for x, y in shape]
    for first, count, radius in ((48, 12, 0.15), (60, 8, 0.1)):
        turn = np.pi + 2 * np.pi * np.arange(count) / count
        points[first : first + count] = np.stack([radius * np.cos(turn), 0.3 + radius / 3 * np.sin(turn)], axis=1)
    return torch.from_numpy(points)[None]
