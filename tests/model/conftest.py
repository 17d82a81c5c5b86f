"""A tiny network with fixed random weights and the real face analyser: the whole way, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from model.faces import FaceAnalyser, FacesConfig, load_analyser
from model.inference import InferenceEngine
from model.networks import LivePortrait


@pytest.fixture(scope="session")
def engine() -> InferenceEngine:
    portrait = LivePortrait.untrained(config=ModelConfig.tiny())
    detector, generator = portrait.motion.detector, torch.Generator().manual_seed(0)
    with torch.no_grad():  # an untrained M has scale and translation alike for all pictures: nothing would move
        detector.fc_exp.weight.mul_(10)
        for head in (detector.fc_scale, detector.fc_t):
            head.weight.normal_(std=0.02, generator=generator)
    return InferenceEngine(portrait, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def analyser(models: Path) -> FaceAnalyser:
    return load_analyser(FacesConfig(weights_dir=str(models / "open")))
