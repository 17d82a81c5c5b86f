"""Parquet files are whole or absent, and files of other versions of the schema read as well as they can."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests import storage, store
from manifests.schema import SCHEMA_VERSION, TABLES, make_table
from manifests.store import (
    Dataset,
    iterate_with,
    read_table,
    remove_temporary_files,
    replace_table,
    row_group_rows,
    write_bytes_atomically,
    write_parquet,
)


def test_rows_come_back_as_written(dataset):
    rows = read_table(dataset, "clips").to_pylist()
    assert [r["clip_id"] for r in rows] == ["a_0", "a_1", "a_2"]
    assert rows[0]["embedding"] == pytest.approx([0.6, 0.8])
    assert rows[1]["duration_s"] is None
    assert read_table(dataset, "clips", ["split", "clip_id"]).to_pydict() == {
        "split": ["train", None, None],
        "clip_id": ["a_0", "a_1", "a_2"],
    }


def test_a_data_set_is_where_it_was_named(tmp_path, monkeypatch):
    """Also for processes in other folders."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    found = Dataset("../b/./c")
    assert found.root == tmp_path / "b" / "c" == Dataset(Path("../b/c")).root
    assert Dataset("../link").root == tmp_path / "link", "links stay"
    assert Dataset("~/c").root == Path.home() / "c"
    monkeypatch.chdir(tmp_path)
    assert found.root == tmp_path / "b" / "c"


def test_table_without_a_file_is_empty(dataset):
    assert read_table(dataset, "frames").schema == TABLES["frames"]
    assert len(read_table(dataset, "frames")) == 0


def test_all_files_of_a_table_are_read(dataset):
    for part, frame in (("one", 0), ("two", 1)):
        rows = make_table("frames", [{"clip_id": part, "frame": frame}])
        write_parquet(dataset.table_folder("frames") / f"{part}.parquet", rows)
    assert read_table(dataset, "frames", ["clip_id", "frame"]).to_pylist() == [
        {"clip_id": "one", "frame": 0},
        {"clip_id": "two", "frame": 1},
    ]


def test_rows_and_what_stands_beside_them_stay_together(tmp_path):
    """However the table and what was looked up for it are cut into pieces."""
    dataset = Dataset(tmp_path)
    ids = [f"clip{k:04d}" for k in range(1200)]
    replace_table(dataset, "clips", make_table("clips", [{"clip_id": i} for i in ids]))
    beside = pa.table({"id": pa.chunked_array([ids[:100], ids[100:700], ids[700:]])})
    pieces = list(iterate_with(dataset, "clips", beside))
    assert len(pieces) == 3
    assert [rows["clip_id"].to_pylist() for rows, _ in pieces] == [mine["id"].to_pylist() for _, mine in pieces]
    assert sum(len(mine) for _, mine in pieces) == 1200


def test_columns_that_an_older_file_lacks_are_null(dataset):
    older = make_table("clips", [{"clip_id": "old", "motion": 0.5}]).drop_columns(["quality", "landmark_jitter"])
    replaced = older.set_column(older.schema.get_field_index("num_frames"), "num_frames", pa.array([7], pa.int64()))
    write_parquet(dataset.table_folder("clips") / "clips.parquet", replaced)
    table = read_table(dataset, "clips")
    assert table.schema == TABLES["clips"], "wider types are brought to today's"
    assert table.to_pylist()[0] | {"motion": 0.5, "quality": None, "num_frames": 7} == table.to_pylist()[0]


