"""Where the files of a data set are, and how its tables are read and replaced without a half-written state.

A table is one Parquet file that is replaced as a whole (a rename is the one atomic step that every file system has);
`frames`, too large for that, is any number of files that are added and rewritten one by one. Writers sort rows by their
keys; row groups are small enough that a reader skips what it does not look for and holds little at a time.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.schema import SCHEMA_VERSION, TABLES
from manifests.storage import (
    NewFile,
    Place,
    full_path,
    is_local,
    list_files,
    make_folder,
    open_to_read,
    place,
)
from manifests.storage import write_bytes_atomically as write_bytes_atomically

_ROWS_AT_ONCE = 512
_VERSION_KEY = b"portrait_schema_version"


@dataclass(frozen=True, slots=True)
class Dataset:
    """The folder of a data set and the names of what is in it.

    root: a local path, which is made absolute so that workers in other folders find it, or an fsspec URL
    (`s3://bucket/dataset`), which becomes a `UPath`.
    """

    root: Place

    def __post_init__(self) -> None:
        root = place(self.root)
        object.__setattr__(self, "root", Path(full_path(str(root))) if is_local(root) else root)

    @property
    def name(self) -> str:
        """Of its folder, or of its bucket where it is all that is in there."""
        return self.root.resolve().name or str(self.root).rstrip("/").rsplit("/", 1)[-1]

    @property
    def recipe_file(self) -> Place:
        return self.root / "recipe.toml"

    @property
    def staging(self) -> Place:
        return self.root / "staging"

    @property
    def shards(self) -> Place:
        return self.root / "shards"

    @property
    def report(self) -> Place:
        return self.root / "report"

    def table_folder(self, name: str) -> Place:
        return self.root / "manifests" / name

    def table_files(self, name: str) -> list[Place]:
        return list(self.table_sizes(name))

    def table_sizes(self, name: str) -> dict[Place, int]:
        """The files of a table, sorted, with their sizes in bytes."""
        return list_files(self.table_folder(name), ".parquet")


def remove_temporary_files(dataset: Dataset) -> None:
    """Remove what writers that were killed left beside the recipe, the tables and the shards. Nobody may be writing.

    On an object store they leave nothing: what was not put as a whole is not there.
    """
    if not is_local(dataset.root):
        return
    for folder in (dataset.root, dataset.shards, *(dataset.root / "manifests").glob("*/")):
        for path in folder.glob(".*.tmp"):
            path.unlink()


def write_parquet(path: Place, rows: pa.Table | Iterable[pa.Table]) -> None:
    """Write one Parquet file atomically, with the schema version in its metadata.

    `rows`: a table, or tables of one schema one after the other, of which no more than a row group is held in memory.
    The file is the same bytes however the rows are cut into tables.
    """
    tables = iter([rows] if isinstance(rows, pa.Table) else rows)
    first = next(tables)
    schema = first.schema.with_metadata({**(first.schema.metadata or {}), _VERSION_KEY: str(SCHEMA_VERSION).encode()})
    make_folder(path.parent)
    options = {"compression": "zstd", "write_page_checksum": True, **_encodings(schema)}
    with NewFile(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for group in _row_groups(first, tables, row_group_rows(schema)):
            writer.write_table(group.cast(schema), row_group_size=max(len(group), 1))


def row_group_rows(schema: pa.Schema) -> int:
    """Rows of a row group: few where a row holds lists (an embedding, offsets of frames, candidates), else many."""
    return 2**15 if any(pa.types.is_nested(field.type) for field in schema) else 2**18


def _row_groups(first: pa.Table, others: Iterator[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The rows of all tables in pieces of `num_rows`; the last may be smaller, and is empty where there are no rows."""
    pending = first
    while True:
        while len(pending) < num_rows and (more := next(others, None)) is not None:
            pending = pa.concat_tables([pending, more])
        yield pending.slice(0, num_rows).combine_chunks()
        pending = pending.slice(num_rows)
        if not len(pending) and (more := next(others, None)) is None:
            return
        elif not len(pending):
            pending = more


