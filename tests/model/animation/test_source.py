"""How sources and driving pictures are cropped: as the networks have learned it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model.animation.driving import load_driving
from model.animation.source import load_source
from model.animation.tracking import find_faces
from model.config import ModelConfig
from model.inference import InferenceEngine
from model.networks import LivePortrait

STILL = "images/i16_man_with_glasses_and_beard_white_background.jpg"


def test_pictures_are_cropped_as_the_networks_learned_it(media: Path, analyser) -> None:
    """A model of tighter crops gets them, of sources and in proportion of driving pictures."""

    def crops(**framing: float) -> tuple[np.ndarray, np.ndarray]:
        config = dataclasses.replace(ModelConfig.tiny(), **framing)
        engine = InferenceEngine(LivePortrait.untrained(config=config), device="cpu", dtype="float32")
        source = load_source(media / STILL, engine, analyser)
        driving = load_driving(media / STILL, engine, analyser)
        return source.faces[0].matrices[0], next(driving.pictures())

    published, tighter = crops(), crops(crop_scale=1.15)
    zooms = [np.linalg.det(matrix[:2, :2]) ** 0.5 for matrix, _ in (published, tighter)]
    assert zooms[1] / zooms[0] == pytest.approx(2)
    heights = [np.ptp(find_faces(picture, analyser, min_face_px=24)[0][:, 1]) for _, picture in (published, tighter)]
    assert heights[1] / heights[0] == pytest.approx(2, rel=0.05)
