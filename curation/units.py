"""Units of work and how they commit.

A stage divides its work into units, named by the content that they read. A unit commits itself by one JSON file,
`staging/STAGE-HASH/UNIT.json`, renamed into place last; it holds the unit's rows for the tables. What a unit writes
besides (cropped pictures) lies beside it and counts only once that file is there. When a stage is complete the driver
moves the rows of all its units into the manifests (`Ledger.absorb`); repeating that after a crash changes nothing.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from curation.tombstones import LateRows
from manifests.schema import TABLES, make_table
from manifests.storage import Place, list_files, list_folders, read_files, remove_file, remove_files, remove_tree
from manifests.store import (
    Dataset,
    iterate_tables,
    iterate_with,
    read_parquet,
    read_table,
    replace_table,
    write_bytes_atomically,
    write_parquet,
)

Collapse = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]

NOT_OF_THE_FILE = ("source_gone", "unreadable", "killed")
"""Reasons of failures for which every run tries again."""
BROUGHT_DOWN = ("error", "crashed", "deadline", "worker_died")
"""Reasons of failures that the same file would have again, most likely: `--retry-failed` tries."""
FRAMES_OF_FILE = 2**18  # a row group; about 3 hours of video
_ROWS_AS_DICTS = 2**10
_FAILED_BYTES = 2**16  # a unit that failed as a whole has committed its failure alone
_MERGED = ("tracks", "clips")
_PLAIN = frozenset([str, int, bool, type(None)])

_SORT_KEYS = {
    "sources": ["source_id"],
    "tracks": ["track_id"],
    "clips": ["clip_id"],
    "frames": ["clip_id", "frame"],
    "shards": ["shard"],
    "failures": ["stage", "unit", "reason", "message"],
    "units": ["stage", "unit"],
}


@dataclass(kw_only=True, slots=True)
class UnitResult:
    """What a unit found: rows by table, and figures for progress."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    num_frames: int = 0
    video_s: float = 0.0

    def fail(self, stage: str, unit: dict[str, Any], reason: str, message: str, attempts: int = 1) -> None:
        """Record that (a part of) the unit failed, in plain words."""
        self.rows.setdefault("failures", []).append(
            {
                "stage": stage,
                "unit": unit["name"],
                "source_id": unit.get("source_id"),
                "uri": unit.get("uri"),
                "reason": reason,
                "message": message,
                "attempts": attempts,
            }
        )


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NumPy numbers become Python's, NaN becomes None, maps become dicts."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind in _PLAIN:
        return value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value


def commit_unit(
    folder: Place, stage: str, unit: dict[str, Any], result: UnitResult, wall_s: float, worker: str
) -> dict[str, Any]:
    """Write the unit's commit file and return its ledger row."""
    ledger_row = {
        "stage": stage,
        "unit": unit["name"],
        "source_id": unit.get("source_id"),
        "num_rows": sum(len(rows) for rows in result.rows.values()),
        "wall_s": wall_s,
        "video_s": result.video_s,
        "num_frames": result.num_frames,
        "worker": worker,
    }
    content = plain({"rows": result.rows, "ledger": ledger_row})
    write_bytes_atomically(folder / f"{unit['name']}.json", orjson.dumps(content))
    return ledger_row


