"""verify: read a whole data set again and say what differs from what its manifests state."""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from curation.decisions import kept_decisions
from curation.lock import DatasetBusy, require_idle
from curation.recipe import Recipe, recipe_of, recipe_toml
from curation.removal import BY_HAND, journal_file
from curation.shard_check import check_shard
from curation.table_check import FORGET, check_tables
from curation.tombstones import LateRows, forgets
from manifests.console import few
from manifests.schema import CLIP_PLACES, FRAMES, TABLES
from manifests.storage import list_files, list_folders, read_bytes, read_files
from manifests.store import Dataset, open_parquet, read_table
from manifests.views import connect, num_cores

_SUMMED = [f.name for f in FRAMES if pa.types.is_floating(f.type) or pa.types.is_boolean(f.type)] + ["source_frame"]
_OF_SHARD_CLIPS = ("clip_id", "identity_id", "licence", "attribution", "consent", "num_frames")
_KNOWN = {"recipe.toml", "metrics.jsonl", "manifests", "shards", "staging", "report", ".lock", "README.md", "LICENSE"}
_SIDE_BY_SIDE_BYTES = 2_000_000_000
_BATCH = 64
_STAGES = ("index-", "scan-", "crop-", "pack-")
"""Beginnings of the names of folders in staging/ with what units have committed."""
BUSY = 3
_REWRITE = "remove this file and run the `run` command again: it is written anew, from the sources where necessary"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it should be."""

    what: str
    """The file, table or rows."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}\n    what to do: {self.remedy}"


def verify(dataset: Dataset, report: Callable[[str], None] = lambda line: None) -> Iterator[Difference]:
    """Every difference between the files of a data set and its manifests, as it is found; `report` gets progress.

    Raises:
        ValueError: there is no data set.
    """
    recipe = recipe_of(dataset.root)
    written, expected = read_bytes(dataset.recipe_file).decode().splitlines(), recipe_toml(recipe).splitlines()
    is_of_today = {line.split(" = ")[0] for line in written} == {line.split(" = ")[0] for line in expected}
    if is_of_today and written != expected:  # a program with other options would write another hash
        changed = "; ".join(sorted(set(written) ^ set(expected)))
        yield Difference("recipe.toml", f"changed by hand: {changed}", "run `select` or `run` again")
    is_forgotten = forgets(_read(dataset, "tombstones", ["kind", "source_id", "clip_id"]))
    if names := sorted(filter(is_forgotten, {i for name in BY_HAND for i in getattr(recipe.select, name)})):
        yield Difference("recipe.toml", f"names forgotten clips: {', '.join(names)}", FORGET)
    yield from _check_files(dataset)
    yield from _check_staged(dataset)
    damaged = list(_check_parquet(dataset, report))
    yield from damaged
    if damaged:
        return  # nothing can be compared with tables that cannot be read
    db = connect(dataset.root)
    _sum_frames(db)
    report(f"tables: {', '.join(_counts(db))}")
    for check, names in check_tables(db, recipe):
        yield Difference(f"table {check.table}", f"{check.problem}: {few(names, 3)}", check.remedy)
    yield from _check_shards(dataset, db, recipe, report)


def _counts(db: duckdb.DuckDBPyConnection) -> list[str]:
    return [f"{db.execute(f'SELECT count(*) FROM {name}').fetchone()[0]} {name}" for name in TABLES]


def _check_files(dataset: Dataset) -> Iterator[Difference]:
    if journal_file(dataset).exists():
        remedy = "`forget` again, or any command that changes the data set, finishes it"
        yield Difference(journal_file(dataset).name, "a removal was interrupted", remedy)
    known = {dataset.shards / name for name in _known_shards(dataset)}
    for path in list_files(dataset.root, below=True):
        place = path.relative_to(dataset.root)
        top = place.parts[0]
        expected = top in _KNOWN or path == journal_file(dataset)
        if top == "shards":
            expected = path in known
        elif top == "manifests":
            expected = len(place.parts) == 3 and place.parts[1] in TABLES and path.suffix == ".parquet"
        if not expected or path.suffix == ".tmp":
            yield Difference(str(place), "no manifest knows this file", "remove it, or move it out of the data set")


