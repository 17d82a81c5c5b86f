"""What is printed is what the files are called."""

from __future__ import annotations

from rich.table import Table

from manifests.console import amount, few, make_console


def test_names_stay_as_they_are(capsys):
    name = "/v/Interview [dQw4w9WgXcQ] :cat: [/red].mp4"
    table = Table(title=name)
    table.add_row(name)
    console = make_console()
    console.print(name)
    console.print(table)
    assert capsys.readouterr().out.count(name) == 3


def test_amounts_have_their_plurals():
    amounts = [amount(1, "clip"), amount(0, "clip"), amount(2_000, "clip"), amount(2, "identity", "identities")]
    assert amounts == ["1 clip", "0 clips", "2,000 clips", "2 identities"]


def test_of_many_names_the_first_are_told():
    assert few(["a", "b", "c"], 2) == "a, b and 1 more"
    assert few(["a", "b"], 2) == "a, b"
    assert few([]) == ""
