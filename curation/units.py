"""Units of work and how they commit.

A stage divides its work into units, named by the content that they read. A unit commits itself by one JSON file,
`staging/STAGE-HASH/UNIT.json`, renamed into place last; it holds the unit's rows for the tables. What a unit writes
besides (cropped pictures) lies beside it and counts only once that file is there. When a stage is complete the driver
moves the rows of all its units into the manifests (`Ledger.absorb`); repeating that after a crash changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.schema import TABLES, make_table
from manifests.store import (
    Dataset,
    read_parquet,
    read_table,
    replace_table,
    write_bytes_atomically,
    write_parquet,
)

Collapse = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]

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
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def commit_unit(
    folder: Path, stage: str, unit: dict[str, Any], result: UnitResult, wall_s: float, worker: str
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
    write_bytes_atomically(folder / f"{unit['name']}.json", json.dumps(content, allow_nan=False).encode())
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
        return sorted(p.stem for p in self.folder.glob("*.json")) if self.folder.is_dir() else []

    def finished_units(self) -> set[str]:
        """Names of all units that have committed."""
        units = read_table(self.dataset, "units", ["stage", "unit"])
        mine = units.filter(pc.equal(units["stage"], self._ledger_stage))
        return set(mine["unit"].to_pylist()) | set(self.staged_units())

    @property
    def _ledger_stage(self) -> str:
        return f"{self.stage}-{self._hash}"

    def forget_other_recipes(self, tables: list[str]) -> bool:
        """Drop this stage's rows of `tables` when other options made them; True when there were any."""
        for folder in self.dataset.staging.glob(f"{self.stage}-*"):
            if folder != self.folder:
                shutil.rmtree(folder)
        units = read_table(self.dataset, "units")
        stages = set(units["stage"].to_pylist())
        stale = sorted(s for s in stages if s.startswith(f"{self.stage}-") and s != self._ledger_stage)
        if not stale:
            return False
        for name in tables:
            for file in self.dataset.table_files(name):
                file.unlink()
        failures = read_table(self.dataset, "failures")
        replace_table(self.dataset, "failures", failures.filter(pc.not_equal(failures["stage"], self.stage)))
        kept = units.filter(pc.invert(pc.is_in(units["stage"], pa.array(stale))))
        replace_table(self.dataset, "units", kept)
        return True

    def absorb(self, collapse: dict[str, Collapse] | None = None) -> int:
        """Move the rows of all staged units into the manifests; returns how many units there were.

        Rows replace those of the same unit, so that repeating an interrupted call ends in the same state. `collapse`
        may map a table to a function that turns all its rows, old and new, into the rows to keep.
        """
        names = self.staged_units()
        if not names:
            return 0
        rows: dict[str, list[dict[str, Any]]] = {"failures": []}
        ledger = []
        for name in names:
            content = json.loads((self.folder / f"{name}.json").read_bytes())
            ledger.append({**content["ledger"], "stage": self._ledger_stage})
            for table, unit_rows in content["rows"].items():
                rows.setdefault(table, []).extend(unit_rows)
        if frames := rows.pop("frames", None):
            self._add_frames(_sorted(make_table("frames", frames), "frames"), names)
        for table, new in rows.items():
            self._merge(table, new, names, (collapse or {}).get(table))
        self._merge("units", ledger, names, None)
        for name in names:
            (self.folder / f"{name}.json").unlink()
        return len(names)

    def _add_frames(self, new: pa.Table, units: list[str]) -> None:
        """Write `new` as a file of its own: `frames` is too large to be written anew each time.

        Rows of the same clips in other files go: an interrupted call may have written them with other units.
        """
        clips = new["clip_id"].unique()
        for file in self.dataset.table_files("frames"):
            if pc.any(pc.is_in(read_parquet([file], "frames", ["clip_id"])["clip_id"], clips)).as_py():
                old = read_parquet([file], "frames")
                write_parquet(file, old.filter(pc.invert(pc.is_in(old["clip_id"], clips))))
        name = hashlib.sha256("\n".join(units).encode()).hexdigest()[:16]
        write_parquet(self.dataset.table_folder("frames") / f"{self._ledger_stage}-{name}.parquet", new)

    def _merge(self, table: str, new: list[dict[str, Any]], units: list[str], collapse: Collapse | None) -> None:
        old = read_table(self.dataset, table)
        if "unit" in TABLES[table].names:
            mine = pc.is_in(old["unit"], pa.array(units))
            if "stage" in TABLES[table].names:
                mine = pc.and_(mine, pc.equal(old["stage"], self._ledger_stage if table == "units" else self.stage))
            old = old.filter(pc.invert(mine))
        merged = pa.concat_tables([old, make_table(table, new)])
        if collapse is not None:
            merged = make_table(table, collapse(merged.to_pylist()))
        replace_table(self.dataset, table, _sorted(merged, table))


def _sorted(table: pa.Table, name: str) -> pa.Table:
    return table.sort_by([(key, "ascending") for key in _SORT_KEYS[name]])
