"""Arguments that a shell's variable left empty."""

from __future__ import annotations

import pytest

from model.__main__ import main
from model.arguments import require_no_empty


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
