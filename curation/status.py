"""How a run goes, or went: told from the files of the data set alone, by whoever can read them, whatever became of it.

The plan and the rates come from the heartbeat of the driver, what is finished from the commits of the workers: a
listing of `staging/STAGE-HASH/` and the table `units`. So the counts are right when the driver is dead, too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from curation.runs import BEAT_S, RECENT_S, STALE_S, committed_units, is_command, pid_space, read_heartbeat
from manifests.console import clock, make_console
from manifests.storage import Place, list_folders
from manifests.store import Dataset, again_if_replaced, open_parquet, read_table

_MAX_FAILURES_SHOWN = 8
_OF_FAILURES = ("stage", "uri", "reason", "message")
_MAX_CLOCK_DIFFERENCE_S = 900.0  # an object store refuses requests from clocks that are further off
_MAX_EVERY_S = 86_400.0
_TWO_BEATS_S, _LOOK_S = 2 * BEAT_S, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """One stage of the last run."""

    stage: str
    state: str
    """running | done | stopped"""
    num_planned: int | None = None
    """Units of work; None: nobody has said."""
    num_done: int | None = None
    num_problems: int = 0
    """Of the units that are done, in this run or before."""
    num_frames: int = 0
    """Looked at in this run; so are all rates."""
    took_s: float | None = None
    units_per_s: float | None = None
    frames_per_s: float | None = None
    recent_units_per_s: float | None = None
    """Over the last five minutes."""
    recent_frames_per_s: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What is known of a data set's last run."""

    dataset: str
    status: str
    """running | succeeded | failed | killed | lost (its driver is gone and nothing has run since) | none"""
    run_id: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    host: str | None = None
    process: int | None = None
    address: str | None = None
    recipe_hash: str | None = None
    last_error: str | None = None
    heartbeat_s: float | None = None
    """Age of the driver's last sign of life; 0 where the clocks of the two machines differ."""
    stages: list[StageStatus]
    num_workers: int = 0
    """Processes that finished a unit in this run."""
    num_recent_workers: int = 0
    """Those that did in the last five minutes."""
    last_unit_at: str | None = None
    failures: list[dict[str, Any]]
    """The last ones: stage, uri, reason, message."""
    runs: dict[str, int]
    """Attempts by status."""

    @property
    def is_active(self) -> bool:
        return self.status == "running"


def read_status(dataset: Dataset) -> Status:
    """Look now. Nothing is changed, no lock is taken.

    Raises:
        ValueError: there is no data set.
    """
    if not dataset.recipe_file.exists():
        raise ValueError(f"no data set at {dataset.root}: expected a folder with recipe.toml in it")
    beat, rows = _read_runs(dataset)
    age_s = _age_of(beat, rows)
    if _may_be_clock(beat, rows, age_s) and _moves(dataset, beat):
        (beat, rows), age_s = _read_runs(dataset), 0.0
    last = rows[-1] if rows else None
    counts = Counter(row["status"] for row in rows)
    problems = _count_problems(dataset)
    if last is None:
        stages = _stages_without_plan(dataset, problems)
        failures = _last_failures(dataset)
        return Status(dataset=str(dataset.root), status="none", stages=stages, failures=failures, runs={})
    status = last["status"]
    if status == "running" and (age_s >= STALE_S or (_is_here(beat) and not _is_process(last["process"]))):
        status = "lost"
        counts = counts - Counter(["running"]) + Counter(["lost"])
    at_work = beat["stages"][-1]["ledger_stage"] if beat and beat["stages"] else ""
    committed = committed_units(dataset, at_work) if at_work else None
    if status == "succeeded" or beat is None:
        stages = [_past_stage(stage, problems) for stage in last["stages"] or []]
        if stages and status != "succeeded":  # it went through those before
            stages[-1] = replace(stages[-1], state="stopped")
    else:
        is_alive = status == "running"
        if status not in ("running", "lost") and beat["stages"]:
            beat["stages"][-1]["is_over"] = False  # the run was, in the midst of it
        stages = [_live_stage(stage, committed, problems, age_s, is_alive=is_alive) for stage in beat["stages"]]
    workers = (beat or {}).get("workers", {})
    heard = [at for at in ((beat or {}).get("last_unit_at"), committed and committed[2]) if at]
    return Status(
        dataset=str(dataset.root),
        status=status,
        **{k: last[k] for k in ("run_id", "started_at", "ended_at", "host", "process", "address", "recipe_hash")},
        last_error=last["last_error"],
        heartbeat_s=None if beat is None else round(age_s, 1),
        stages=stages,
        num_workers=max((beat or {}).get("num_workers", 0), last["num_workers"] or 0),
        num_recent_workers=_num_recent(workers, beat["beat_at"] + age_s) if beat and status == "running" else 0,
        last_unit_at=_text_of(max(heard, default=None)),
        failures=_shown((beat or {}).get("failures") or []) or _last_failures(dataset),
        runs=dict(sorted(counts.items())),
    )


