"""Arguments that a shell's variable left empty, and those in which it left `~`."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.__main__ import main
from model.arguments import require_no_empty, with_home


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["animate", "--source", "", "--driving", "d.mp4", "--output", "o.mp4", "--untrained"], "--source"),
        (["animate", "--source", "s.jpg", "--driving", "d.mp4", "--output=", "--untrained"], "--output"),
        (["retarget", "--source", "s.jpg", "--output", "o.png", "--weights", " "], "--weights"),
        (["serve", "--untrained", "--faces.weights-dir", ""], "--faces.weights-dir"),
        (["inspect", ""], "an argument"),
    ],
)
def test_an_empty_argument_is_no_folder(arguments: list[str], named: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err == (
        f"error: {named} is empty, as from a variable of the shell that is not set: give a value (the current folder "
        "is .)\n"
    )
    assert said.out == ""


def test_options_for_which_nothing_is_a_value() -> None:
    require_no_empty(
        ["--losses.vgg19", "", "--data.index-folder=", "--data", "."], may_be_empty=("--losses.", "--data.")
    )
    with pytest.raises(ValueError, match=r"^--data is empty"):
        require_no_empty(["--losses.vgg19", "", "--data", ""], may_be_empty=("--losses.", "--data."))


def test_home_at_the_start_of_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h/me")
    given = [
        "run",
        "~/a",
        "--output=~/b",
        "--recipe",
        "~",
        "--data=s3://b/~/x",
        "./~",
        "--where=a = '~/c'",
        "--no-open",
    ]
    expected = ["run", "/h/me/a", "--output=/h/me/b", "--recipe", "/h/me", *given[5:]]
    assert with_home(given) == expected


def test_every_path_of_a_command_may_begin_at_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "~/weights"]) == 2
    assert main(["serve", "--weights=~/weights"]) == 2
    assert capsys.readouterr().err.count(f"error: {home}/weights: no such") == 2
    assert main(["retarget", "--source=~/no.png", "--output=~/o.png", "--untrained", "--tiny", "--device", "cpu"]) == 2
    assert f"error: {home}/no.png: no such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