def _check_staged(dataset: Dataset) -> Iterator[Difference]:
    """What was forgotten is not in staging/ either: a worker that outlived its driver may put it there afterwards."""
    stones = _read(dataset, "tombstones", TABLES["tombstones"].names)
    if not stones:
        return
    is_forgotten, late = forgets(stones), LateRows(stones)
    for path in list_files(dataset.staging, ".tar", below=True):
        if is_forgotten(path.stem) or is_forgotten(path.parent.name.rsplit("-", 1)[0]):
            yield Difference(str(path.relative_to(dataset.root)), "pictures of a forgotten clip", "remove it")
    for folder in list_folders(dataset.staging):
        commits = list_files(folder, ".json") if folder.name.startswith(_STAGES) else {}
        for path, data in read_files(commits):
            place = str(path.relative_to(dataset.root))
            try:
                is_late = _names_forgotten(orjson.loads(data), is_forgotten, late)
            except (ValueError, TypeError, KeyError) as error:
                yield Difference(place, f"cannot be read: {error!r}", "remove it: its unit is done again")
                continue
            if is_late:
                remedy = "run again, and they are left out; or remove it, with the folder of its name"
                yield Difference(place, "rows of what was forgotten", remedy)
    if any(map(is_forgotten, kept_decisions(dataset)["clip_id"].to_pylist())):
        remedy = "remove it: who is who, and who is in which split, is then found anew for the others in it, too"
        yield Difference("staging/decisions.parquet", "names forgotten clips", remedy)


def _names_forgotten(commit: dict[str, Any], is_forgotten: Callable[[str], bool], late: LateRows) -> bool:
    """Whether a unit has committed rows that would not be taken over."""
    rows = commit["rows"]
    left = dict(rows)
    if late.take_out(left, commit["ledger"]["source_id"]) is None or left != rows:
        return True
    names = [row["source_id"] for row in rows.get("sources", [])] + [row["clip_id"] for row in rows.get("places", [])]
    return any(map(is_forgotten, filter(None, names)))


def _known_shards(dataset: Dataset) -> set[str]:
    """Names of the shards that the manifests know."""
    return {row["shard"] for row in _read(dataset, "shards", ["shard"])}


def _read(dataset: Dataset, name: str, columns: list[str]) -> list[dict[str, Any]]:
    try:
        return read_table(dataset, name, columns).to_pylist()
    except (pa.ArrowInvalid, OSError, ValueError):
        return []  # said by _check_parquet


def _check_parquet(dataset: Dataset, report: Callable[[str], None]) -> Iterator[Difference]:
    """Every page of every table can be read, its checksum is right, and its columns are of the known types."""
    files = [(name, file) for name in TABLES for file in dataset.table_files(name)]
    for name, file in files:
        place = str(file.relative_to(dataset.root))
        try:
            with open_parquet(file, page_checksum_verification=True) as parquet:
                for group in range(parquet.num_row_groups):
                    parquet.read_row_group(group)
                schema = parquet.schema_arrow
            schema.empty_table()
            for field in schema:
                if field.name in TABLES[name].names and not field.type.equals(TABLES[name].field(field.name).type):
                    problem = f"column {field.name} is {field.type}, expected {TABLES[name].field(field.name).type}"
                    yield Difference(place, problem, "it was written by something else: restore the file from a copy")
        except (pa.ArrowException, OSError, ValueError) as error:
            yield Difference(place, f"cannot be read: {error}", "restore the file from a copy, or run all again")
    for name in ("sources", "tracks", "clips", "shards", "units"):  # without clips there is no file of frames
        if not dataset.table_files(name):
            yield Difference(f"manifests/{name}", "the table has no file", "run the `run` command again")
    report(f"manifests: {len(files)} files read")


