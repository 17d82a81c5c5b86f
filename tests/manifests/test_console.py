"""What is printed is what the files are called."""

from __future__ import annotations

from rich.table import Table

from manifests.console import make_console


def test_names_stay_as_they_are(capsys):
    name = "/v/Interview [dQw4w9WgXcQ] :cat: [/red].mp4"
    table = Table(title=name)
    table.add_row(name)
    console = make_console()
    console.print(name)
    console.print(table)
    assert capsys.readouterr().out.count(name) == 3