class Ledger:
    """Which units of a stage are finished, in the manifests or still staged."""

    def __init__(self, dataset: Dataset, stage: str, stage_hash: str) -> None:
        self.dataset = dataset
        self.stage = stage
        self.folder = dataset.staging / f"{stage}-{stage_hash}"
        self._hash = stage_hash

    def staged_units(self) -> list[str]:
        """Names of units that have committed but are not in the manifests yet, sorted."""
        return [path.stem for path in self._staged()]

    def _staged(self) -> dict[Place, int]:
        return list_files(self.folder, ".json")

    def finished_units(self) -> set[str]:
        """Names of all units that have committed."""
        units = read_table(self.dataset, "units", ["stage", "unit"])
        mine = units.filter(pc.equal(units["stage"], self._ledger_stage))
        return set(mine["unit"].to_pylist()) | set(self.staged_units())

    @property
    def _ledger_stage(self) -> str:
        return f"{self.stage}-{self._hash}"

    def forget_other_recipes(self, tables: list[str], before: Callable[[], None] | None = None) -> bool:
        """Drop this stage's rows of `tables` when other options made them; True when there were any.

        before: called first if there is anything to drop. Killed at any moment, the next call goes on, whichever the
        options are then: first the ledger says that nothing of the stage counts, and last that it is done.
        """
        folders = [
            folder
            for folder in list_folders(self.dataset.staging)
            if folder.name.startswith(f"{self.stage}-") and folder != self.folder
        ]
        units = read_table(self.dataset, "units")
        stages = pc.unique(units["stage"]).to_pylist()
        mine = [stage for stage in stages if stage.startswith(f"{self.stage}-")]
        is_stale = mine != [self._ledger_stage] if mine else bool(folders)
        if is_stale:
            if before is not None:
                before()
            self._replace_stages(units, mine, f"{self.stage}-dropped")
            for name in tables:
                for file in self.dataset.table_files(name):
                    remove_file(file)
            failures = read_table(self.dataset, "failures")
            replace_table(self.dataset, "failures", failures.filter(pc.not_equal(failures["stage"], self.stage)))
            self._replace_stages(units, mine, None)
        for folder in folders:
            remove_tree(folder)
        return bool(mine) and is_stale

    def _replace_stages(self, units: pa.Table, stages: list[str], name: str | None) -> None:
        """Write the ledger with these stages renamed, or without them."""
        is_one = pc.is_in(units["stage"], pa.array(stages, pa.string()))
        if name is None:
            units = units.filter(pc.invert(is_one))
        else:
            at = units.schema.get_field_index("stage")
            units = units.set_column(at, units.schema.field(at), pc.if_else(is_one, name, units["stage"]))
        replace_table(self.dataset, "units", units)

    def discard_staged_except(self, names: Collection[str]) -> None:
        """Remove the staged commits of all units but these."""
        remove_files(path for path in self._staged() if path.stem not in names)

    def discard_staged_failures(self, reasons: Collection[str]) -> None:
        """Remove the staged commits of units that failed for these reasons: an interrupted run has left them."""
        small = {path: size for path, size in self._staged().items() if size < _FAILED_BYTES}
        staged = ((path, orjson.loads(data)["rows"].get("failures", ())) for path, data in read_files(small))
        remove_files([path for path, failures in staged if any(row["reason"] in reasons for row in failures)])

    def failed_units(self, reasons: Collection[str] | None = None) -> set[str]:
        """Names of units of the stage in `failures`, of those reasons alone where they are given."""
        failures = read_table(self.dataset, "failures", ["stage", "unit", "reason"]).to_pylist()
        mine = (row for row in failures if row["stage"] == self.stage)
        return {row["unit"] for row in mine if reasons is None or row["reason"] in reasons}

    def reopen(self, names: Collection[str]) -> None:
        """Let units be done again: they lose their rows in the ledger, then their failures."""
        if not names:
            return
        wanted = pa.array(sorted(names), pa.string())
        for table, stage in (("units", self._ledger_stage), ("failures", self.stage)):
            rows = read_table(self.dataset, table)
            is_mine = pc.and_(pc.equal(rows["stage"], stage), pc.is_in(rows["unit"], wanted))
            if pc.any(is_mine).as_py():
                replace_table(self.dataset, table, rows.filter(pc.invert(is_mine)))

    def absorb(self, collapse: dict[str, Collapse] | None = None) -> int:
        """Move the rows of all staged units into the manifests; returns how many units there were.

        Rows replace those of the same unit, so that repeating an interrupted call ends in the same state. `collapse`
        may map a table to a function that turns all its rows, old and new, into the rows to keep. Frames are written
        as they come, a file for about `FRAMES_OF_FILE` of them; the rows of all other tables wait in scratch until the
        end. Tracks and clips are merged with the old ones without holding them all. What was forgotten is left out, and
        its staged pictures are removed.
        """
        staged = self._staged()
        if not staged:
            return 0
        rows = {"failures": _Rows("failures"), "units": _Rows("units")}
        frames = _FramesFiles(self.dataset, self._ledger_stage)
        late = LateRows(read_table(self.dataset, "tombstones").to_pylist())
        for path, data in read_files(staged):
            content = orjson.loads(data)
            gone = late.take_out(content["rows"], content["ledger"]["source_id"])
            if gone is None or gone:
                pictures = list_files(self.folder / path.stem)
                remove_files(file for file in pictures if gone is None or file.stem in gone)
            if gone is None:
                continue
            content["rows"]["units"] = [{**content["ledger"], "stage": self._ledger_stage}]
            for table, unit_rows in content["rows"].items():
                if table == "frames":
                    frames.add(path.stem, unit_rows)
                else:
                    rows.setdefault(table, _Rows(table)).add(unit_rows)
        frames.finish()
        names = [path.stem for path in staged]
        for table in sorted(rows, key=lambda name: name == "units"):  # the ledger last: the rest is there
            if table in _MERGED and rows[table].is_sorted:
                merged = _merge_sorted(self._others(table, names), rows[table].tables(), _SORT_KEYS[table][0])
                merged = chain([TABLES[table].empty_table()], merged)  # where there are no rows
            else:
                merged = self._merge(table, rows[table].table(), names, (collapse or {}).get(table))
            replace_table(self.dataset, table, merged)
        remove_files(staged)
        return len(names)

    def drop_superseded(self, planned: Collection[str], uris: Collection[str] | None = None) -> None:
        """Drop the failures of units that are not `planned` any more, with those units' rows in the ledger.

        uris: only failures of these places, where `planned` are the units of these alone. A file that was missing or
        has been replaced is another unit now, and its old failure would stay for ever.
        """
        failures = read_table(self.dataset, "failures")
        old = pc.equal(failures["stage"], self.stage)
        old = pc.and_not(old, pc.is_in(failures["unit"], pa.array(planned, pa.string())))
        if uris is not None:
            old = pc.and_(old, pc.is_in(failures["uri"], pa.array(uris, pa.string())))
        self.reopen(set(failures.filter(old)["unit"].to_pylist()))

    def _merge(self, table: str, new: pa.Table, units: list[str], collapse: Collapse | None) -> pa.Table:
        merged = pa.concat_tables([*self._others(table, units), new])
        if collapse is not None:
            merged = make_table(table, collapse(merged.to_pylist()))
        return _sorted(merged, table)

    def _others(self, table: str, units: list[str]) -> Iterator[pa.Table]:
        """What is in a table but the rows of these units."""
        columns = [name for name in ("unit", "stage") if name in TABLES[table].names]
        if not columns:
            yield from iterate_tables(self.dataset, table)
            return
        old = read_table(self.dataset, table, columns)
        mine = pc.is_in(old["unit"], pa.array(units, pa.string()))
        if "stage" in columns:
            stage = self._ledger_stage if table == "units" else self.stage
            mine = pc.and_(mine, pc.equal(old["stage"], stage))
        for rows, beside in iterate_with(self.dataset, table, pa.table({"is_mine": mine})):
            yield rows.filter(pc.invert(beside["is_mine"]))


