"""Where the files of a data set are, and how its tables are read and replaced without a half-written state."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.schema import SCHEMA_VERSION, TABLES

_VERSION_KEY = b"portrait_schema_version"


@dataclass(frozen=True, slots=True)
class Dataset:
    """The folder of a data set and the names of what is in it."""

    root: Path

    @property
    def recipe_file(self) -> Path:
        return self.root / "recipe.toml"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def table_folder(self, name: str) -> Path:
        return self.root / "manifests" / name

    def table_files(self, name: str) -> list[Path]:
        return sorted(self.table_folder(name).glob("*.parquet"))


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, then rename: `path` is never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(dataset: Dataset) -> None:
    """Remove what writers that were killed left beside the recipe and the tables. Nobody may be writing."""
    for folder in (dataset.root, *(dataset.root / "manifests").glob("*/")):
        for path in folder.glob(".*.tmp"):
            path.unlink()


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write one Parquet file atomically, with the schema version in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {**(table.schema.metadata or {}), _VERSION_KEY: str(SCHEMA_VERSION).encode()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_parquet(files: Iterable[Path], name: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of table `name` from `files`, with today's schema: columns that a file lacks are NULL.

    Raises:
        ValueError: a file was written by a newer version of the schema.
    """
    schema = TABLES[name] if columns is None else pa.schema([TABLES[name].field(c) for c in columns])
    parts = [schema.empty_table()]
    for file in files:
        check_version(file)
        present = set(pq.read_schema(file).names)
        part = pq.read_table(file, columns=[c for c in schema.names if c in present])
        for field in schema:
            if field.name not in present:
                part = part.append_column(field, pa.nulls(len(part), field.type))
        parts.append(part.select(schema.names).cast(schema))
    return pa.concat_tables(parts)


def read_table(dataset: Dataset, name: str, columns: list[str] | None = None) -> pa.Table:
    """All rows of one table of a data set; an empty table when it has no file yet."""
    return read_parquet(dataset.table_files(name), name, columns)


def replace_table(dataset: Dataset, name: str, table: pa.Table) -> None:
    """Make `table` the only content of table `name`, in one atomic step (one file holds it)."""
    assert set(table.schema.names) == set(TABLES[name].names), f"{name}: {table.schema.names}"
    write_parquet(dataset.table_folder(name) / f"{name}.parquet", table)


def check_version(file: Path) -> None:
    """Raise ValueError when `file` is from a newer schema than this code knows."""
    written = int((pq.read_schema(file).metadata or {}).get(_VERSION_KEY, b"0"))
    if written > SCHEMA_VERSION:
        raise ValueError(
            f"{file} has schema version {written}, this program knows up to {SCHEMA_VERSION}: use a newer checkout"
        )
