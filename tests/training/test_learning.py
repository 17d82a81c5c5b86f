"""From curated shards to a model that has learned something, with no hand-made data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from training.__main__ import main

HALF = 0.5


def held_out_errors(output: Path) -> list[float]:
    """Mean absolute error on held-out frames of training clips, at every validation."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line["l1"] for line in lines if line["kind"] == "validation"]


def test_error_on_held_out_frames_halves_in_a_minute(dataset: Path, quick_recipe: Path, tmp_path: Path) -> None:
    arguments = ["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", str(tmp_path / "run")]
    arguments += ["--num-images", "480", "--batch-size", "8", "--optimizer.learning-rate", "0.004"]
    arguments += ["--losses.adversarial", "0", "--losses.feature-matching", "0", "--compute.channels-last"]
    arguments += ["--reports.validate-every-images", "480", "--checkpoints.every-images", "480", "--device", "cpu"]
    assert main(arguments) == 0
    untrained, trained = held_out_errors(tmp_path / "run")
    assert trained <= HALF * untrained


@pytest.mark.slow
def test_tiny_recipe_on_two_ranks(media_dataset: Path, run_training: Callable[..., str], tmp_path: Path) -> None:
    """300 steps of the tiny recipe on real clips, two gloo processes; GAN and all."""
    said = run_training(
        "base", "--recipe", "tiny", "--data", media_dataset, "--output", tmp_path / "run", ranks=2, timeout_s=1200
    )
    assert "step 300  images 2,400" in said
    untrained, *_, trained = held_out_errors(tmp_path / "run")
    assert trained <= HALF * untrained
    assert len(os.listdir(tmp_path / "run" / "pictures")) == 3
