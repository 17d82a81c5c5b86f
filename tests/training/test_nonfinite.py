"""Which lost steps a run passes over, and which end it."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from training.checkpoints import CheckpointFolder
from training.distributed import Process
from training.nonfinite import LostSteps, NonFiniteError


@dataclass
class FewFrames:
    clip_ids: list[str] = field(default_factory=lambda: ["b_1", "a_0", "b_1"])
    images: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.uint8))


@dataclass
class SmallBatch:
    position: int
    source: FewFrames = field(default_factory=FewFrames)


def test_a_step_is_passed_over_and_ten_in_a_row_are_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost, folder = LostSteps(tmp_path, Process()), CheckpointFolder(tmp_path, keep_last=1, writes=False)
    bad, good = {"loss": math.nan, "pixel": 1.0, "gradient_norm/motion": math.inf}, {"loss": 1.0}
    course = [True, True, False] + 9 * [True] + [False] + 9 * [True]
    with caplog.at_level(logging.WARNING):
        for number, is_lost in enumerate(course):
            lost.note(SmallBatch(4 * number), bad if is_lost else good, folder, is_lost=is_lost)
    assert len(caplog.messages) == 20
    path = tmp_path / "nonfinite-0-rank0.safetensors"
    assert caplog.messages[0] == (
        "step lost: loss, gradient_norm/motion became NaN or infinite after 0 images (clips a_0, b_1); this rank's "
        f"batch is in {path}"
    )
    assert caplog.messages[-1].endswith("; its batch is not kept")
    assert len([*tmp_path.glob("nonfinite-*")]) == 10
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["labels"])["losses"] == {n: repr(value) for n, value in bad.items()}
    with pytest.raises(NonFiniteError, match=r"after 88 images .*, as in each of the last 10 steps; .*-88-rank0"):
        lost.note(SmallBatch(88), bad, folder, is_lost=True)


def test_a_rank_whose_own_losses_are_fine_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=False)
    LostSteps(tmp_path, Process(rank=1, world_size=2)).note(SmallBatch(8), {"loss": 1.0}, folder, is_lost=True)
    assert caplog.messages[0].startswith("step lost: another rank's loss became NaN or infinite after 8 images")