def _merge_sorted(one: Iterator[pa.Table], other: Iterator[pa.Table], key: str) -> Iterator[pa.Table]:
    """The rows of two streams of tables that are sorted by `key`, sorted by it."""
    streams = [(table for table in stream if len(table)) for stream in (one, other)]
    heads = [next(stream, None) for stream in streams]
    while None not in heads:
        up_to = min(head[key][-1].as_py() for head in heads)
        parts = []
        for k, head in enumerate(heads):
            num = pc.sum(pc.less_equal(head[key], up_to)).as_py()
            parts.append(head.slice(0, num))
            heads[k] = head.slice(num) if num < len(head) else next(streams[k], None)
        yield pa.concat_tables(parts).sort_by(key)
    for head, stream in zip(heads, streams, strict=True):
        if head is not None:
            yield head
        yield from stream


class _Rows:
    """Rows of a table, gathered one unit after the other in a file in scratch; in memory are only the last few."""

    def __init__(self, name: str) -> None:
        self._name, self._key = name, _SORT_KEYS[name][0]
        self._pending: list[dict[str, Any]] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (goes with this object)
        self._writer = pa.ipc.new_stream(self._file, TABLES[name])
        self._last = ""
        self.is_sorted = True
        """Whether `tables` are in the order of the table's first key: units come in the order of their names, which
        begin with the source's as the keys of tracks and clips do."""
        self.num_rows = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        self._pending += rows
        self.num_rows += len(rows)
        if len(self._pending) >= _ROWS_AS_DICTS:
            self._write()

    def table(self) -> pa.Table:
        return pa.concat_tables(self.tables())

    def tables(self) -> Iterator[pa.Table]:
        """All rows; there may be no more afterwards."""
        self._write()
        self._writer.close()
        self._file.seek(0)
        yield TABLES[self._name].empty_table()
        for batch in pa.ipc.open_stream(self._file):
            yield pa.Table.from_batches([batch])

    def _write(self) -> None:
        if not self._pending:
            return
        rows = _sorted(make_table(self._name, self._pending), self._name)
        self._pending = []
        first, last = rows[self._key][0].as_py() or "", rows[self._key][-1].as_py() or ""
        self.is_sorted &= self._last <= first
        self._last = last
        self._writer.write_table(rows.combine_chunks())


