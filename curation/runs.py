"""What is known of each attempt at a run: a row of the table `runs`, and `staging/run.json` while it goes on. Of
`select` and `forget`, which change the tables too, the row alone.

The row is written when an attempt starts and again when it ends. `run.json` is the heartbeat: what the attempt wants
to do and how far it has come, written when a stage begins and every few seconds by a thread, so that anybody can ask
(`curation.status`) and the next attempt can say what became of one that was killed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.changes import Selection
from curation.recipe import Recipe, recipe_toml
from manifests.schema import TABLES, make_table
from manifests.storage import Place, filesystem_of, full_path, is_local, printable, read_bytes
from manifests.store import Dataset, read_table, replace_table, write_bytes_atomically

BEAT_S, STALE_S, RECENT_S = 10.0, 45.0, 300.0
_MAX_FAILURES, _MAX_WORKERS, _MAX_ERROR = 20, 2000, 2000
_OF_STAGES = tuple(field.name for field in TABLES["runs"].field("stages").type.value_type)


def run_file(dataset: Dataset) -> Place:
    """There while a run has not ended, after one that was killed or failed, and after one that was to keep staging/."""
    return dataset.staging / "run.json"


def read_heartbeat(dataset: Dataset) -> dict[str, Any] | None:
    """The content of `run_file`."""
    try:
        return json.loads(read_bytes(run_file(dataset)))
    except (FileNotFoundError, NotADirectoryError):
        return None


def committed_units(dataset: Dataset, ledger_stage: str) -> tuple[int, int, float | None]:
    """Units of a stage and recipe (`scan-0123abcd`) that are finished, how many of them are still staged, and when the
    last of these was committed, by the clock of the file system.

    A listing and one column: no commit file is read, and no driver needs to be alive.
    """
    names, last_at = _list_commits(dataset.staging / ledger_stage)
    staged = pa.array(names, pa.string())
    units = read_table(dataset, "units", ["stage", "unit"])
    absorbed = units.filter(pc.equal(units["stage"], ledger_stage))["unit"].combine_chunks()
    num_both = pc.sum(pc.is_in(staged, absorbed)).as_py() or 0
    return len(absorbed) + len(staged) - num_both, len(staged), last_at


def _list_commits(folder: Place) -> tuple[list[str], float | None]:
    """Units with a commit file in a folder, and when the last one came."""
    names, last_at = [], 0.0
    if is_local(folder):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in (entry for entry in entries if entry.name.endswith(".json")):
                names.append(entry.name.removesuffix(".json"))
                with suppress(FileNotFoundError):  # it has gone since, into the manifests
                    last_at = max(last_at, entry.stat().st_mtime)
    else:
        with suppress(FileNotFoundError):
            for entry in (e for e in folder.fs.ls(folder.path, detail=True) if e["name"].endswith(".json")):
                names.append(entry["name"].rsplit("/", 1)[-1].removesuffix(".json"))
                if "LastModified" in entry:
                    last_at = max(last_at, entry["LastModified"].timestamp())
    return names, last_at or None


def pid_space() -> str:
    """Where a number of a process means the same: the host, this boot of it, and the PID namespace, as far as the
    system tells."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


@contextmanager
def record_command(dataset: Dataset, recipe: Recipe, stage: str, changes: Sequence[str] = ()) -> Iterator[RunRecord]:
    """`record_run` of a command that is no run and done in one stage (select, forget): a row, but no heartbeat, which
    would take the place of an unfinished run's."""
    with record_run(dataset, [], recipe, changes=changes, has_heartbeat=False) as record:
        record.enter(stage)
        yield record


def is_command(row: dict[str, Any]) -> bool:
    """Whether a row of the table `runs` is of `record_command`."""
    return [stage["stage"] for stage in row["stages"] or []] in (["select"], ["forget"])


