"""The command line: help that teaches, errors of one line and status 2, export."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from model.checkpoint import BASE_FILES, RETARGETING_FILE, load_checkpoint
from model.networks import LivePortrait
from training.__main__ import COMMANDS, main
from training.export import HELD_OUT_FILE, load_portrait


@pytest.fixture(scope="module")
def run(dataset: Path, quick_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run in this process, with pictures and validation."""
    output = tmp_path_factory.mktemp("runs") / "base"
    arguments = ["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", str(output)]
    arguments += ["--num-images", "16", "--reports.validate-every-images", "8", "--reports.pictures-every-images", "16"]
    arguments += ["--optimizer.ema-half-life-images", "8"]  # after a warm-up of 8: the best may be at 16 images
    assert main([*arguments, "--device", "cpu"]) == 0
    return output


def test_a_run_leaves_what_the_readme_says(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        "checkpoints", "metrics.jsonl", "pictures", "recipe.toml", "tensorboard",
    }  # fmt: skip
    assert [path.name for path in sorted((run / "pictures").iterdir())] == [
        "images-0000000000.png",
        "images-0000000016.png",
    ]
    text = (run / "metrics.jsonl").read_text()
    assert text.count('"kind": "validation"') == 3
    assert '"copy_l1_face"' in text
    assert (run / "checkpoints" / "best").read_text() == "images-0000000016"


def test_export_has_the_released_files_and_the_averaged_weights(run: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(run), "--output", str(tmp_path / "weights"), "--checkpoint", "latest"]) == 0
    assert "images-0000000016" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "weights").iterdir()}
    assert names == {*BASE_FILES.values(), RETARGETING_FILE, "model_config.json", HELD_OUT_FILE}
    portrait = LivePortrait.from_pretrained(tmp_path / "weights")
    direct = load_portrait(run, which="latest")
    last = load_portrait(run, average=False, which="latest")
    assert portrait.config.image_size == 32
    for name, network in portrait.networks().items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, getattr(direct, name).state_dict()[key])
    assert not torch.equal(direct.generator.fc.weight, last.generator.fc.weight)


