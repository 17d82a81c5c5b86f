"""DuckDB views over the tables of a data set.

import manifests.views
db = manifests.views.connect("~/dataset")
db.sql("SELECT decision, count(*) FROM clips GROUP BY ALL")
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from manifests.rights import is_stated_sql, says_nothing_sql
from manifests.schema import TABLES
from manifests.storage import Place, is_local, list_folders, map_places
from manifests.store import Dataset, check_version

MEMORY_LIMIT = "3GB"  # of DuckDB's buffers; with Python and what it does not count, a process stays below 4 GB


def connect(
    folder: str | Place, *, memory_limit: str = MEMORY_LIMIT, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection with one view a table: sources, tracks, clips, frames, shards, failures, ...

    Files written by an older schema lack later columns; those read as NULL. The view `files` tells the manifests' own
    files: table, path, num_rows, size_bytes. The views hold to the files that are there now: connect again after a run.

    `is_stated(licence)` is whether a text of a source list states anything (see `manifests.rights`).

    Args:
        memory_limit: beyond it queries spill to the system's folder for temporary files.
        threads: default: the cores that this process may use.

    Raises:
        ValueError: `folder` holds no manifests, or they are newer than this program.
    """
    dataset = Dataset(folder)
    if not (dataset.root / "manifests").is_dir():
        raise ValueError(f"no data set at {dataset.root}: expected a folder with manifests/ in it")
    spill = Path(tempfile.gettempdir()) / f"duckdb-{os.getpid()}"  # else DuckDB takes .tmp in the working folder
    db = duckdb.connect(
        config={
            "memory_limit": memory_limit,
            "threads": threads or num_cores(),
            "temp_directory": str(spill),
        }
    )
    db.execute("SET parquet_metadata_cache = true")
    if not is_local(dataset.root):
        db.register_filesystem(_filesystem_for_views(dataset))
    for name in TABLES:
        create_view(db, dataset, name)
    _create_view_of_files(db, dataset)
    db.execute(f"CREATE MACRO is_stated(said) AS {is_stated_sql('said')}")
    db.execute(f"CREATE MACRO says_nothing(said) AS {says_nothing_sql('said')}")
    return db


def _filesystem_for_views(dataset: Dataset) -> Any:
    """What DuckDB reads the tables of an object store through: it asks many times over what it was told before."""
    filesystem = dataset.root.fs
    if "s3" in filesystem.protocol:
        options = {"use_listings_cache": True, "default_block_size": 1 << 20, "skip_instance_cache": True}
        filesystem = type(filesystem)(**options)
        for folder in list_folders(dataset.root / "manifests"):
            filesystem.ls(folder.path)  # kept for as long as the connection
    return filesystem


def num_cores() -> int:
    """Cores that this process may use: a container, among others, may have fewer than its machine."""
    import joblib  # which takes a fifth of a second

    return joblib.cpu_count()


def create_view(db: duckdb.DuckDBPyConnection, dataset: Dataset, name: str) -> None:
    """Create (or replace) the view of one table, with exactly the columns of today's schema.

    Files that have today's schema are read in one go; those of each other schema apart, cast to today's types.
    """
    types = _duckdb_types(db, TABLES[name])
    groups: list[tuple[pa.Schema, list[Place]]] = []
    files = dataset.table_files(name)
    for file, schema in zip(files, map_places(check_version, files), strict=True):
        same = next((alike for known, alike in groups if known.equals(schema)), None)
        if same is None:
            groups.append((schema, [file]))
        else:
            same.append(file)
    selects = [_select(schema, files, types, TABLES[name]) for schema, files in groups]
    empty = ", ".join(f'NULL::{kind} AS "{column}"' for column, kind in types.items())
    db.execute(f"CREATE OR REPLACE VIEW {name} AS {' UNION ALL '.join(selects) or f'SELECT {empty} WHERE false'}")


def _select(schema: pa.Schema, files: list[Place], types: dict[str, str], today: pa.Schema) -> str:
    columns = []
    for name, kind in types.items():
        if name not in schema.names:
            columns.append(f'NULL::{kind} AS "{name}"')
        elif schema.field(name).type == today.field(name).type:
            columns.append(f'"{name}"')
        else:
            columns.append(f'"{name}"::{kind} AS "{name}"')
    paths = ", ".join(_pattern(file) for file in files)
    return f"SELECT {', '.join(columns)} FROM read_parquet([{paths}])"


def _duckdb_types(db: duckdb.DuckDBPyConnection, schema: pa.Schema) -> dict[str, str]:
    """The DuckDB type of every column of an Arrow schema."""
    db.register("_schema", schema.empty_table())
    types = {row[0]: row[1] for row in db.execute("DESCRIBE _schema").fetchall()}
    db.unregister("_schema")
    return types


def _create_view_of_files(db: duckdb.DuckDBPyConnection, dataset: Dataset) -> None:
    rows = ["(NULL::VARCHAR, NULL::VARCHAR, NULL::BIGINT)"]
    paths = []
    for name in TABLES:
        for file, size in dataset.table_sizes(name).items():
            rows.append(f"('{name}', {_quoted(file)}, {size})")
            paths.append(_pattern(file))
    counts = "SELECT NULL AS file_name, 0 AS num_rows WHERE false"
    if paths:
        counts = f"SELECT file_name, num_rows FROM parquet_file_metadata([{', '.join(paths)}])"
    db.execute(
        f"""CREATE OR REPLACE VIEW files AS
            SELECT name AS "table", path, num_rows::BIGINT AS num_rows, size_bytes
            FROM (VALUES {", ".join(rows)}) AS files (name, path, size_bytes) JOIN ({counts}) ON path = file_name"""
    )


def _pattern(path: Place) -> str:
    """What DuckDB takes for this file alone: to its readers every path is a pattern."""
    return _quoted(re.sub(r"[*?\[]", r"[\g<0>]", str(path)))


def _quoted(path: Place | str) -> str:
    return "'" + str(path).replace("'", "''") + "'"
