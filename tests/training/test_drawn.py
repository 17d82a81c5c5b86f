"""What a base model draws, read by a real analyser: landmarks where there is a face, NaN where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.faces import FaceAnalyser, FacesConfig, load_analyser
from model.keypoints.regions import EYE_KEYPOINTS, LIP_KEYPOINTS
from model.networks import LivePortrait
from training.correction import FrozenBase
from training.data import DataConfig, PreparedBatch, make_loader, prepare
from training.distributed import Process
from training.drawn import DrawnFaces
from training.landmarks import LandmarksRecipe, LandmarkStage
from training.loop import Progress
from training.networks.landmarks import LandmarkConfig

SIZE_PX = 64
BASE = FrozenBase(LivePortrait.untrained(0, ModelConfig.tiny(SIZE_PX)), LandmarksRecipe(), Process())


class Copier(FrozenBase):
    """Draws every second source as it is and the others black, and keeps the key points that it was asked for."""

    def appearance(self, frames) -> Tensor:
        return frames.target

    def render(self, volume: Tensor, x_s: Tensor, x_d: Tensor) -> Tensor:
        self.moves = x_d - x_s
        pictures = volume.clone()
        pictures[1::2] = 0
        return pictures


@pytest.fixture(scope="module")
def analyser(models: Path) -> FaceAnalyser:
    return load_analyser(FacesConfig(weights_dir=str(models / "open")))


@pytest.fixture(scope="module")
def batch(dataset: Path) -> PreparedBatch:
    loader = make_loader(str(dataset), config=DataConfig(num_workers=0), batch_size=4, seed=0)
    return prepare(next(iter(loader)), image_size=SIZE_PX)


def test_landmarks_are_read_off_the_pictures(analyser: FaceAnalyser, batch: PreparedBatch) -> None:
    base = Copier(BASE.portrait, LandmarksRecipe(), Process())
    drawn = DrawnFaces(base, analyser, offset=0.1)
    pictures, landmarks = drawn.draw(batch.source, torch.Generator().manual_seed(0))
    assert torch.equal(pictures[::2], batch.source.target[::2])
    assert landmarks[1::2].isnan().all()
    # The labels are from the full picture, this is 128 px: within two of these pixels.
    torch.testing.assert_close(landmarks[::2], batch.source.landmarks[::2], atol=0.035, rtol=0)


def test_every_other_picture_moves_eyes_and_lips_alone(analyser: FaceAnalyser, batch: PreparedBatch) -> None:
    base = Copier(BASE.portrait, LandmarksRecipe(), Process())
    drawn = DrawnFaces(base, analyser, offset=0.1)
    drawn.draw(batch.source, torch.Generator().manual_seed(0))
    moves, region = base.moves, list(EYE_KEYPOINTS + LIP_KEYPOINTS)
    others = [k for k in range(21) if k not in region]
    assert not moves[::2, others].any()
    assert moves[1::2].all()
    assert moves[:, region].all()
    drawn.draw(batch.source, torch.Generator().manual_seed(0))
    assert torch.equal(base.moves, moves)


def test_pictures_without_a_face_teach_nothing(analyser: FaceAnalyser, batch: PreparedBatch) -> None:
    """An untrained base draws no faces: the step is that of the photographs, and nothing becomes NaN."""
    recipe = LandmarksRecipe(landmarks=LandmarkConfig(image_size=64, channels=(16, 16), heatmap_size=32))
    stage = LandmarkStage(recipe, Process(), drawn=DrawnFaces(BASE, analyser, offset=0.1))
    told = stage.training_step(batch, Progress(images=0, step=0, batch_size=4), torch.Generator().manual_seed(0))
    assert 0 < told["gradient_norm"] < torch.inf
    assert all(value.isfinite().all() for value in stage.modules["landmarks"].state_dict().values())
    figures = stage.validate(batch)
    assert figures["drawn_position"].isnan().all()
    assert figures["position"].isfinite().all()
