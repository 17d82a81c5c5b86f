"""`python -m curation` used wrongly: one clear line, exit status 2, and nothing made. And what each command shows."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

import pytest

from curation import demo
from curation.__main__ import COMMANDS, main
from curation.pipeline import open_dataset
from curation.recipe import Recipe, load_recipe, recipe_of, recipe_toml
from curation.rules import RULES
from manifests.store import Dataset, read_table


@pytest.fixture
def video(tmp_path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"not read in these tests")
    return path


def error_of(capsys, *arguments: object) -> str:
    """The one line that the command prints on standard error; it must end with status 2."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_missing_input(tmp_path, capsys):
    line = error_of(capsys, "run", tmp_path / "nowhere.mp4", "--output", tmp_path / "out")
    assert line == f"error: no such file or folder: {tmp_path}/nowhere.mp4"
    assert not (tmp_path / "out").exists()


def test_paths_may_begin_at_home(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    assert f"{tmp_path}/own/mine.toml" in error_of(capsys, "run", "v.mp4", "--output=~/out", "--recipe=~/mine.toml")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "dataset").write_text("")
    assert f"{tmp_path}/own/dataset" in error_of(capsys, "card", "~/dataset", "--output=~/card.md")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_empty_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = error_of(capsys, "run", tmp_path / "empty", "--output", tmp_path / "out")
    assert line.startswith(f"error: nothing to curate in {tmp_path}/empty")
    assert not (tmp_path / "out").exists()


def test_output_that_is_no_data_set(tmp_path, video, capsys):
    out = tmp_path / "holiday"
    out.mkdir()
    (out / "beach.jpg").write_bytes(b"mine")
    line = error_of(capsys, "run", video, "--output", out)
    assert "exists and is no data set" in line
    assert "name a new or an empty folder" in line
    assert [p.name for p in out.iterdir()] == ["beach.jpg"]


def test_leftovers_of_a_run_that_was_killed_at_once_are_no_obstacle(tmp_path):
    out = tmp_path / "out"
    (out / "staging").mkdir(parents=True)
    (out / ".lock").touch()
    (out / ".recipe.toml.123.tmp").write_text("seed = ")
    assert open_dataset(out).root == out
    (out / "staging" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="is no data set"):
        open_dataset(out)


def test_output_that_is_a_file(tmp_path, video, capsys):
    assert "is no data set" in error_of(capsys, "run", video, "--output", video)
    assert video.read_bytes() == b"not read in these tests"
    assert "cannot write to" in error_of(capsys, "run", video, "--output", video / "below")


def test_output_of_another_recipe_version(tmp_path, video, capsys):
    out = tmp_path / "old"
    out.mkdir()
    text = recipe_toml(Recipe()).replace("recipe_version = 1", "recipe_version = 99")
    (out / "recipe.toml").write_text(text)
    for arguments in (("run", video, "--output", out), ("select", "--output", out)):
        line = error_of(capsys, *arguments)
        assert "is for recipe version 99, this program has version 1" in line
        assert "another output folder" in line
    assert (out / "recipe.toml").read_text() == text


def test_unknown_key_of_a_recipe(tmp_path, video, capsys):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[scan]\nsample_rate = 8\n")
    for arguments in (("--recipe", recipe), (f"--recipe={recipe}",)):
        line = error_of(capsys, "run", video, "--output", tmp_path / "out", *arguments)
        assert "unknown key 'sample_rate'; valid keys are sample_fps, cut_ratio" in line
    assert not (tmp_path / "out").exists()


def test_unknown_preset(tmp_path, video, capsys):
    line = error_of(capsys, "run", video, "--output", tmp_path / "out", "--recipe", "liveportait")
    assert "expected one of default, lenient, liveportrait" in line