def test_export_says_what_was_never_trained_and_spares_runs(run: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "my weights.safetensors"
    assert main(["export", str(run), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert f"{output}: written; try `python -m model inspect '{output}'`" in said
    for name, command in (("stitching", "stitching"), ("retarget_eye", "retargeting --part eyes")):
        assert f"not trained: {name}, which changes nothing yet (training {command})" in said
    assert main(["export", str(run), "--output", str(run)]) == 2
    assert "is the folder of a run" in capsys.readouterr().err
    assert not list(run.glob("*.pth"))


def test_export_says_which_runs_it_expects(run: Path, tmp_path: Path, capsys) -> None:
    for other, what in ((run, "a run of `training base`"), (tmp_path, "no run with checkpoints")):
        assert main(["export", str(run), str(other), "--output", str(tmp_path / "weights")]) == 2
        error = capsys.readouterr().err
        assert f"{other} is {what}: expected first a run of `training base` (or weights), after it only " in error
        assert "`training stitching` and `training retargeting` (eyes, lip)" in error
    assert main(["export", "--output", str(tmp_path / "weights")]) == 2
    assert "name the folder of a run of `training base`, then those of stage II" in capsys.readouterr().err


def test_an_export_that_is_ended_leaves_no_part(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    save = torch.save

    def end_meanwhile(state: dict, file: str) -> None:
        save(state, file)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(torch, "save", end_meanwhile)
    assert main(["export", str(run), "--output", str(tmp_path / "weights")]) == 143
    assert capsys.readouterr().err == "interrupted\n"
    assert list((tmp_path / "weights").iterdir()) == []


def test_exported_weights_inspect_and_start_a_finetuning(
    run: Path, quick_recipe: Path, dataset: Path, tmp_path: Path, capsys
) -> None:
    weights = tmp_path / "weights.safetensors"
    assert main(["export", str(run), "--output", str(weights)]) == 0
    from model.__main__ import main as model_main

    assert model_main(["inspect", str(weights)]) == 0
    portrait = LivePortrait.from_pretrained(weights)
    torch.nn.init.ones_(portrait.stitching.mlp[-1].bias)  # as if it were trained
    portrait.save(weights)
    arguments = ["base", "--recipe", str(quick_recipe), "--data", str(dataset), "--output", str(tmp_path / "tuned")]
    assert main([*arguments, "--init", str(weights), "--num-images", "4"]) == 0
    said = capsys.readouterr().err
    assert "pitch: correlation" in said
    assert "guidance landmarks follow the key points" in said
    start, tuned = load_portrait(weights), load_portrait(tmp_path / "tuned", average=False)
    difference = (start.generator.fc.weight - tuned.generator.fc.weight).abs().max().item()
    assert 0 < difference <= 1.1e-3  # one step of Adam at 1e-3
    capsys.readouterr()
    assert main(["export", str(weights), "--output", str(tmp_path / "again")]) == 0
    assert "stitching" not in capsys.readouterr().out
    assert main(["export", str(tmp_path / "tuned"), "--output", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "not trained on this base: stitching, which is as in the weights that it began from (training s" in said
    assert "not trained: retarget_eye, which changes nothing yet" in said


def test_weights_to_start_from_set_the_sizes_and_are_read_once(
    run: Path, quick_recipe: Path, dataset: Path, tmp_path: Path, capsys
) -> None:
    """A run that has begun needs them no more; sizes that they do not have are refused, then and later."""
    weights = tmp_path / "weights"
    assert main(["export", str(run), "--output", str(weights)]) == 0
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(quick_recipe.read_text().replace("base_channels = 4\nmax", "base_channels = 8\nmax", 1))
    arguments = ["base", "--recipe", str(recipe), "--data", str(dataset), "--output", str(tmp_path / "tuned")]
    arguments += ["--init", str(weights)]
    assert main([*arguments, "--num-images", "4", "--model.num-middle-blocks", "2"]) == 2
    assert f"--model.num-middle-blocks is 2, but --init {weights} has 1: the sizes" in capsys.readouterr().err
    assert main([*arguments, "--num-images", "4"]) == 0
    weights.rename(tmp_path / "elsewhere")
    assert main([*arguments, "--num-images", "8"]) == 0
    assert "4 images" in capsys.readouterr().err  # resumed
    assert load_portrait(tmp_path / "tuned").config.base_channels == 4
    assert main([*arguments, "--num-images", "12", "--model.base-channels", "16"]) == 2
    assert f"--model.base-channels is 16, but the run in {tmp_path / 'tuned'} has 4" in capsys.readouterr().err


def test_full_size_export_has_exactly_the_released_keys(reference: Path, tmp_path: Path) -> None:
    """Names and shapes of the files that the export writes at the published size against the released ones."""
    import json

    portrait = LivePortrait.untrained()
    portrait.save(tmp_path / "weights")
    assert not (tmp_path / "weights" / "model_config.json").exists()
    shapes = json.loads((reference / "state_dict_shapes.json").read_text())
    for name, state in load_checkpoint(tmp_path / "weights").networks.items():
        released = next(value for key, value in shapes.items() if released_name(key) == name)
        assert {key: list(value.shape) for key, value in state.items()} == {k: list(v) for k, v in released.items()}


def released_name(key: str) -> str:
    """Our name of a network of the reference file."""
    return {
        "appearance_feature_extractor": "appearance",
        "motion_extractor": "motion",
        "warping_module": "warping",
        "spade_generator": "generator",
    }.get(key, key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base", "--data", "nowhere"], "error: --data nowhere: no data set there; expected a folder with manifests/"),
        (["base", "--recipe", "papre"], "error: no recipe 'papre': expected one of finetune, paper"),
        (["base", "--recipe", "tiny", "--init", "nothing"], "error: --init nothing does not exist: give the folder"),
        (["base", "--recipe", "papre", "--recipe", "other"], "error: no recipe 'other': expected one of finetune"),
        (["export", "nowhere", "--output", "w"], "error: nowhere: no such file or folder"),
        (["base", "--recipe", "tiny", "--data", ""], "error: --data is empty, as from a variable of the shell"),
        (["base", "--recipe", "tiny", "--output", ""], "error: --output is empty"),
        (["base", "--recipe", "tiny", "--init="], "error: --init is empty"),
        (["stitching", "--init", " "], "error: --init is empty"),
        (["retargeting", "--part", "lip", "--init", "w", "--landmarks", ""], "error: --landmarks is empty"),
        (["evaluate", "--weights", "", "--data", "d"], "error: --weights is empty"),
        (["export", "", "--output", "w"], "error: an argument is empty"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments: list[str], message: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base", "--recipe=~/mine.toml"], "error: no recipe '{home}/mine.toml'"),
        (["base", "--recipe", "tiny", "--data=~/d"], "error: --data {home}/d: no data set there"),
        (["base", "--recipe", "tiny", "--init=~/w"], "error: --init {home}/w does not exist"),
        (["export", "~/w", "--output=~/o"], "error: {home}/w: no such file or folder"),
    ],
)
def test_paths_may_begin_at_home(arguments: list[str], message: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message.format(home=tmp_path / "home"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["base", "--recpe", "tiny"], ["bass"]])
def test_wrong_use_is_told_by_the_first_rank_alone(arguments: list[str], capsys, monkeypatch) -> None:
    told = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr("training.__main__._OTHER_RANKS_WAIT_S", 0.0)
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
        told[rank] = "".join(capsys.readouterr())
    assert arguments[-1] in told["0"] or "--recpe" in told["0"]
    assert told["1"] == ""


@pytest.mark.parametrize("command", [["evaluate", "--weights", "w", "--data", "d"], ["export", "w", "--output", "o"]])
def test_what_works_in_one_process_is_not_for_torchrun(command: list[str], capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    words = "works in one process, and torchrun starts several: use `python -m training"
    assert capsys.readouterr().err == f"error: {command[0]} {words} {command[0]}`\n"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(command) == 2
    assert "torchrun" not in capsys.readouterr().err


def test_an_unknown_key_of_a_recipe_is_named(tmp_path: Path, capsys) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[losses]\nperceptive = 1.0\n")
    assert main(["base", "--recipe", str(path)]) == 2
    assert "unknown key 'perceptive'; valid keys are equivariance" in capsys.readouterr().err


def test_missing_feature_weights_and_bfloat16_on_a_cpu(dataset: Path, tmp_path: Path, capsys) -> None:
    arguments = ["base", "--recipe", "tiny", "--data", str(dataset), "--output", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--losses.perceptual", "1"]) == 2
    assert "pass --allow-random-features" in capsys.readouterr().err
    assert main([*arguments, "--compute.precision", "bfloat16"]) == 2
    assert "use --compute.precision float32, or a GPU" in capsys.readouterr().err


def test_dry_run_trains_nothing(dataset: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "run"
    arguments = ["base", "--recipe", "tiny", "--data", str(dataset), "--output", str(output), "--device", "cpu"]
    assert main([*arguments, "--dry-run", "--losses.pixel", "3.5"]) == 0
    said = capsys.readouterr().out
    assert "pixel = 3.5" in said
    assert "64 px in, 128 px out; 2,400 images in batches of 8" in said
    assert not output.exists()


def test_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "torchrun --standalone --nproc-per-node 8 -m training base" in said
    assert all(name in said for name in COMMANDS)
    with pytest.raises(SystemExit) as ended:
        main(["bass"])
    assert ended.value.code == 2
    assert "unknown command 'bass'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["base", "--help"])
    assert "--losses.perceptual" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m training {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_arguments_says_what_it_needs(command: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main([command])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    said = capsys.readouterr().err
    assert f"Missing from python -m training {command}:" in said or "--data demo_dataset: no data set there" in said
    assert not list(tmp_path.iterdir())
