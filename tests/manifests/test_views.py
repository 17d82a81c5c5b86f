"""The DuckDB views over a data set."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from manifests import store
from manifests.schema import SCHEMA_VERSION, TABLES, make_table
from manifests.store import Dataset, replace_table, write_parquet
from manifests.views import connect


def test_every_table_is_a_view_with_todays_columns(dataset):
    db = connect(dataset.root)
    for name, schema in TABLES.items():
        assert db.sql(f"SELECT * FROM {name}").columns == schema.names
    counts = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}
    assert {name: n for name, n in counts.items() if n} == {"sources": 2, "clips": 3}


@pytest.mark.parametrize(("name", "beside"), [("set*x", "set1x"), ("set[1]", "set1"), ("set?", "setz")])
def test_the_name_of_a_data_set_is_no_pattern(tmp_path, name, beside):
    for folder in (name, beside):
        replace_table(Dataset(tmp_path / folder), "clips", make_table("clips", [{"clip_id": folder}]))
    db = connect(tmp_path / name)
    assert db.execute("SELECT clip_id FROM clips").fetchall() == [(name,)]
    file = f"{tmp_path}/{name}/manifests/clips/clips.parquet"
    assert db.execute('SELECT "table", path, num_rows FROM files').fetchall() == [("clips", file, 1)]


def test_query_over_lists_maps_and_joins(dataset):
    db = connect(str(dataset.root))
    assert db.execute(
        "SELECT rule, count(*) FROM (SELECT unnest(failed_rules) AS rule FROM clips) GROUP BY 1 ORDER BY 1"
    ).fetchall() == [("blurred", 1), ("yaw", 2)]
    assert db.execute("SELECT provenance['show'] FROM clips WHERE split = 'train'").fetchone()[0] in ("one", ["one"])
    assert db.execute(
        "SELECT any_value(uris[1]), sum(clips.duration_s) FROM clips JOIN sources USING (source_id)"
    ).fetchone() == ("/v/a.mp4", 8.0)


def test_columns_that_a_file_lacks_are_null(dataset):
    older = make_table("clips", [{"clip_id": "old", "motion": 0.5}]).drop_columns(["quality"])
    write_parquet(dataset.table_folder("clips") / "older.parquet", older)
    db = connect(dataset.root)
    assert db.execute("SELECT motion, quality FROM clips WHERE clip_id = 'old'").fetchall() == [(0.5, None)]


def test_files_of_several_ages_together(dataset):
    """One with a narrower type, one with a column that nobody knows any more, one of today."""
    rows = make_table("frames", [{"clip_id": "a", "frame": 1, "time_s": 0.5}])
    folder = dataset.table_folder("frames")
    narrow = rows.select(["clip_id", "time_s"]).append_column("frame", rows["frame"].cast("int8"))
    write_parquet(folder / "narrow.parquet", narrow)
    write_parquet(folder / "other.parquet", rows.append_column("colour", [["red"]]))
    write_parquet(folder / "today.parquet", rows)
    db = connect(dataset.root)
    relation = db.sql("SELECT * FROM frames")
    assert relation.columns == TABLES["frames"].names
    types = dict(zip(relation.columns, map(str, relation.types), strict=True))
    assert (types["frame"], types["time_s"], types["quality"]) == ("INTEGER", "DOUBLE", "FLOAT")
    assert db.execute("SELECT clip_id, frame, time_s, yaw_deg FROM frames").fetchall() == [("a", 1, 0.5, None)] * 3


@pytest.mark.parametrize("name", TABLES)
def test_columns_added_later_are_null_in_any_table(tmp_path, name):
    """A data set whose files have the first column only still opens, and reads by DuckDB and by Arrow."""
    made = Dataset(tmp_path)
    first = TABLES[name].names[0]
    write_parquet(made.table_folder(name) / "old.parquet", make_table(name, [{first: "x"}]).select([first]))
    row = connect(tmp_path).execute(f"SELECT * FROM {name}").fetchall()[0]
    assert row == ("x", *[None] * (len(TABLES[name]) - 1))
    assert list(store.read_table(made, name).to_pylist()[0].values()) == list(row)


def test_view_of_files(dataset):
    rows = connect(dataset.root).execute('SELECT "table", path, num_rows, size_bytes FROM files ORDER BY 1').fetchall()
    expected = [(name, dataset.table_folder(name) / f"{name}.parquet") for name in ("clips", "sources")]
    assert rows == [(name, str(path), n, path.stat().st_size) for (name, path), n in zip(expected, (3, 2), strict=True)]


def test_memory_and_threads_are_bounded(dataset):
    db = connect(dataset.root, memory_limit="100MB", threads=1)
    settings = dict(db.execute("SELECT name, value FROM duckdb_settings()").fetchall())
    assert settings["memory_limit"] == "95.3 MiB"
    assert settings["threads"] == "1"
    assert Path(settings["temp_directory"]).parent == Path(tempfile.gettempdir()), "not .tmp in the working folder"
    default = connect(dataset.root).execute("SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'")
    assert default.fetchall() == [("2.7 GiB",)]


def test_a_container_with_fewer_cores_has_fewer_threads(dataset, monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # which joblib heeds as it does the quota of a container
    assert connect(dataset.root).execute("SELECT current_setting('threads')").fetchone() == (1,)


def test_no_data_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no data set at .*nowhere: expected a folder with manifests/ in it"):
        connect(tmp_path / "nowhere")


def test_any_newer_file_is_refused(dataset, monkeypatch):
    """Whichever of a table's files it is."""
    write_parquet(dataset.table_folder("frames") / "a.parquet", make_table("frames", []))
    monkeypatch.setattr(store, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    write_parquet(dataset.table_folder("frames") / "b.parquet", make_table("frames", []))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"b\.parquet has schema version"):
        connect(dataset.root)


def test_views_see_a_replaced_table(dataset):
    replace_table(dataset, "clips", make_table("clips", [{"clip_id": "new"}]))
    assert connect(dataset.root).execute("SELECT clip_id FROM clips").fetchall() == [("new",)]