@contextmanager
def record_run(
    dataset: Dataset,
    inputs: list[str],
    recipe: Recipe,
    address: str = "",
    *,
    changes: Sequence[str] = (),
    has_heartbeat: bool = True,
) -> Iterator[RunRecord]:
    """Keep the records of one attempt. The caller holds the data set's lock, and its recipe is written.

    changes: the options in which the recipe differs from the one before, in words.
    """
    record = RunRecord(dataset, inputs, recipe, address, has_heartbeat, changes)
    record.begin()
    try:
        yield record
    except KeyboardInterrupt:
        record.end("killed", "interrupted")
        raise
    except Exception as error:
        record.end("failed", str(error) or type(error).__name__)
        raise
    else:
        record.end("succeeded")
    finally:
        record.stop()


class RunRecord:
    """One attempt. `enter` begins a stage, `count` takes the summary of each unit, `note_selection` what select did."""

    def __init__(
        self,
        dataset: Dataset,
        inputs: list[str],
        recipe: Recipe,
        address: str,
        has_heartbeat: bool = True,
        changes: Sequence[str] = (),
    ) -> None:
        self._dataset, self._has_heartbeat = dataset, has_heartbeat
        self.num_kept: int | None = None
        self._decision_changes: list[str] = []
        self._mutex = threading.Lock()
        self._writing = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._failed_before: dict[str, int] = {}
        now = time.time()
        self._state: dict[str, Any] = {
            "run_id": f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}",
            "started_at": _text_of(now),
            "ended_at": None,
            "status": "running",
            "inputs": [_full_name(text) for text in inputs],
            "recipe_hash": recipe.stage_hash("pack"),
            "recipe": recipe_toml(recipe),
            "recipe_changes": list(changes),
            "num_kept": None,
            "decision_changes": [],
            "seed": recipe.seed,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "pid_space": pid_space(),
            "address": address or None,
            "num_workers": 0,
            "program_version": _program_version(),
            "last_error": None,
            "stages": [],
            "workers": {},  # name -> when it last finished a unit
            "last_unit_at": None,
            "failures": [],  # the last few
            "beat_at": now,
        }

    def begin(self) -> None:
        """Write the first row; attempts whose row still says `running` were killed, because we have the lock."""
        left = read_heartbeat(self._dataset)
        rows = read_table(self._dataset, "runs").to_pylist()
        for row in rows:
            if row["status"] == "running":
                if left is not None and left["run_id"] == row["run_id"]:
                    row |= _row_of(left) | {"ended_at": _text_of(left["beat_at"])}
                row["status"] = "killed"
        if left is not None and self._has_heartbeat:
            self._failed_before = _staged_problems(self._dataset, left)
        _write_rows(self._dataset, [*rows, _row_of(self._state)])
        if self._has_heartbeat:
            self._thread.start()

    def enter(
        self,
        stage: str,
        ledger_stage: str = "",
        num_planned: int | None = None,
        num_todo: int = 0,
        num_committed: int = 0,
    ) -> None:
        """A stage begins.

        ledger_stage: where commits are counted (see `committed_units`); "": the work leaves none behind (select).
        num_planned: units that there are in all, of which `num_todo` are not finished.
        num_committed: units that have committed, those of other inputs too.
        """
        with self._mutex:
            now = time.time()
            self._end_stage(now)
            self._state["stages"].append(
                {
                    "stage": stage,
                    "ledger_stage": ledger_stage,
                    "num_planned": num_planned,
                    "num_done_before": None if num_planned is None else num_planned - num_todo,
                    "num_committed_before": num_committed,
                    "failed_before": self._failed_before.get(ledger_stage, 0),
                    "num_done": 0,
                    "num_failed": 0,
                    "num_frames": 0,
                    "video_s": 0.0,
                    "took_s": 0.0,
                    "began_at": now,
                    "is_over": False,
                    "samples": [],  # time, units, frames; of the last minutes
                }
            )
        self.write()

    def restart_clock(self) -> None:
        """The stage's work begins only now: what came before (starting Ray) is not its time."""
        with self._mutex:
            self._state["stages"][-1] |= {"began_at": time.time(), "samples": []}

    def count(self, summary: dict[str, Any]) -> None:
        """A unit of the stage has finished."""
        with self._mutex:
            now, stage = time.time(), self._state["stages"][-1]
            stage["num_done"] += 1
            stage["num_frames"] += summary.get("num_frames") or 0
            stage["video_s"] += summary.get("video_s") or 0.0
            stage["num_failed"] += bool(summary.get("failures"))
            self._state["last_unit_at"] = now
            for failure in summary.get("failures", []):
                self._state["failures"].append({"at": now, "stage": stage["stage"], **failure})
            del self._state["failures"][:-_MAX_FAILURES]
            if worker := summary.get("worker"):
                workers = self._state["workers"]
                self._state["num_workers"] += worker not in workers
                workers.pop(worker, None)
                workers[worker] = now
                if len(workers) > _MAX_WORKERS:
                    del workers[next(iter(workers))]

    def note_selection(self, selection: Selection) -> Selection:
        """Select has decided; the same is returned."""
        self.num_kept = selection.num_kept
        self._decision_changes = [line.strip() for line in selection.describe()]
        return selection

    def end(self, status: str, error: str | None = None) -> None:
        """Write the last row. A full disk may prevent it: then the next attempt says that this one was killed."""
        self.stop()
        with self._mutex:
            self._end_stage(time.time())
            self._state |= {
                "status": status,
                "num_kept": self.num_kept,
                "decision_changes": self._decision_changes,
                "last_error": error and error[:_MAX_ERROR],
                "ended_at": _text_of(),
            }
        with suppress(OSError):
            if status != "succeeded":
                self.write()
            rows = read_table(self._dataset, "runs").to_pylist()
            others = [row for row in rows if row["run_id"] != self._state["run_id"]]
            _write_rows(self._dataset, [*others, _row_of(self._state)])

    def stop(self) -> None:
        """End the heartbeat."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _end_stage(self, now: float) -> None:
        if self._state["stages"]:
            stage = self._state["stages"][-1]
            stage |= {"took_s": now - stage["began_at"], "is_over": True}

    def write(self) -> None:
        """Write the heartbeat now."""
        if not self._has_heartbeat:
            return
        with self._writing:  # so that none takes the place of a later one; `count` does not wait for it
            with self._mutex:
                now = time.time()
                self._state["beat_at"] = now
                if self._state["stages"] and not (stage := self._state["stages"][-1])["is_over"]:
                    stage["took_s"] = now - stage["began_at"]
                    fresh = [s for s in stage["samples"] if s[0] >= now - RECENT_S]
                    stage["samples"] = [*fresh, [now, stage["num_done"], stage["num_frames"]]]
                data = json.dumps(self._state).encode()
            write_bytes_atomically(run_file(self._dataset), data)

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_S):
            with suppress(OSError):  # a full disk stops the work, not the heartbeat
                self.write()


def _staged_problems(dataset: Dataset, left: dict[str, Any]) -> dict[str, int]:
    """Ledger stage -> units with failures that the last attempt has left in staging/: of the stage in which it ended.

    Those of the stages before, and of this one where it got so far, are in the table `failures`.
    """
    return {
        stage["ledger_stage"]: stage["failed_before"] + stage["num_failed"]
        for stage in left["stages"][-1:]
        if stage["ledger_stage"] and committed_units(dataset, stage["ledger_stage"])[1]
    }


def _row_of(state: dict[str, Any]) -> dict[str, Any]:
    """The row of the table `runs` of a heartbeat."""
    stages = [{name: stage[name] for name in _OF_STAGES} for stage in state["stages"]]
    return {name: state.get(name) for name in TABLES["runs"].names if name != "stages"} | {"stages": stages}


def _write_rows(dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    table = make_table("runs", rows)
    replace_table(dataset, "runs", table.sort_by([("started_at", "ascending"), ("run_id", "ascending")]))


def _full_name(text: str) -> str:
    """An input as `sources.uris` would name it, so that `forget` finds it."""
    filesystem, path = filesystem_of(os.path.expanduser(text))
    if filesystem.protocol in ("file", ("file", "local")):
        return printable(full_path(path))
    return filesystem.unstrip_protocol(path)


def _program_version() -> str | None:
    try:
        return importlib.metadata.version("portrait-training")
    except importlib.metadata.PackageNotFoundError:
        return None


def _text_of(at: float | None = None) -> str:
    """UTC, ISO 8601."""
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="milliseconds")