def _encodings(schema: pa.Schema) -> dict[str, object]:
    """Options of the Parquet writer: texts by dictionary, whole numbers by differences, measurements by byte planes."""
    dictionary, encoding = [], {}
    for name, kind in _leaves(schema):
        if pa.types.is_string(kind):
            dictionary.append(name)
        elif pa.types.is_signed_integer(kind):  # unsigned ones are hashes: no order, no small differences
            encoding[name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_floating(kind):
            encoding[name] = "BYTE_STREAM_SPLIT"
    return {"use_dictionary": dictionary, "column_encoding": encoding}


def _leaves(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[tuple[str, pa.DataType]]:
    """Path and type of every Parquet column: `clip_id`, `embedding.list.element`, `provenance.key_value.key`."""
    for field in fields:
        name, kind = prefix + field.name, field.type
        if pa.types.is_struct(kind):
            yield from _leaves(kind, f"{name}.")
        elif pa.types.is_map(kind):
            yield from _leaves(
                [kind.key_field.with_name("key"), kind.item_field.with_name("value")], f"{name}.key_value."
            )
        elif pa.types.is_list(kind):
            yield from _leaves([kind.value_field.with_name("element")], f"{name}.list.")
        else:
            yield name, kind


def read_parquet(files: Iterable[Place], name: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of table `name` from `files`, with today's schema: columns that a file lacks are NULL.

    Raises:
        ValueError: a file was written by a newer version of the schema.
    """
    schema = TABLES[name] if columns is None else pa.schema([TABLES[name].field(c) for c in columns])
    parts = [schema.empty_table()]
    for file in files:
        parts.append(_conform(again_if_replaced(_read_file, file, schema), schema))
    return pa.concat_tables(parts)


def again_if_replaced(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read(*arguments)` gives; asked once more where an object was replaced while it was read, as the store does
    not mix old and new."""
    try:
        return read(*arguments)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return read(*arguments)


def _read_file(file: Place, schema: pa.Schema) -> pa.Table:
    with open_parquet(file) as parquet:
        present = set(parquet.schema_arrow.names)
        return parquet.read([c for c in schema.names if c in present])


def as_of_today(rows: pa.Table, name: str) -> pa.Table:
    """Rows of a file of table `name` with today's schema: columns that the file lacks are NULL."""
    return _conform(rows, TABLES[name])


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    for field in schema:
        if field.name not in rows.schema.names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select(schema.names).cast(schema)


def read_table(dataset: Dataset, name: str, columns: list[str] | None = None) -> pa.Table:
    """All rows of one table of a data set; an empty table when it has no file yet."""
    return read_parquet(dataset.table_files(name), name, columns)


def iterate_tables(dataset: Dataset, name: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a table in the order of its files, a few hundred at a time; one empty table where there are none."""
    schema = TABLES[name] if columns is None else pa.schema([TABLES[name].field(c) for c in columns])
    files = dataset.table_files(name)
    if not files:
        yield schema.empty_table()
    for file in files:
        with open_parquet(file) as parquet:
            present = set(parquet.schema_arrow.names)
            is_empty = True
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=[c for c in schema.names if c in present]):
                is_empty = False
                yield _conform(pa.Table.from_batches([batch]), schema)
            if is_empty:
                yield schema.empty_table()


def iterate_with(dataset: Dataset, name: str, beside: pa.Table) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The tables of `iterate_tables`, each with its rows of `beside`, which has one for each row of the whole table.

    For what was looked up for all rows at once: Arrow hashes all that it looks among anew at every call.
    """
    beside = beside.combine_chunks()
    start = 0
    for rows in iterate_tables(dataset, name):
        yield rows, beside.slice(start, len(rows))
        start += len(rows)


def iterate_rows(
    dataset: Dataset, name: str, columns: list[str] | None = None, is_wanted: Callable[[dict], bool] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of `iterate_tables`.

    is_wanted: asked with the columns that hold no lists; only rows that pass are made whole.
    """
    for rows in iterate_tables(dataset, name, columns):
        if is_wanted is not None:
            flat = [field.name for field in rows.schema if not pa.types.is_nested(field.type)]
            rows = rows.filter(pa.array([is_wanted(row) for row in rows.select(flat).to_pylist()], pa.bool_()))
        yield from rows.to_pylist()


def replace_table(dataset: Dataset, name: str, rows: pa.Table | Iterable[pa.Table]) -> None:
    """Make `rows` the only content of table `name`, in one atomic step (one file holds it)."""
    write_parquet(dataset.table_folder(name) / f"{name}.parquet", _checked(rows, name))


def _checked(rows: pa.Table | Iterable[pa.Table], name: str) -> Iterator[pa.Table]:
    for table in [rows] if isinstance(rows, pa.Table) else rows:
        assert set(table.schema.names) == set(TABLES[name].names), f"{name}: {table.schema.names}"
        yield table


@contextmanager
def open_parquet(file: Place, **options: Any) -> Iterator[pq.ParquetFile]:
    """A file of a table, opened with `options` of `ParquetFile`; its footer is read once.

    Raises:
        ValueError: it was written by a newer version of the schema.
    """
    with open_to_read(file) as source, pq.ParquetFile(source, **options) as parquet:
        written = int((parquet.schema_arrow.metadata or {}).get(_VERSION_KEY, b"0"))
        if written > SCHEMA_VERSION:
            raise ValueError(
                f"{file} has schema version {written}, this program knows up to {SCHEMA_VERSION}: use a newer checkout"
            )
        yield parquet


def check_version(file: Place) -> pa.Schema:
    """The Arrow schema of `file`; ValueError when it is from a newer version than this code knows."""
    with open_parquet(file) as parquet:
        return parquet.schema_arrow


def release_memory() -> None:
    """Give the system back what was freed: allocators keep it, and what one piece of work took would add to the next's
    memory."""
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)
