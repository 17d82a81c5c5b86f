"""The DuckDB views over a data set."""

from __future__ import annotations

import pytest

from manifests import store
from manifests.schema import SCHEMA_VERSION, TABLES, make_table
from manifests.store import replace_table, write_parquet
from manifests.views import connect


def test_every_table_is_a_view_with_todays_columns(dataset):
    db = connect(dataset.root)
    for name, schema in TABLES.items():
        assert db.sql(f"SELECT * FROM {name}").columns == schema.names
    counts = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}
    assert {name: n for name, n in counts.items() if n} == {"sources": 2, "clips": 3}


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