def _read_runs(dataset: Dataset) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The heartbeat of the last run and the rows of all."""
    beat = read_heartbeat(dataset)  # before the table: a run that ends in between has its row
    rows = [row for row in read_table(dataset, "runs").to_pylist() if not is_command(row)]
    if beat is not None and rows and beat["run_id"] != rows[-1]["run_id"]:
        beat = None  # of an earlier one: the last has just begun
    return beat, rows


def _age_of(beat: dict[str, Any] | None, rows: list[dict[str, Any]]) -> float:
    """Of the driver's last sign of life, by this machine's clock; never less than 0."""
    if not rows:
        return 0.0
    seen_at = beat["beat_at"] if beat else datetime.fromisoformat(rows[-1]["started_at"]).timestamp()
    return max(time.time() - seen_at, 0.0)


def _is_here(beat: dict[str, Any] | None) -> bool:
    """Whether the driver's process, and its clock, are this machine's: a container may have another's host name."""
    return beat is not None and beat.get("pid_space") == pid_space()


def _may_be_clock(beat: dict[str, Any] | None, rows: list[dict[str, Any]], age_s: float) -> bool:
    """Whether a run may only seem to be silent, because this machine's clock is ahead of the driver's."""
    is_running = bool(rows) and rows[-1]["status"] == "running"
    return is_running and STALE_S <= age_s < _MAX_CLOCK_DIFFERENCE_S and not _is_here(beat)