class _FramesFiles:
    """Writes frames of units as files of the table: it is too large to be written anew, and too large for the memory.

    A file holds whole units in the order of their names and is named after them, so that the same units give the same
    files.
    """

    def __init__(self, dataset: Dataset, ledger_stage: str) -> None:
        self._dataset, self._ledger_stage = dataset, ledger_stage
        self._rows = _Rows("frames")
        self._units: list[str] = []
        self._written: dict[Place, pa.Array] = {}

    def add(self, unit: str, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        self._rows.add(rows)
        self._units.append(unit)
        if self._rows.num_rows >= FRAMES_OF_FILE:
            self._write()

    def _write(self) -> None:
        new = _sorted(self._rows.table(), "frames")
        name = hashlib.sha256("\n".join(self._units).encode()).hexdigest()[:16]
        path = self._dataset.table_folder("frames") / f"{self._ledger_stage}-{name}.parquet"
        write_parquet(path, new)
        self._written[path] = new["clip_id"].unique()
        self._rows, self._units = _Rows("frames"), []

    def finish(self) -> None:
        """Write the rest, then take the same clips out of other files: an interrupted call may have written them
        together with other units."""
        if self._units:
            self._write()
        if not self._written:
            return
        clips = pa.concat_arrays(list(self._written.values()))
        for file in self._dataset.table_files("frames"):
            if file in self._written:
                continue
            if pc.any(pc.is_in(read_parquet([file], "frames", ["clip_id"])["clip_id"], clips)).as_py():
                old = read_parquet([file], "frames")
                left = old.filter(pc.invert(pc.is_in(old["clip_id"], clips)))
                if len(left):
                    write_parquet(file, left)
                else:
                    remove_file(file)


def _sorted(table: pa.Table, name: str) -> pa.Table:
    return table.sort_by([(key, "ascending") for key in _SORT_KEYS[name]])
