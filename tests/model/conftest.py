"""A tiny network with fixed random weights and the real face analyser: the whole way, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import ModelConfig
from model.faces import FaceAnalyser, FacesConfig, load_analyser
from model.inference import InferenceEngine
from model.networks import LivePortrait


@pytest.fixture(scope="session")
def engine() -> InferenceEngine:
    return InferenceEngine(LivePortrait.untrained(config=ModelConfig.tiny()), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def analyser(models: Path) -> FaceAnalyser:
    return load_analyser(FacesConfig(weights_dir=str(models / "open")))
