"""The loop as a user runs it: exact resume, other numbers of ranks, stopping, divergence."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import training.loop
from training import distributed
from training.__main__ import main
from training.base import BaseRecipe, BaseStage
from training.checkpoints import CheckpointFolder, read_run, read_tensors
from training.distributed import Process
from training.loop import due
from training.recipe import load_recipe
from training.stage import open_loader
from training.stopping import stop_request

Run = Callable[..., str]
ROOT = Path(__file__).resolve().parents[2]


def records(output: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """Lines of metrics.jsonl by images; of the last of several runs where they overlap."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {line["images"]: line for line in lines if line["kind"] == kind}


def wait_for(condition: Callable[[], Any], process: Any, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def quick_recipe(quick_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In channels-last, as the presets train: files keep no memory format, and fused kernels assume the parameters'."""
    path = tmp_path_factory.mktemp("recipe") / "channels_last.toml"
    path.write_text(f"{quick_recipe.read_text()}[compute]\nchannels_last = true\n")
    return path


@pytest.fixture(scope="module")
def straight(dataset: Path, quick_recipe: Path, run_training: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps of 4 pairs on one rank, in one go."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    run_training("base", "--recipe", quick_recipe, "--data", dataset, "--output", output)
    return output


def test_resume_after_sigkill_is_exact(
    straight: Path, dataset: Path, quick_recipe: Path, training_process: Callable, run_training: Run, tmp_path: Path
) -> None:
    """10 steps, SIGKILL, and the same command again: losses and all weights and optimiser states, bit for bit."""
    arguments = ("base", "--recipe", quick_recipe, "--data", dataset, "--output", tmp_path / "run")
    process = training_process(*arguments)
    folder = CheckpointFolder(tmp_path / "run", keep_last=3, writes=False)
    wait_for(folder.newest_name, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert folder.newest_name() == "images-0000000040"
    said = run_training(*arguments)
    assert "resuming from" in said
    assert "40 images" in said
    expected, got = records(straight), records(tmp_path / "run")
    assert sorted(expected) == list(range(4, 84, 4))
    changing = {"time", "images_per_s", "data_wait_percent", "memory_gib"}
    for images in range(44, 84, 4):
        for name in expected[images].keys() - changing:
            assert got[images][name] == expected[images][name], (images, name)
    theirs, ours = (read_tensors(path / "checkpoints" / "images-0000000080") for path in (straight, tmp_path / "run"))
    assert theirs.keys() == ours.keys()
    assert {name.split(".")[0] for name in ours} == {"modules", "ema", "optimizers"}
    different = [name for name, value in theirs.items() if not torch.equal(value, ours[name])]
    assert not different


def test_position_is_kept_on_two_ranks(
    straight: Path, dataset: Path, quick_recipe: Path, run_training: Run, tmp_path: Path
) -> None:
    """From one rank's checkpoint, two ranks see the same pairs: the same losses but for the order of sums."""
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "images-0000000040").symlink_to(straight / "checkpoints" / "images-0000000040")
    arguments = ("base", "--recipe", quick_recipe, "--data", dataset, "--output", tmp_path / "run")
    run_training(*arguments, "--num-images", 48, ranks=2)
    expected, got = records(straight), records(tmp_path / "run")
    assert sorted(got) == [44, 48]
    for images, relative in ((44, 1e-4), (48, 1e-2)):  # rounding grows from step to step, by Adam's quotient
        for name in ("loss", "pixel", "head_pose", "guidance", "equivariance"):
            assert got[images][name] == pytest.approx(expected[images][name], rel=relative), (images, name)
    assert read_run(checkpoints / "images-0000000048")["state"]["step"] == 12


def test_ranks_that_see_different_folders_do_not_train(
    straight: Path, dataset: Path, quick_recipe: Path, tmp_path: Path
) -> None:
    """As two nodes with disks of their own, of which the first has the checkpoints."""
    (tmp_path / "0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "0" / "checkpoints" / "images-0000000040").symlink_to(straight / "checkpoints" / "images-0000000040")
    arguments = ["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", f"{tmp_path}/RANK"]
    program = tmp_path / "program.py"
    program.write_text(f"""
import os
from training.__main__ import main
from training.distributed import leave
leave(main([argument.replace("RANK", os.environ["RANK"]) for argument in {arguments}]))
""")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, str(program)], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert (
        f"error: ranks found different checkpoints in --output {tmp_path}/0 (rank 0 at 40, rank 1 at 0" in done.stderr
    )
    assert not (tmp_path / "1" / "checkpoints").exists()


class EndingLoader:
    """A loader that fails after two batches, as where the data set or a worker has gone."""

    def __init__(self, loader: Any, problem: Exception) -> None:
        self.loader, self.problem, self.order = loader, problem, loader.order

    def __iter__(self) -> Any:
        yield from itertools.islice(self.loader, 2)
        raise self.problem


@pytest.mark.parametrize(
    ("problem", "status"),
    [(ValueError("no shard"), 2), (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 1)],
)
def test_data_that_is_gone_loses_no_step(
    dataset: Path, quick_recipe: Path, tmp_path: Path, monkeypatch, capsys, problem: Exception, status: int
) -> None:
    monkeypatch.setattr(training.loop, "open_loader", lambda *a, **o: EndingLoader(open_loader(*a, **o), problem))
    output = tmp_path / "run"
    assert main(["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", str(output)]) == status
    assert f"error: {problem}. All is saved at 8 images\n" in capsys.readouterr().err
    assert CheckpointFolder(output, keep_last=1, writes=False).names() == ["images-0000000008"]


def test_data_that_one_rank_cannot_read_ends_all_with_everything_saved(
    dataset: Path, quick_recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    arguments = ["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", str(output)]
    program = tmp_path / "program.py"
    program.write_text(f"""
import os
import training.loop
from tests.training.test_loop import EndingLoader
from training.__main__ import main
from training.distributed import leave
from training.stage import open_loader
if os.environ["RANK"] == "1":
    training.loop.open_loader = lambda *a, **o: EndingLoader(open_loader(*a, **o), OSError("the disk of rank 1"))
leave(main({arguments}))
""")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, str(program)], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "error: the disk of rank 1. All is saved at 8 images\n" in done.stderr
    assert CheckpointFolder(output, keep_last=1, writes=False).names() == ["images-0000000008"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_well(
    dataset: Path, quick_recipe: Path, training_process: Callable, tmp_path: Path, number: int, status: int
) -> None:
    output = tmp_path / "run"
    process = training_process("base", "--recipe", quick_recipe, "--data", dataset, "--output", output)
    wait_for(lambda: (output / "metrics.jsonl").exists(), process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "stopped as asked; the same command continues" in said
    name = CheckpointFolder(output, keep_last=3, writes=False).newest_name()
    images = read_run(output / "checkpoints" / name)["state"]["images"]
    assert images == max(records(output))
    assert 0 < images < 80


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_run_leaves_it_its_workers(
    dataset: Path, quick_recipe: Path, training_process: Callable, tmp_path: Path, number: int
) -> None:
    """As Ctrl-C in a terminal and torchrun send it. It comes while held-out pairs are looked at, which is most of the
    time here, so that the run meets its workers again after it."""
    output = tmp_path / "run"
    arguments = ["base", "--recipe", quick_recipe, "--data", dataset, "--output", output, "--num-images", 8000]
    arguments += ["--data.num-workers", 1, "--data.prefetch-batches", 1, "--reports.log-every-images", 4]
    arguments += ["--reports.validate-every-images", 4, "--reports.num-validation", 40]
    process = training_process(*arguments, own_group=True)
    wait_for(lambda: (output / "metrics.jsonl").exists() and len(records(output)) > 1, process)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 0), said
    assert "stopped as asked; the same command continues" in said
    assert "Traceback" not in said
    name = CheckpointFolder(output, keep_last=3, writes=False).newest_name()
    assert read_run(output / "checkpoints" / name)["state"]["images"] == max(records(output)) < 8000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step(
    dataset: Path, quick_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, number: int
) -> None:
    """While the data is opened an import may swallow the interrupt: it is kept until the run can end in order."""

    def opened(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return open_loader(*arguments, **options)

    monkeypatch.setattr(training.loop, "open_loader", opened)
    output = tmp_path / "run"
    status = main(["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", str(output)])
    assert status == (130 if number == signal.SIGINT else 0)
    assert "stopped as asked; the same command continues at 0 images" in capsys.readouterr().err
    assert not (output / "checkpoints").exists()


def test_ranks_stop_when_torchrun_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([7, 7, 1])
    monkeypatch.setattr(distributed, "_LOOK_FOR_TORCHRUN_S", 0.0)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with stop_request() as request:
        distributed._stop_with_torchrun(7)
        time.sleep(0.1)
    assert (request.made, request.by) == (True, signal.SIGTERM)


def test_a_run_that_diverges_stops_with_its_batch(
    dataset: Path, quick_recipe: Path, run_training: Run, tmp_path: Path
) -> None:
    recipe = tmp_path / "hot.toml"
    recipe.write_text(quick_recipe.read_text().replace("learning_rate = 1e-3", "learning_rate = 1e30"))
    said = run_training("base", "--recipe", recipe, "--data", dataset, "--output", tmp_path / "run", status=1)
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "became NaN or infinite after" in error
    assert "as in each of the last 10 steps" in error
    assert "Lower the learning rate" in error
    assert "--allow-other-recipe" not in error, "there is nothing to go on from"
    paths = sorted((tmp_path / "run").glob("nonfinite-*-rank0.safetensors"))
    assert len(paths) == 10
    assert said.count("step lost: ") == 9
    path = next(path for path in paths if str(path) in error)
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("source.images").dtype == torch.uint8
        labels = json.loads(file.metadata()["labels"])
    assert labels["source.clip_ids"]
    assert not all(math.isfinite(float(value)) for value in labels["losses"].values())
    assert CheckpointFolder(tmp_path / "run", keep_last=1, writes=False).newest_name() is None


def test_a_resumed_run_that_diverges_names_the_flag_for_what_it_advises(
    straight: Path, dataset: Path, quick_recipe: Path, tmp_path: Path, capsys
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "images-0000000040").symlink_to(straight / "checkpoints" / "images-0000000040")
    arguments = ["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", str(tmp_path / "run")]
    too_high = ["--optimizer.learning-rate", "1e30", "--num-images", "100"]
    assert main([*arguments, *too_high, "--allow-other-recipe"]) == 1
    said = capsys.readouterr().err
    assert "from images-0000000040. Lower the learning rate or optimizer.max_gradient_norm (with --allow-" in said
    assert main([*arguments, "--num-images", "44", "--optimizer.learning-rate", "1e-4", "--allow-other-recipe"]) == 0


@pytest.fixture
def run_losing(dataset: Path, quick_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs `training base` into `tmp_path / "run"` with steps that only count; those that end at given images are
    lost. Gives the exit status."""

    def run(*arguments: object, lost: set[int], stop_at: int = 0) -> int:
        def step(stage: Any, recipe: Any, batch: Any, state: Any, process: Any) -> dict[str, float]:
            state.images, state.step = state.images + recipe.batch_size, state.step + 1
            if state.images == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"loss": math.nan if state.images in lost else 1.0}

        monkeypatch.setattr(training.loop, "step", step)
        places = ["--recipe", quick_recipe, "--data", dataset, "--output", tmp_path / "run"]
        return main(["base", *map(str, [*places, *arguments])])

    return run


def test_what_is_due_at_a_lost_step_comes_after_the_next_good_one(run_losing: Callable, tmp_path: Path) -> None:
    every = ("--checkpoints.every-images", 8, "--reports.validate-every-images", 8, "--reports.num-validation", 4)
    assert run_losing("--num-images", 24, *every, lost={8, 24}) == 0
    assert [*records(tmp_path / "run", "validation")] == [0, 12, 16, 24]
    names = CheckpointFolder(tmp_path / "run", keep_last=1, writes=False).names()
    assert names == [f"images-00000000{images}" for images in (12, 16, 24)]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_run_that_ends_on_lost_steps_does_not_save_what_may_be_broken(
    run_losing: Callable, tmp_path: Path, capsys, is_stopped: bool
) -> None:
    options = ("--num-images", 40) if is_stopped else ("--num-images", 20)
    assert run_losing(*options, "--checkpoints.every-images", 8, lost={16, 20}, stop_at=20 * is_stopped) == 1
    said = capsys.readouterr().err
    assert "the last state is NOT saved\n" in said
    told = (
        "error: the last 2 steps were lost, and the one before them may have broken the weights: they are not saved; "
    )
    assert f"{told}the run resumes from images-0000000008. Lower" in said
    assert CheckpointFolder(tmp_path / "run", keep_last=1, writes=False).names() == ["images-0000000008"]


def test_what_has_not_met_the_discriminators_is_not_the_best(dataset: Path, quick_recipe: Path, tmp_path: Path) -> None:
    """Nor while the averaged weights have hardly: warm-up 8 and half-life 40, validated at 4 and 8 images."""
    output, recipe = tmp_path / "run", load_recipe(BaseRecipe, "base", str(quick_recipe))
    assert BaseStage(recipe, Process()).best_from_images == 48
    arguments = ["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", str(output)]
    arguments += ["--reports.validate-every-images", "4"]
    assert main([*arguments, "--num-images", "8"]) == 0
    assert len(records(output, "validation")) == 3
    assert CheckpointFolder(output, keep_last=1, writes=False).best_name() is None
    without = dataclasses.replace(recipe.losses, adversarial=0.0, feature_matching=0.0)
    assert BaseStage(dataclasses.replace(recipe, losses=without), Process()).best_from_images == 0


def test_intervals() -> None:
    assert [images for images in range(0, 41, 8) if due(20, images, images - 8)] == [0, 24, 40]
    assert [images for images in range(0, 41, 8) if due(4, images, images - 8)] == [0, 8, 16, 24, 32, 40]
