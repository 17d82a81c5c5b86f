"""CSV files as spreadsheets and hands write them."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.index import IndexStage, list_inputs
from curation.recipe import IndexOptions, Recipe


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
        "uri,licence,\na.mp4,CC,\nb.mp4,CC, ,\n",
        "\n,uri,licence\n0,a.mp4,CC\n1,b.mp4\n",
    ],
    ids=["empty_rows", "spreadsheet", "quotes", "commas_at_the_end", "numbered_rows"],
)
def test_lists_that_are_read(tmp_path: Path, text: str) -> None:
    assert _names(tmp_path, text) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('uri,licence\n"a.mp4,CC\nb.mp4,CC\n', "after line 1: unexpected end of data"),
        ('uri,licence\na.mp4,"CC\nb.mp4,CC\n', "after line 1: unexpected end of data"),
        ("uri,licence\na.mp4,CC\n,CC\n", "row 2 has no uri"),
        ("uri,attribution,licence\na.mp4,Jo,CC\nb.mp4,Doe, Jane,CC\n", r"list.csv: row 2 has more cells .* \('CC'\)"),
        (
            "uri,licence,attribution,\na.mp4,CC,Doe, Jane\n",
            r"row 1 has more cells than .* \('Jane'\)",
        ),
        ("uri,licence,license\na.mp4,CC0,CC0\nb.mp4,CC0,CC\n", "row 2 has the licence 'CC0' and the license 'CC'"),
    ],
    ids=["open_name", "open_licence", "no_uri", "comma", "comma_and_no_name", "two_licences"],
)
def test_rows_are_not_lost_in_a_damaged_list(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _names(tmp_path, text)


@pytest.mark.parametrize("text", ["uri,licence,license\na.mp4,,CC0\n", "uri,License,licence\na.mp4,CC0,CC0\n"])
def test_licence_in_either_spelling(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    (unit,) = list_inputs([str(tmp_path / "list.csv")], IndexOptions())
    assert unit["columns"] == {"licence": "CC0"}


def test_missing_numbers_of_a_parquet_list_say_nothing(tmp_path: Path) -> None:
    """As a table of pandas holds empty cells."""
    nan = math.nan
    rows = {"uri": ["a.mp4", "b.mp4"], "licence": [nan, nan], "form": [7.0, nan], "note": ["nan", None]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    units = list_inputs([str(tmp_path / "list.parquet")], IndexOptions())
    assert [unit["columns"] for unit in units] == [{"form": "7.0", "note": "nan"}, {}]


def test_an_object_that_a_store_refuses_costs_itself_only(s3, flaky_s3, tmp_path: Path, monkeypatch) -> None:
    """Where it refuses all, the key is wrong, and nothing is begun."""
    flaky_s3.failed_share, refused = 0.0, ["/data/raw/b.mp4"]
    failure_of = flaky_s3.failure_of

    def refuse(method: str, path: str) -> str:
        return "access denied" if path in refused else failure_of(method, path)

    monkeypatch.setattr(flaky_s3, "failure_of", refuse)
    for name in ("a.mp4", "b.mp4"):
        s3.put_object(Bucket="data", Key=f"raw/{name}", Body=b"video")
    listed = tmp_path / "list.csv"
    listed.write_text("uri\ns3://data/raw/a.mp4\ns3://data/raw/b.mp4\ns3://No Bucket/c.mp4\n")
    units = list_inputs([str(listed)], IndexOptions())
    assert [(unit["uri"][-5:], unit["size_bytes"]) for unit in units] == [
        ("c.mp4", None),
        ("a.mp4", 5),
        ("b.mp4", None),
    ]
    stage = IndexStage(Recipe(), tmp_path)
    with pytest.raises(PermissionError, match="the key is wrong or may not do that"):
        stage.process(units[2])
    (row,) = stage.process(units[0]).rows["failures"]
    assert row["reason"] == "not_found"
    assert "Invalid bucket name" in row["message"]
    refused.append("/data/raw/a.mp4")
    listed.write_text("uri\ns3://data/raw/a.mp4\ns3://data/raw/b.mp4\n")
    with pytest.raises(PermissionError, match="the key is wrong or may not do that"):
        list_inputs([str(listed)], IndexOptions())
