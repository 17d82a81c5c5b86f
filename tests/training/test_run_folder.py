"""What a run must not write over, and that a refused command changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from training.__main__ import main
from training.base import BaseStage
from training.checkpoints import CheckpointFolder, read_run
from training.run_folder import only_command


@pytest.fixture(scope="module")
def arguments(dataset: Path, quick_recipe: Path) -> list[str]:
    return ["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--device", "cpu", "--output"]


@pytest.fixture(scope="module")
def run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stops at 8 images."""
    output = tmp_path_factory.mktemp("runs") / "base"
    assert main([*arguments, str(output), "--num-images", "8"]) == 0
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_data_set_weights_or_a_file_are_no_folder_for_a_run(
    arguments: list[str], dry, tmp_path: Path, capsys
) -> None:
    for name in ("manifests", "shards"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for name in ("released/liveportrait/base_models/motion_extractor.pth", "one/mine.safetensors", "file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    refusals = {"set": "is a data set", "released": "holds weights", "one": "holds weights", "file": "is a file"}
    for name, words in refusals.items():
        assert main([*arguments, str(tmp_path / name), *dry]) == 2
        assert words in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_folder_that_cannot_be_made_is_told(arguments: list[str], dry, capsys) -> None:
    assert main([*arguments, "/proc/run", *dry]) == 2
    assert capsys.readouterr().err.strip() == "error: cannot write to --output /proc/run: No such file or directory"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--losses.pixel", "3"], 2, "another recipe"),
        (["--num-images", "4"], 0, "finished at 8 images"),
        (["--data", "EMPTY", "--num-images", "80"], 2, "no Parquet files"),
    ],
)
def test_a_command_that_does_not_train_changes_no_recipe(
    arguments: list[str], run: Path, options: list[str], status: int, words: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "empty" / "manifests").mkdir(parents=True)
    options = [str(tmp_path / "empty") if option == "EMPTY" else option for option in options]
    before = (run / "recipe.toml").read_bytes()
    capsys.readouterr()
    assert main([*arguments, str(run), *options]) == status
    assert words in capsys.readouterr().err
    assert (run / "recipe.toml").read_bytes() == before
    assert not (run / ".lock").exists()


def test_stage_two_into_the_run_of_its_base(arguments: list[str], run: Path, capsys) -> None:
    before = contents(run)
    assert main(["stitching", "--recipe", "tiny", *arguments[3:], str(run), "--init", str(run)]) == 2
    assert "is a run of another stage: use another folder" in capsys.readouterr().err
    assert contents(run) == before


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_for_convolutions_alone(arguments: list[str], tf32: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    option = "--compute.tf32" if tf32 else "--compute.no-tf32"
    assert main([*arguments, str(tmp_path / "run"), "--dry-run", option]) == 0
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_one_command_at_a_time(arguments: list[str], tmp_path: Path, capsys) -> None:
    with only_command(tmp_path / "run"):
        assert main([*arguments, str(tmp_path / "run")]) == 2
        assert f"error: process {os.getpid()} on {socket.gethostname()} is training into" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_data_and_other_weights_are_noted(
    arguments: list[str], run: Path, dataset: Path, tmp_path: Path, capsys
) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.copytree(dataset, tmp_path / "moved")
    others = ["--data", str(tmp_path / "moved"), "--init", str(run)]
    assert main([*arguments, str(again), "--num-images", "12", *others]) == 0
    said = capsys.readouterr().err
    assert f"note: until now this run was trained on {dataset}, from here on {tmp_path / 'moved'}" in said
    assert f"note: --init {run} is not read: this run began from random weights" in said
    newest = CheckpointFolder(again, keep_last=1, writes=False).newest_name()
    inputs = read_run(again / "checkpoints" / newest)["inputs"]
    assert {name: inputs[name] for name in ("data", "init")} == {"data": str(tmp_path / "moved"), "init": str(run)}


def test_a_dry_run_looks_into_the_data(arguments: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "empty" / "manifests").mkdir(parents=True)
    assert main([*arguments, str(tmp_path / "run"), "--dry-run", "--data", str(tmp_path / "empty")]) == 2
    assert "no Parquet files" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "pairs", "remedy"),
    [
        ([], "4 pairs", "--compute.micro-batch-size 2, or --compute.recompute up_1 up_0, which takes time"),
        (["--compute.micro-batch-size", "2"], "2 pairs", "--compute.micro-batch-size 1, or --compute.recompute"),
        (["--compute.micro-batch-size", "1"], "1 pair", "--compute.recompute up_1 up_0, which takes time"),
        (["--compute.micro-batch-size", "1", "--compute.recompute", "up_0", "up_1"], "1 pair", "a device with more"),
    ],
)
def test_a_batch_too_large_for_the_device_is_told(
    arguments: list[str], tmp_path: Path, monkeypatch, capsys, options: list[str], pairs: str, remedy: str
) -> None:
    def work(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.")

    monkeypatch.setattr(BaseStage, "training_step", work)
    assert main([*arguments, str(tmp_path / "run"), *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: the memory of cpu does not hold {pairs} at once (CUDA out of memory): use {remedy}")
    assert said.endswith("; the checkpoints so far are good")


def test_a_dry_run_looks_at_what_is_to_be_continued(arguments: list[str], run: Path, capsys) -> None:
    before = contents(run)
    assert main([*arguments, str(run), "--dry-run"]) == 0
    assert "would resume from" in capsys.readouterr().out
    assert main([*arguments, str(run), "--dry-run", "--losses.pixel", "3.5"]) == 2
    assert "was trained with another recipe (losses.pixel" in capsys.readouterr().err
    assert main([*arguments, str(run), "--dry-run", "--losses.pixel", "3.5", "--allow-other-recipe"]) == 0
    assert contents(run) == before
