from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.cores import take_share_of_cores

ROOT = Path(__file__).resolve().parents[2]
_IN_A_CONTAINER = """
import joblib, torch
torch.set_num_threads(3)
joblib.cpu_count = lambda only_physical_cores=False: 2
{start}
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("num_ranks", "asked", "expected"),
    [
        ("2", "1", [4]),
        ("3", "1", [2]),
        ("16", "1", [1]),
        ("2", "3", []),
        ("1", "1", []),
        ("1", None, [6]),
        ("8", None, [1]),
    ],
)
def test_ranks_on_cpus_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, num_ranks: str, asked: str | None, expected: list[int]
) -> None:
    """Of eight in the container; PyTorch would take six."""
    given = []
    monkeypatch.setattr("joblib.cpu_count", lambda only_physical_cores: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", num_ranks)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    take_share_of_cores()
    assert given == expected


@pytest.mark.parametrize(
    "start",
    [
        "from model.animation.loading import *; load_engine(NetworkOptions(untrained=True, tiny=True, device='cpu'))",
        "from training.distributed import start_process; start_process('cpu').__enter__()",
    ],
)
def test_animation_and_training_take_no_more_than_their_container_has(start: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "WORLD_SIZE")}
    command = [sys.executable, "-c", _IN_A_CONTAINER.format(start=start)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"]