def test_file_of_a_newer_schema_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(store, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    replace_table(dataset, "sources", read_table(dataset, "sources"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"version {SCHEMA_VERSION + 1}, this program knows up to {SCHEMA_VERSION}"):
        read_table(dataset, "sources")


def test_failed_write_leaves_what_was_there(dataset, monkeypatch):
    before = read_table(dataset, "sources")

    def fill_the_disk(writer, *_, **__):
        assert Path(writer.where).is_file(), "the temporary file"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        replace_table(dataset, "sources", make_table("sources", []))
    monkeypatch.undo()
    assert read_table(dataset, "sources") == before
    assert [p.name for p in dataset.table_folder("sources").iterdir()] == ["sources.parquet"]


def test_table_in_pieces_is_the_same_file(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "row_group_rows", lambda schema: 100)
    rows = make_table(
        "frames", [{"clip_id": f"c{k // 30:03d}", "frame": k % 30, "yaw_deg": k / 7} for k in range(1050)]
    )
    write_parquet(tmp_path / "whole.parquet", rows)
    cuts = [0, 1, 99, 100, 100, 500, 777, 1050]
    pieces = (rows.slice(a, b - a) for a, b in pairwise(cuts))
    write_parquet(tmp_path / "pieces.parquet", pieces)
    assert (tmp_path / "pieces.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    metadata = pq.read_metadata(tmp_path / "pieces.parquet")
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [100] * 10 + [50]
    assert pq.read_table(tmp_path / "pieces.parquet").replace_schema_metadata() == rows
    replace_table(dataset, "frames", iter([rows, rows]))
    assert len(read_table(dataset, "frames")) == 2100


def test_clips_of_one_row_group_are_found_without_the_others(tmp_path):
    """Small row groups of sorted rows: their smallest and largest clip tell a reader which to skip."""
    rows = make_table("frames", [{"clip_id": f"{k:04x}", "frame": 0} for k in range(1000)])
    many = pa.concat_tables([rows] * 300).sort_by("clip_id")
    write_parquet(tmp_path / "frames.parquet", many)
    metadata = pq.read_metadata(tmp_path / "frames.parquet")
    ranges = [metadata.row_group(k).column(0).statistics for k in range(metadata.num_row_groups)]
    assert [(s.min, s.max) for s in ranges] == [("0000", "0369"), ("0369", "03e7")]
    assert row_group_rows(TABLES["clips"]) < row_group_rows(TABLES["frames"])


@pytest.mark.parametrize("name", TABLES)
def test_every_column_has_the_encoding_of_its_type(name, dataset):
    """A path that Parquet does not know would leave a column without, silently."""
    replace_table(dataset, name, make_table(name, []))
    metadata = pq.read_metadata(dataset.table_files(name)[0])
    paths = {metadata.schema.column(k).path for k in range(metadata.num_columns)}
    options = store._encodings(TABLES[name])
    assert set(options["use_dictionary"]) | set(options["column_encoding"]) <= paths
    plain = paths - set(options["use_dictionary"]) - set(options["column_encoding"])
    assert plain <= {"is_variable_fps", "has_audio", "is_repeat", "is_corrupt", "face_hashes.list.element"}


def test_rows_that_fail_half_way_leave_what_was_there(dataset):
    before = dataset.table_files("clips")[0].read_bytes()

    def rows():
        yield make_table("clips", [{"clip_id": "new"}])
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        replace_table(dataset, "clips", rows())
    assert dataset.table_files("clips")[0].read_bytes() == before
    assert [p.name for p in dataset.table_folder("clips").iterdir()] == ["clips.parquet"]


def test_bytes_are_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    write_bytes_atomically(path, b"one")
    seen = []
    replace = storage.os.replace

    def spy(source, target):
        seen.append((path.read_bytes(), source.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(storage.os, "replace", spy)
    write_bytes_atomically(path, b"two")
    assert seen == [(b"one", b"two")], "the old content stands until the new one is complete"
    assert path.read_bytes() == b"two"

    def fail(source, target):
        raise PermissionError("no")

    monkeypatch.setattr(storage.os, "replace", fail)
    with pytest.raises(PermissionError):
        write_bytes_atomically(path, b"three")
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    assert path.read_bytes() == b"two"


def test_what_killed_writers_left_is_removed(dataset):
    left = [dataset.root / ".recipe.toml.7.tmp", dataset.table_folder("clips") / ".clips.parquet.7.tmp"]
    for path in left:
        path.write_bytes(b"half")
    remove_temporary_files(dataset)
    assert not any(path.exists() for path in left)
    assert len(read_table(dataset, "clips")) == 3


def test_replace_wants_all_columns(dataset):
    with pytest.raises(AssertionError, match="clips"):
        replace_table(dataset, "clips", read_table(dataset, "clips", ["clip_id"]))


def test_places_in_a_data_set(tmp_path):
    dataset = Dataset(tmp_path)
    assert dataset.table_files("clips") == []
    assert dataset.table_folder("clips") == tmp_path / "manifests" / "clips"


def test_the_name_of_a_data_set(tmp_path, monkeypatch, s3):
    monkeypatch.chdir(tmp_path)
    assert Dataset(".").name == tmp_path.name
    assert Dataset("s3://data/sets/portraits/").name == "portraits"
    assert Dataset("s3://data").name == "data", "a bucket of its own"


def test_a_table_that_is_replaced_while_it_is_read_is_read_again(s3, monkeypatch):
    """From an object store in pieces, which must not be of two files; `status` reads while a run writes."""
    dataset = Dataset("s3://data/set")
    replace_table(dataset, "clips", make_table("clips", [{"clip_id": "old"}]))
    monkeypatch.setattr(storage, "_WHOLE_BYTES", 0)
    opened = []

    class Late(pq.ParquetFile):
        def __init__(self, *arguments, **options):
            if not opened:
                opened.append(arguments)
                replace_table(dataset, "clips", make_table("clips", [{"clip_id": "new"}, {"clip_id": "newer"}]))
            super().__init__(*arguments, **options)

    monkeypatch.setattr(pq, "ParquetFile", Late)
    assert read_table(dataset, "clips")["clip_id"].to_pylist() == ["new", "newer"]
