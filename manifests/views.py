"""DuckDB views over the tables of a data set.

import manifests.views
db = manifests.views.connect("~/dataset")
db.sql("SELECT decision, count(*) FROM clips GROUP BY ALL")
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from manifests.schema import TABLES
from manifests.store import Dataset, check_version


def connect(folder: str | Path) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection with one view a table: sources tracks clips frames shards failures units.

    Files written by an older schema lack later columns; those read as NULL.

    Raises:
        ValueError: `folder` holds no manifests, or they are newer than this program.
    """
    dataset = Dataset(Path(folder).expanduser())
    if not (dataset.root / "manifests").is_dir():
        raise ValueError(f"no data set at {dataset.root}: expected a folder with manifests/ in it")
    db = duckdb.connect()
    for name in TABLES:
        create_view(db, dataset, name)
    return db


def create_view(db: duckdb.DuckDBPyConnection, dataset: Dataset, name: str) -> None:
    """Create (or replace) the view of one table, with every column of today's schema."""
    schema = TABLES[name]
    db.register(f"_empty_{name}", schema.empty_table())
    query = f"SELECT * FROM _empty_{name}"
    if files := dataset.table_files(name):
        for file in files:
            check_version(file)
        paths = ", ".join("'" + str(f).replace("'", "''") + "'" for f in files)
        query += f" UNION ALL BY NAME SELECT * FROM read_parquet([{paths}], union_by_name = true)"
    db.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