def test_another_run_is_writing(tmp_path, video, capsys):
    out = tmp_path / "busy"
    out.mkdir()
    (out / "recipe.toml").write_text(recipe_toml(Recipe()))
    with open(out / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another run is writing to" in error_of(capsys, "run", video, "--output", out)
        assert "another run is writing to" in error_of(capsys, "select", "--output", out)


@pytest.mark.parametrize("command", ["select", "review"])
def test_no_data_set(tmp_path, capsys, command):
    option = ["--output"] if command == "select" else []
    line = error_of(capsys, command, *option, tmp_path / "nowhere")
    assert "no data set at" in line
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_select_before_there_are_clips(tmp_path, capsys, dry):
    (tmp_path / "recipe.toml").write_text(recipe_toml(Recipe()))
    assert "has no clips yet" in error_of(capsys, "select", "--output", tmp_path, *dry)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "VIDEO", "--output", "OUT", "--scan.sample-rate", "8"), "sample-fps"),
        (("run", "VIDEO", "--output", "OUT", "--crop.size-px", "large"), "large"),
        (("run", "VIDEO", "--output", "OUT", "--decoder", "vlc"), "pyav"),
        (("run", "VIDEO", "--output", "OUT", "--faces", "dlib"), "insightface"),
        (("run", "VIDEO", "--output", "OUT", "--faces=dlib"), "insightface"),
        (("run", "VIDEO", "--output", "OUT", "--crop.jpeg-quality", "0"), "jpeg_quality is 0, expected 1 to 100"),
        (("run", "VIDEO"), "--output"),
        (("run", "--output", "OUT"), "(?i)nothing to curate|inputs"),
        (("run", "", "--output", "OUT"), "the name of an input is empty: for all below the current folder write ."),
        (("run", "VIDEO", "--output", ""), "the name of a folder or file is empty"),
        (("select", "--output", ""), "the name of a folder or file is empty"),
        (("run", "VIDEO", "--output", "OUT", "--recipe", ""), "the name of a folder or file is empty"),
        (("demo", "--output", "OUT", "--gpus-per-worker", "0.5"), "Unrecognized options: --gpus-per-worker"),
        (("curate",), "unknown command .curate."),
        ((), "usage: python -m curation COMMAND"),
    ],
)
def test_wrong_options_are_explained(tmp_path, video, capsys, arguments, words):
    places = {"VIDEO": str(video), "OUT": str(tmp_path / "out")}
    try:
        status = main([places.get(a, a) for a in arguments])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2
    assert re.search(words, captured.err), captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: python -m curation {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_arguments_starts_or_says_what_it_needs(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run_demo", lambda output, options: 0)
    needs_none = command in ("demo", "weights", "rules")
    try:
        status = main([command])
    except SystemExit as error:
        status = error.code
    shown = capsys.readouterr().err
    assert (status, shown.startswith("error: ")) == (0 if needs_none else 2, False)
    assert needs_none or f"Missing from python -m curation {command}:" in shown
    assert not list(tmp_path.iterdir())


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", text, re.MULTILINE)


def test_printed_commands_can_be_copied(sources, tmp_path, capsys):
    """Also where the folder's name has blanks."""
    folder = tmp_path / "my set"
    assert main(["demo", "--output", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"(python -m manifests '{folder}')" in shown
    assert f"ask it:     python -m manifests '{folder}' \"SELECT" in shown
    assert main(["forget", str(folder), "--source", "sway.mp4", "--yes"]) == 0
    assert f"removed; `python -m curation verify '{folder}'` checks" in capsys.readouterr().out
    assert main(["card", str(folder)]) == 0
    assert "\npython -m curation verify 'my set'\n" in (folder / "report" / "card.md").read_text()


def test_a_card_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    """Told before the data set is read."""
    monkeypatch.chdir(tmp_path)
    for output, said in (
        ("absent/card.md", "its folder does not exist"),
        ("", "it is a folder"),
        ("/proc/c.md", "No "),
    ):
        assert f"cannot write {output or '.'}: {said}" in error_of(capsys, "card", "dataset", "--output", output)
    assert not list(tmp_path.iterdir())


def test_rules_are_listed(capsys):
    assert main(["rules", "--recipe", "lenient"]) == 0
    text = capsys.readouterr().out
    for rule in RULES:
        assert rule.name in text
    assert "72.0" in text, "the preset's threshold"
    shown = {line.split()[0]: line.split()[2:4] for line in text.splitlines()}
    for name in ("too_long", "low_quality", "licence_not_allowed"):
        assert shown[name] == ["off", "always"]


def test_select_keeps_the_options_of_the_data_set(demo_copy, capsys):
    assert main(["select", "--output", str(demo_copy), "--select.max-yaw-deg", "60"]) == 0
    assert main(["select", "--output", str(demo_copy), "--select.min-face-px", "none"]) == 0
    assert main(["select", "--output", str(demo_copy), "--select.max-roll-deg=none"]) == 0
    recipe = recipe_of(demo_copy)
    assert (recipe.select.max_yaw_deg, recipe.select.min_face_px) == (60.0, None)
    assert recipe.select.max_roll_deg is None
    assert "kept of" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_select_writes_no_number_that_toml_could_not_hold(demo_copy, capsys, number):
    before = (demo_copy / "recipe.toml").read_bytes()
    line = error_of(capsys, "select", "--output", demo_copy, f"--select.max-yaw-deg={number}")
    assert f"max_yaw_deg is {number}, expected" in line
    assert (demo_copy / "recipe.toml").read_bytes() == before


@pytest.mark.parametrize("is_dry", [False, True])
def test_select_refuses_what_only_a_run_can_apply(demo_copy, capsys, is_dry):
    files = (demo_copy / "recipe.toml", *(demo_copy / "manifests").rglob("*.parquet"))
    before = {p: p.stat().st_mtime_ns for p in files}
    dry = ["--dry-run"] if is_dry else []
    line = error_of(capsys, "select", "--output", demo_copy, "--scan.min-clip-s", "4", "--seed", "5", *dry)
    assert "cannot change scan.min_clip_s (1.5 -> 4.0): give that to `run`" in line
    line = error_of(capsys, "select", "--output", demo_copy, "--decoder=decord", "--pack.shard-bytes", "9", *dry)
    assert "decoder (pyav -> decord), pack.shard_bytes (1000000000 -> 9)" in line
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_of_an_option_that_is_given_twice_the_last_counts(demo_copy, tmp_path):
    """Also of those that say from where the others start."""
    lenient = tmp_path / "recipe.toml"
    lenient.write_text(recipe_toml(load_recipe("lenient")))
    assert main(["select", "--output", str(tmp_path), "--output", str(demo_copy), "--select.max-yaw-deg", "60"]) == 0
    assert recipe_of(demo_copy).select.min_face_px == Recipe().select.min_face_px


def test_select_applies_the_seed(demo_copy):
    assert main(["select", "--output", str(demo_copy), "--seed", "5"]) == 0
    assert recipe_of(demo_copy).seed == 5


def test_dry_run_changes_nothing(demo_copy, capsys):
    before = {p: p.stat().st_mtime_ns for p in demo_copy.rglob("*")}
    assert main(["select", "--output", str(demo_copy), "--dry-run", "--select.min-sharpness", "0.9"]) == 0
    blurred = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("blurred"))
    assert int(blurred[-9]) >= 3, "clips that this rule alone would cost"
    assert {p: p.stat().st_mtime_ns for p in demo_copy.rglob("*")} == before


def test_select_tells_what_changes_before_and_after_it_does(demo_copy, tmp_path, capsys):
    options = ["select", "--output", str(demo_copy), "--select.min-sharpness", "0.9", "--changes-output"]
    kept = [c["clip_id"] for c in read_table(Dataset(demo_copy), "clips").to_pylist() if c["decision"] == "keep"]
    assert main([*options, str(tmp_path / "dry.csv"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines == [f"kept clips: {len(kept)} before, 0 now", f"  newly rejected: {len(kept)} (blurred {len(kept)})"]
    assert main([*options, str(tmp_path / "real.csv")]) == 0
    assert lines == [line for line in capsys.readouterr().err.splitlines() if "kept clips" in line or "newly" in line]
    assert [line.split(",")[0] for line in (tmp_path / "dry.csv").read_text().splitlines()] == ["clip_id", *kept]
    assert (tmp_path / "real.csv").read_bytes() == (tmp_path / "dry.csv").read_bytes()
    last = read_table(Dataset(demo_copy), "runs").to_pylist()[-1]
    assert (last["num_kept"], last["decision_changes"]) == (0, [line.strip() for line in lines])
    assert main([*options, str(tmp_path / "again.csv"), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no decision and no split would change"
    assert "is inside the data set" in error_of(capsys, *options, demo_copy / "manifests" / "changes.csv")
