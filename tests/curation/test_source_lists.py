"""CSV files as spreadsheets and hands write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.index import list_inputs
from curation.recipe import IndexOptions


def _names(folder: Path, text: str) -> list[str]:
    (folder / "list.csv").write_bytes(text.encode())
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"video")
    return [Path(unit["uri"]).name for unit in list_inputs([str(folder / "list.csv")], IndexOptions())]


@pytest.mark.parametrize(
    "text",
    [
        "uri,licence\na.mp4,CC\nb.mp4,CC\n,\n,,\n",
        "\ufeffURI,Licence\r\na.mp4,CC\r\n\r\nb.mp4,CC\r\n,\r\n",
        'uri,licence\n"a.mp4","a ""free"" one"\nb.mp4,John "Jack" Doe\n',
    ],
    ids=["empty_rows", "spreadsheet", "quotes"],
)
def test_lists_that_are_read(tmp_path: Path, text: str) -> None:
    assert _names(tmp_path, text) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('uri,licence\n"a.mp4,CC\nb.mp4,CC\n', "after line 1: unexpected end of data"),
        ('uri,licence\na.mp4,"CC\nb.mp4,CC\n', "after line 1: unexpected end of data"),
        ("uri,licence\na.mp4,CC\n,CC\n", "row 2 has no uri"),
    ],
    ids=["open_name", "open_licence", "no_uri"],
)
def test_rows_are_not_lost_in_a_damaged_list(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _names(tmp_path, text)
