"""Stage II on the command line: from a base model to one export with all small networks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from model.networks import LivePortrait
from training.__main__ import main
from training.correction_commands import LANDMARKS
from training.export import BASE_WEIGHTS, load_portrait
from training.landmarks_command import load_landmarks

QUICK = (
    *("--recipe", "tiny", "--batch-size", "2", "--data.num-workers", "0", "--reports.pictures-every-images", "0"),
    *("--reports.validate-every-images", "0", "--device", "cpu"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained base model on the disk; it moves, but means nothing."""
    folder = tmp_path_factory.mktemp("base") / "weights"
    LivePortrait.untrained(0, ModelConfig.tiny()).save(folder)
    return folder


@pytest.fixture(scope="module")
def landmarks(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "landmarks"
    assert main(["landmarks", *QUICK, "--num-images", "8", "--data", str(dataset), "--output", str(output)]) == 0
    return output


def test_landmark_run_gives_a_frozen_network(landmarks: Path) -> None:
    network = load_landmarks(landmarks)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network(torch.rand(1, 3, 100, 100)).shape == (1, 68, 2)


def test_a_folder_that_is_no_landmark_run_is_not_offered_to_be_trained_into(base: Path) -> None:
    with pytest.raises(ValueError, match="nothing there; make a run with `python -m training landmarks"):
        load_landmarks(base / "new")
    with pytest.raises(ValueError, match="is no run; expected the folder that `training landmarks` wrote into"):
        load_landmarks(base)


def test_retargeting_learns_resumes_and_exports(
    base: Path, landmarks: Path, models: Path, dataset: Path, tmp_path: Path, capsys, caplog
) -> None:
    """Resumed, it needs the landmark network no more that it began with."""
    runs = {}
    judge = shutil.copytree(landmarks, tmp_path / "judge")
    for left in (LANDMARKS, f".{BASE_WEIGHTS}"):  # of starts that came to nothing
        (tmp_path / "lip" / left / "part").mkdir(parents=True)
    judges = {"eyes": ["--landmarks", str(judge)], "lip": ["--weights-dir", str(models / "open")]}
    for part, network in (("eyes", "retarget_eye"), ("lip", "retarget_lip")):
        runs[network] = tmp_path / part
        arguments = ["retargeting", "--part", part, *QUICK, "--data", str(dataset), "--init", str(base)]
        arguments += [*judges[part], "--output", str(tmp_path / part)]
        assert main([*arguments, "--num-images", "4"]) == 0
        shutil.rmtree(judge, ignore_errors=True)
        assert main([*arguments, "--num-images", "6"]) == 0
        assert (tmp_path / part / LANDMARKS).exists() == (part == "eyes")
        assert not (tmp_path / part / BASE_WEIGHTS / "part").exists()
        assert "4 images" in capsys.readouterr().err  # resumed
        other = ["--landmarks", "facemesh" if part == "eyes" else str(landmarks)]
        assert main([*arguments, *other, "--num-images", "8"]) == 0
        assert f"{other[1]} is not read: this run began with" in caplog.text
        assert main([*arguments, "--model.num-middle-blocks", "3"]) == 2
        assert f"is 3, but the run in {tmp_path / part} has 2: the sizes" in capsys.readouterr().err
        assert (tmp_path / part / LANDMARKS).exists() == (part == "eyes")
        start, trained = LivePortrait.from_pretrained(base), load_portrait(tmp_path / part)
        for name, module in trained.networks().items():
            same = all(torch.equal(v, module.state_dict()[k]) for k, v in getattr(start, name).state_dict().items())
            assert same == (name != network), name
    merged = tmp_path / "merged"
    assert main(["export", str(base), *map(str, runs.values()), "--output", str(merged)]) == 0
    weights = LivePortrait.from_pretrained(merged)
    for network, run in runs.items():
        expected = getattr(load_portrait(run), network).state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in getattr(weights, network).state_dict().items())
    lip = str(runs["retarget_lip"])
    for twice in ([str(base), lip, lip], [lip, lip]):
        assert main(["export", *twice, "--output", str(tmp_path / "twice")]) == 2
        assert f"{lip} and {lip} both give retarget_lip: leave one of them out" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()


def test_stitching_needs_two_persons(base: Path, dataset: Path, tmp_path: Path, capsys) -> None:
    arguments = ["stitching", *QUICK, "--num-images", "4", "--data", str(dataset), "--init", str(base)]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "pairs of two persons need two, but the split has only one, in " in error
    assert "give --data one that shows several persons" in error


def test_stitching_on_real_people(base: Path, dataset: Path, media_dataset: Path, tmp_path: Path) -> None:
    """Also after a start that came to nothing: its base model is not the one of this run."""
    other = tmp_path / "other"
    LivePortrait.untrained(1, ModelConfig.tiny()).save(other)
    command = ["stitching", *QUICK, "--num-images", "4", "--output", str(tmp_path / "run")]
    assert main([*command, "--data", str(dataset), "--init", str(other)]) == 2
    assert main([*command, "--data", str(media_dataset), "--init", str(base)]) == 0
    trained, start = load_portrait(tmp_path / "run"), LivePortrait.from_pretrained(base)
    assert trained.stitching.mlp[-1].weight.any()
    expected = start.appearance.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trained.appearance.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--init", "nowhere"], "--init nowhere does not exist"),
        (["--landmarks", "my run"], "python -m training landmarks --output 'my run'`"),
        (
            ["--landmarks", "facemesh", "--weights-dir", "nowhere"],
            "with --weights-dir, or a run of `training landmarks`",
        ),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], words: str, base: Path, landmarks: Path, dataset: Path, tmp_path: Path, capsys
) -> None:
    given = {"--init": str(base), "--landmarks": str(landmarks)} | dict(
        zip(arguments[::2], arguments[1::2], strict=True)
    )
    options = [item for pair in given.items() for item in pair]
    command = ["retargeting", "--part", "lip", *QUICK, "--data", str(dataset), "--output", str(tmp_path / "run")]
    assert main([*command, *options]) == 2
    assert words in capsys.readouterr().err
