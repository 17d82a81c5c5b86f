"""Two ranks are one rank with the joined batch."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.distributed import Process, start_process, synchronise_batch_norm
from training.loop import batch_per_rank

SCRIPT = Path(__file__).with_name("step_gradients.py")
TOLERANCE = 1e-3
"""Relative error of the gradient of each network, 6e-6 as measured. Float32 sums are taken in another order; it may be
larger where an activation lies so near to a kink (leaky ReLU, hinge) that this order decides on which side it is."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradients")


@pytest.fixture(scope="module")
def recorded(quick_recipe: Path, folder: Path) -> tuple[dict, dict]:
    """What a step on the same batch gave on one rank and on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(SCRIPT))["record_step"](str(quick_recipe), str(folder / "one.safetensors"))
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(
        [*command, str(quick_recipe), str(folder / "two.safetensors")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "one.safetensors"), load_file(folder / "two.safetensors")


def test_gradients_are_those_of_the_joined_batch(recorded: tuple[dict, dict]) -> None:
    one, two = recorded
    assert one.keys() == two.keys()
    for network in ("appearance", "motion", "warping", "generator", "discriminators"):
        names = [name for name in one if name.startswith(f"{network}.")]
        assert len(names) > 5
        assert relative_error(one, two, names) <= TOLERANCE, network


def relative_error(expected: dict, got: dict, names: list[str]) -> float:
    """Norm of the difference of some tensors together, over the norm of what is expected."""
    difference = sum((expected[name] - got[name]).double().square().sum().item() for name in names)
    return (difference / sum(expected[name].double().square().sum().item() for name in names)) ** 0.5


def test_batch_statistics_and_losses_too(recorded: tuple[dict, dict]) -> None:
    one, two = recorded
    names = [name for name in one if name.startswith(("losses.", "statistics."))]
    assert len(names) > 20
    for name in names:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6), name


def test_without_synchronised_statistics_it_would_not_hold(
    recorded: tuple[dict, dict], quick_recipe: Path, folder: Path
) -> None:
    """The mean of the gradients of two halves, each with its own statistics, is far outside the tolerance."""
    record_step = runpy.run_path(str(SCRIPT))["record_step"]
    halves = []
    for half in (0, 1):
        record_step(str(quick_recipe), str(folder / "half.safetensors"), half)
        halves.append(load_file(folder / "half.safetensors"))
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    for network in ("appearance", "warping", "generator"):
        names = [name for name in mean if name.startswith(f"{network}.")]
        assert relative_error(recorded[0], mean, names) > 20 * TOLERANCE, network


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with start_process("cpu") as process:
        assert process == Process()
        module = torch.nn.BatchNorm2d(3)
        assert process.replicate(module) is module
        assert synchronise_batch_norm(module, process) is module
        assert process.any(True, False) == (True, False)
        assert process.sum({"a": (2.0, 3)}) == {"a": (2.0, 3)}
        assert not torch.distributed.is_initialized()


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    assert batch_per_rank(12, Process(world_size=4)) == 3
    told = r"batch_size is 10 over all ranks, which 4 ranks cannot share evenly: use 1, 2, 5 or 10 ranks .* 8 or 12,"
    with pytest.raises(ValueError, match=told):
        batch_per_rank(10, Process(world_size=4))
    with pytest.raises(ValueError, match=r"which 2 ranks cannot share evenly: use 1 rank .*--batch-size 2,"):
        batch_per_rank(1, Process(world_size=2))


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device; use --device cpu"), start_process("cuda"):
        pass
