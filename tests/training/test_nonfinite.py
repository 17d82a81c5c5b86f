"""Which lost steps a run passes over, and which end it."""

from __future__ import annotations

import json
import logging
import math
import re
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from training.checkpoints import CheckpointFolder
from training.distributed import Process
from training.nonfinite import LostSteps, NonFiniteError, advice


@dataclass
class FewFrames:
    clip_ids: list[str] = field(default_factory=lambda: ["b_1", "a_0", "b_1"])
    images: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.uint8))


@dataclass
class SmallBatch:
    position: int
    source: FewFrames = field(default_factory=FewFrames)
    driving: FewFrames = field(default_factory=lambda: FewFrames(["c_2", "b_1", "a_0"]))


def test_a_step_is_passed_over_and_ten_in_a_row_are_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost, folder = LostSteps(tmp_path, Process()), CheckpointFolder(tmp_path, keep_last=1, writes=False)
    bad, good = {"loss": math.nan, "pixel": 1.0, "gradient_norm/motion": math.inf}, {"loss": 1.0}
    course = [True, True, False] + 9 * [True] + [False] + 9 * [True]
    with caplog.at_level(logging.WARNING):
        for number, is_lost in enumerate(course):
            lost.note(SmallBatch(4 * number), bad if is_lost else good, folder, good_until=0, is_lost=is_lost)
    assert len(caplog.messages) == 20
    path = tmp_path / "nonfinite-0-rank0.safetensors"
    assert caplog.messages[0] == (
        "step lost: loss, gradient_norm/motion became NaN or infinite after 0 images (clips a_0, b_1, c_2; "
        f"the batch is in {path})"
    )
    assert caplog.messages[-1].endswith("; the batch is not kept)")
    assert len([*tmp_path.glob("nonfinite-*")]) == 10
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["labels"])["losses"] == {n: repr(value) for n, value in bad.items()}
    with pytest.raises(NonFiniteError, match=r"after 88 images .*-88-rank0.*, as in each of the last 10 steps"):
        lost.note(SmallBatch(88), bad, folder, good_until=52, is_lost=True)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ((1.0, math.nan), "loss became NaN or infinite after 8 images in rank 1 (clips b_1, d_3; the batch is in {1})"),
        ((1.0, 1.0), "gradient_norm/motion became NaN or infinite after 8 images in all ranks (in rank 0 the batch is"),
        ((math.inf, math.nan), "loss, gradient_norm/motion became NaN or infinite after 8 images in all ranks"),
    ],
)
def test_ranks_with_bad_losses_of_their_own_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, losses: tuple[float, float], told: str
) -> None:
    """A NaN in the gradients of one is in the mean, so that all have its norm. The first alone is heard."""
    given: list[object] = [None, None]
    both = threading.Barrier(2, timeout=10)

    class Rank(Process):
        def gather(self, value: object) -> list[object]:
            given[self.rank] = value
            both.wait()
            return given

    def note(rank: int) -> None:
        batch = SmallBatch(8, FewFrames([f"{'ab'[rank]}_{rank}"]), FewFrames([f"{'cd'[rank]}_{rank + 2}"]))
        values = {"loss": losses[rank], "gradient_norm/motion": math.nan}
        lost = LostSteps(tmp_path, Rank(rank=rank, world_size=2))
        folder = CheckpointFolder(tmp_path, keep_last=1, writes=False)
        lost.note(batch, values, folder, good_until=4, is_lost=True)

    with ThreadPoolExecutor() as pool:
        list(pool.map(note, (0, 1)))
    paths = [tmp_path / f"nonfinite-8-rank{rank}.safetensors" for rank in (0, 1)]
    assert all(path.is_file() for path in paths)
    assert len({*caplog.messages}) == 1
    assert caplog.messages[0].startswith(f"step lost: {told.format(*paths)}")


def test_a_full_disk_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By a real limit of the operating system."""
    frames = FewFrames(images=torch.zeros(100_000, dtype=torch.uint8))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        folder = CheckpointFolder(tmp_path, keep_last=1, writes=False)
        lost = LostSteps(tmp_path, Process())
        lost.note(SmallBatch(8, frames), {"loss": math.nan}, folder, good_until=4, is_lost=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    (message,) = caplog.messages
    assert f"the batch could not be written to {tmp_path}/nonfinite-8-rank0.safetensors (" in message
    assert "File too large" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("checkpoints", "told"),
    [
        ([], "no checkpoint was written before. Lower the learning rate or optimizer.max_gradient_norm, or"),
        ([4], "the run resumes from images-0000000004. Lower the learning rate or optimizer.max_gradient_norm (with"),
        ([4, 8], "images-0000000008 was good, .*: remove {0}/images-0000000008 to go on from images-0000000004. Lower"),
        ([8], "images-0000000008 was good, so .*: remove {0}/images-0000000008 to begin anew. .*_norm, or"),
    ],
)
def test_the_checkpoint_of_the_step_before_is_not_trusted(tmp_path: Path, checkpoints: list[int], told: str) -> None:
    """It was due when that step broke the weights, or the run has resumed from it."""
    folder = CheckpointFolder(tmp_path, keep_last=3, writes=False)
    for images in checkpoints:
        (folder.root / f"images-{images:010d}").mkdir(parents=True)
        (folder.root / f"images-{images:010d}" / "run.json").touch()
    assert re.search(told.format(folder.root).replace("(", "[(]"), advice(folder, good_until=8))