def _moves(dataset: Dataset, beat: dict[str, Any] | None) -> bool:
    """Whether another heartbeat comes, or the run ends."""
    _say_once(
        "the last heartbeat is old by the clock of this machine, which may be wrong: waiting up to"
        f" {_TWO_BEATS_S:.0f} s for the next one"
    )
    deadline = time.monotonic() + _TWO_BEATS_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        if _read_runs(dataset)[0] != beat:
            return True
    return False


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _is_process(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _live_stage(
    stage: dict[str, Any],
    committed: tuple[int, int, float | None] | None,
    problems: dict[str, int],
    age_s: float,
    *,
    is_alive: bool,
) -> StageStatus:
    """A stage of a heartbeat of that age. committed: of the stage at work, the last one, see `committed_units`."""
    name, planned, took_s = stage["stage"], stage["num_planned"], stage["took_s"]
    before = stage["num_done_before"] or 0
    num_done, num_new, num_problems = before + stage["num_done"], stage["num_done"], problems.get(name, 0)
    if stage["is_over"]:
        num_done, state = planned, "done"
    else:
        state = "running" if is_alive else "stopped"
        if committed is not None:
            finished, staged, _ = committed
            num_new = max(finished - stage["num_committed_before"], 0)  # the driver may not have heard of the last
            num_done = before + num_new
            num_problems += stage["failed_before"] + stage["num_failed"] if staged else 0
        if is_alive:
            took_s += age_s
    if name == "pack":
        num_problems = stage["failed_before"] + stage["num_failed"]
    timed = num_new if state == "running" else stage["num_done"]  # a dead driver's clock stopped at its last heartbeat
    rates = (_rate(timed, took_s), _rate(stage["num_frames"], stage["took_s"]))
    recent = (None, None)
    if state == "running" and len(stage["samples"]) > 1:
        (first_at, first_done, first_frames), (at, done, frames) = stage["samples"][0], stage["samples"][-1]
        recent = (_rate(done - first_done, at - first_at), _rate(frames - first_frames, at - first_at))
    rate = recent[0] or rates[0]
    is_going_on = state == "running" and planned is not None and rate
    return StageStatus(
        stage=name,
        state=state,
        num_planned=planned,
        num_done=num_done if planned is not None else None,
        num_problems=num_problems,
        num_frames=stage["num_frames"],
        took_s=round(took_s, 1),
        units_per_s=rates[0],
        frames_per_s=rates[1],
        recent_units_per_s=recent[0],
        recent_frames_per_s=recent[1],
        eta_s=round((planned - num_done) / rate, 1) if is_going_on else None,
    )


def _past_stage(stage: dict[str, Any], problems: dict[str, int]) -> StageStatus:
    """A stage of a row of the table `runs`, gone through."""
    planned, name = stage["num_planned"], stage["stage"]
    num_done = None if planned is None else (stage["num_done_before"] or 0) + (stage["num_done"] or 0)
    return StageStatus(
        stage=name,
        state="done",
        num_planned=planned,
        num_done=num_done,
        num_problems=max(problems.get(name, 0), stage["num_failed"] or 0),
        num_frames=stage["num_frames"] or 0,
        took_s=round(stage["took_s"] or 0.0, 1),
        units_per_s=_rate(stage["num_done"], stage["took_s"]),
        frames_per_s=_rate(stage["num_frames"], stage["took_s"]),
    )


def _stages_without_plan(dataset: Dataset, problems: dict[str, int]) -> list[StageStatus]:
    """Of a data set that no recorded run has touched: what is finished."""
    names = {path.name for path in list_folders(dataset.staging)}
    names |= set(read_table(dataset, "units", ["stage"])["stage"].to_pylist())
    stages = []
    for stage in ("index", "scan", "crop", "pack"):
        num_done = sum(committed_units(dataset, name)[0] for name in names if name.startswith(f"{stage}-"))
        if num_done:
            done = StageStatus(stage=stage, state="done", num_done=num_done, num_problems=problems.get(stage, 0))
            stages.append(done)
    return stages


def _rate(number: int | None, seconds: float | None) -> float | None:
    return round(number / seconds, 4) if number and seconds else None


def _num_recent(workers: dict[str, float], now: float) -> int:
    """Workers that have finished a unit in the last minutes. now: by the clock of the driver."""
    return sum(at >= now - RECENT_S for at in workers.values())


def _count_problems(dataset: Dataset) -> dict[str, int]:
    """Units with failures, by stage."""
    failures = read_table(dataset, "failures", ["stage", "unit"])
    counted = failures.group_by("stage").aggregate([("unit", "count_distinct", pc.CountOptions(mode="all"))])
    return dict(zip(counted["stage"].to_pylist(), counted["unit_count_distinct"].to_pylist(), strict=True))


def _last_failures(dataset: Dataset) -> list[dict[str, Any]]:
    """The last rows of the table, of which no more than its end is held."""
    rows = [again_if_replaced(_last_rows, file) for file in dataset.table_files("failures")[-1:]]
    return _shown(rows[0] if rows else [])


def _last_rows(file: Place) -> list[dict[str, Any]]:
    batches: deque[pa.RecordBatch] = deque(maxlen=_MAX_FAILURES_SHOWN)
    with open_parquet(file) as parquet:
        last = list(range(parquet.num_row_groups))[-2:]
        batches.extend(parquet.iter_batches(1024, row_groups=last, columns=list(_OF_FAILURES)))
    return [row for batch in batches for row in batch.slice(max(len(batch) - _MAX_FAILURES_SHOWN, 0)).to_pylist()]


def _shown(failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: f.get(k) for k in _OF_FAILURES} for f in failures[-_MAX_FAILURES_SHOWN:]]