def _sum_frames(db: duckdb.DuckDBPyConnection) -> None:
    """Table `frame_sums`: one pass over `frames`, which may have many millions of rows."""
    sums = ", ".join(f"sum({name}::DOUBLE) AS {name}" for name in _SUMMED)
    db.execute(
        f"CREATE TEMP TABLE frame_sums AS SELECT clip_id, count(*) AS rows, max(frame) AS last,"
        f" count(DISTINCT frame) AS frames, {sums} FROM frames GROUP BY clip_id"
    )


def _check_shards(
    dataset: Dataset, db: duckdb.DuckDBPyConnection, recipe: Recipe, report: Callable[[str], None]
) -> Iterator[Difference]:
    rows = db.sql("SELECT * FROM shards ORDER BY shard").to_arrow_table().to_pylist()
    start = time.monotonic()
    for done, (row, problems) in enumerate(_results(dataset, db, recipe, rows), 1):
        report(
            f"shards {done}/{len(rows)}  {row['shard']}  {row['size_bytes'] / 1e6:.1f} MB"
            f"  {time.monotonic() - start:.0f} s  {'DIFFERENT' if problems else 'ok'}"
        )
        for problem in problems:
            yield Difference(f"shards/{row['shard']}", problem, _REWRITE)


def _results(
    dataset: Dataset, db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each row with what is wrong with its shard; large data sets on all cores, the rows of some shards at a time."""
    is_large = len(rows) > 1 and sum(row["size_bytes"] for row in rows) >= _SIDE_BY_SIDE_BYTES
    workers = min(len(rows), num_cores())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if is_large else None
    with pool or nullcontext():
        for first in range(0, len(rows), _BATCH):
            batch = rows[first : first + _BATCH]
            clips = _clips_of(db, [row["shard"] for row in batch])
            work = [(dataset.shards / r["shard"], r, clips.get(r["shard"], []), recipe.crop.size_px) for r in batch]
            results = pool.map(check_shard, *zip(*work, strict=True)) if pool else itertools.starmap(check_shard, work)
            yield from zip(batch, results, strict=True)


def _clips_of(db: duckdb.DuckDBPyConnection, shards: list[str]) -> dict[str, list[dict[str, Any]]]:
    columns = ", ".join(f"clips.{name}" for name in (*_OF_SHARD_CLIPS, *(name for name, _ in CLIP_PLACES)))
    sums = ", ".join(f"{name} := frame_sums.{name}" for name in _SUMMED)
    query = f"SELECT {columns}, struct_pack({sums}) AS sums FROM clips LEFT JOIN frame_sums USING (clip_id)"
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in shards)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in db.sql(f"{query} WHERE shard IN ({names})").to_arrow_table().to_pylist():
        found.setdefault(row["shard"], []).append(row)
    return found


def verify_and_print(dataset: Dataset) -> int:
    """Verify with progress on standard error, differences on standard output; 0 when there is none, else 1.

    `BUSY` where another command is writing, or has begun to before differences were found: they may be half its work.
    """
    try:
        require_idle(dataset)
        num_different = _print_differences(dataset)
        if num_different:
            require_idle(dataset)
    except DatasetBusy as error:
        print(f"error: nothing can be said yet, {error}", file=sys.stderr)
        return BUSY
    return 1 if num_different else 0


def _print_differences(dataset: Dataset) -> int:
    start, num_different = time.monotonic(), 0
    for difference in verify(dataset, lambda line: print(line, file=sys.stderr, flush=True)):
        num_different += 1
        print(f"DIFFERENT {difference}", flush=True)
    if list_files(dataset.staging) or list_folders(dataset.staging):
        print("note: staging/ holds the work of a run that has not ended, or was told to keep it", file=sys.stderr)
    took = f"{time.monotonic() - start:.0f} s"
    print(f"{num_different} differences, {took}" if num_different else f"all is as the manifests say, {took}")
    return num_different