def _text_of(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def show_status(dataset: Dataset, *, as_json: bool = False, watch: bool = False, every_s: float = 2.0) -> None:
    """Print the status, once or again and again until the run ends.

    Raises:
        ValueError: there is no data set, or `every_s` is no interval.
    """
    if not 0 < every_s <= _MAX_EVERY_S:
        raise ValueError(f"--every-s is {every_s:g}: expected more than 0, at most {_MAX_EVERY_S:g}")
    console = make_console()
    while True:
        status = read_status(dataset)
        if as_json:
            print(json.dumps(asdict(status) | {"is_active": status.is_active}, indent=None if watch else 2), flush=True)
        else:
            if watch and console.is_terminal:
                console.clear()
            print_status(status, console)
        if not watch or not status.is_active:
            return
        time.sleep(every_s)


def print_status(status: Status, console: Console) -> None:
    """The status for people."""
    console.print(f"{status.dataset}: {_headline(status)}", highlight=False, soft_wrap=True)
    if status.stages:
        console.print(_table_of_stages(status.stages), highlight=False)
    facts = Table(show_header=False, box=None, pad_edge=False)
    if status.num_workers:
        active = f", {status.num_recent_workers} of them in the last 5 minutes" if status.is_active else ""
        noun = "process that has" if status.num_workers == 1 else "processes that have"
        facts.add_row("workers", f"{status.num_workers} {noun} finished a unit{active}")
    if status.last_unit_at:
        facts.add_row("last unit", f"{status.last_unit_at}, {_ago(status.last_unit_at)} ago")
    if status.runs:
        facts.add_row("runs", ", ".join(f"{number} {name}" for name, number in status.runs.items()))
    for failure in reversed(status.failures):
        where = failure["uri"] or ""
        facts.add_row("problem", f"{failure['stage']}: {where}: {failure['message']} ({failure['reason']})")
    if facts.row_count:
        console.print(facts, highlight=False)


def _headline(status: Status) -> str:
    where = f"{status.host}, process {status.process}"
    if status.status == "none":
        return "no run is recorded"
    if status.status == "running":
        silence = "" if status.heartbeat_s is None else f"; heartbeat {status.heartbeat_s:.0f} s ago"
        return f"running on {where}, for {_ago(status.started_at)}{silence}"
    if status.status == "lost":
        beat = "" if status.heartbeat_s is None else f", last heard of {clock(status.heartbeat_s)} ago"
        return f"lost: the driver on {where} is gone{beat}; the same command continues"
    error = f": {status.last_error}" if status.last_error else ""
    return f"{status.status} {_ago(status.ended_at)} ago{error}" if status.ended_at else f"{status.status}{error}"


def _table_of_stages(stages: list[StageStatus]) -> Table:
    table = Table("stage", "", box=None, pad_edge=False)
    for column in ("done", "problems", "units/s", "frames/s", "last 5 min: units/s", "frames/s", "took", "ETA"):
        table.add_column(column, justify="right")
    for s in stages:
        done = "" if s.num_done is None else f"{s.num_done}/{'?' if s.num_planned is None else s.num_planned}"
        rates = (s.units_per_s, s.frames_per_s, s.recent_units_per_s, s.recent_frames_per_s)
        shown = ["" if rate is None else f"{rate:.3g}" if rate < 100 else f"{rate:.0f}" for rate in rates]
        times = ["" if seconds is None else clock(seconds) for seconds in (s.took_s, s.eta_s)]
        table.add_row(s.stage, s.state, done, str(s.num_problems) if s.num_problems else "", *shown, *times)
    return table


def _ago(text: str | None) -> str:
    return "?" if text is None else clock(max(time.time() - datetime.fromisoformat(text).timestamp(), 0.0))
