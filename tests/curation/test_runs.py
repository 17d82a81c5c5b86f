"""The records of runs: what each attempt did and how it ended, also when it could not say so itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from curation import runs
from curation.__main__ import main
from curation.index import list_inputs
from curation.recipe import IndexOptions, Recipe, recipe_toml
from curation.runs import RunRecord, committed_units, read_heartbeat, record_command, record_run, run_file
from curation.sandbox import FatalError
from curation.status import read_status
from curation.units import Ledger, UnitResult, commit_unit
from manifests.query import ask
from manifests.store import Dataset, write_bytes_atomically
from manifests.views import connect

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe()


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    (tmp_path / "dataset" / "staging").mkdir(parents=True)
    return Dataset(tmp_path / "dataset")


def ledger(dataset: Dataset, stage: str = "scan") -> Ledger:
    made = Ledger(dataset, stage, RECIPE.stage_hash(stage))
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def summary(worker: str = "node/1", *, failed: bool = False) -> dict:
    failures = [{"uri": "/v/x.mp4", "reason": "no_face", "message": "no face was found"}] if failed else []
    return {"unit": "u", "num_frames": 100, "video_s": 4.0, "worker": worker, "failures": failures}


def test_attempt_that_succeeds(dataset, rows_of):
    with record_run(dataset, ["videos", "s3://bucket/raw"], RECIPE, "ray://head:10001") as record:
        (running,) = rows_of(dataset.root, "runs")
        assert (running["status"], running["ended_at"], running["stages"]) == ("running", None, [])
        record.enter("index", ledger(dataset, "index").folder.name, 3, 1)
        record.count(summary())
        record.enter("scan", ledger(dataset).folder.name, 5, 5)
        for worker in ("a/1", "a/2", "a/1"):
            record.count(summary(worker, failed=worker == "a/2"))
        record.enter("select")
    (row,) = rows_of(dataset.root, "runs")
    assert row["run_id"] == running["run_id"]
    assert (row["status"], row["last_error"], row["address"]) == ("succeeded", None, "ray://head:10001")
    assert row["inputs"] == [os.path.abspath("videos"), "s3://bucket/raw"]
    assert (row["seed"], row["recipe_hash"]) == (0, RECIPE.stage_hash("pack"))
    assert (row["process"], row["num_workers"]) == (os.getpid(), 3)
    assert row["started_at"] <= row["ended_at"]
    figures = [
        tuple(s[k] for k in ("stage", "num_planned", "num_done_before", "num_done", "num_failed"))
        for s in row["stages"]
    ]
    assert figures == [("index", 3, 2, 1, 0), ("scan", 5, 0, 3, 1), ("select", None, None, 0, 0)]
    assert (row["stages"][1]["num_frames"], row["stages"][1]["video_s"]) == (300, 12.0)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (FatalError("the disk is full"), "failed", "the disk is full"),
        (KeyboardInterrupt(), "killed", "interrupted"),
        (ValueError(), "failed", "ValueError"),
    ],
)
def test_attempt_that_ends_early(dataset, rows_of, error, status, words):
    with suppress(type(error)), record_run(dataset, [], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 2, 2)
        record.count(summary())
        raise error
    (row,) = rows_of(dataset.root, "runs")
    assert (row["status"], row["last_error"], row["stages"][0]["num_done"]) == (status, words, 1)
    assert row["ended_at"] is not None
    assert read_heartbeat(dataset)["status"] == status


def test_killed_attempt_is_marked_by_the_next(dataset, rows_of):
    """Its row has the figures of its last heartbeat."""
    program = (
        "import sys, time; from curation.runs import *; from curation.recipe import Recipe\n"
        "dataset = Dataset(sys.argv[1]); runs = sys.modules['curation.runs']; runs.BEAT_S = 0.05\n"
        "with record_run(dataset, [], Recipe()) as record:\n"
        "    record.enter('scan', 'scan-0', 9, 7)\n"
        f"    record.count({summary('a/1', failed=True)!r}); record.count({summary('a/2')!r})\n"
        "    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(dataset.root)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not ((beat := read_heartbeat(dataset)) and beat["num_workers"] == 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (row,) = rows_of(dataset.root, "runs")
    assert row["status"] == "running"
    commit_unit(dataset.staging / "scan-0", "scan", {"name": "u0"}, UnitResult(), 1.0, "a/1")
    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", "scan-0", 9, 5)
        assert read_heartbeat(dataset)["stages"][0]["failed_before"] == 1, "problems of staged units are not lost"
    killed, done = rows_of(dataset.root, "runs")
    assert (killed["run_id"], killed["process"], killed["status"]) == (row["run_id"], process.pid, "killed")
    assert killed["started_at"] < killed["ended_at"] <= done["started_at"]
    assert [(s["num_done_before"], s["num_done"], s["num_failed"]) for s in killed["stages"]] == [(2, 2, 1)]
    assert (killed["num_workers"], done["status"]) == (2, "succeeded")


class _Killed(BaseException):
    """What a killed process does not even see."""


def fail(scan: Ledger, record: RunRecord, *names: str) -> None:
    """Units in which no face is found commit, and the driver hears of it."""
    for name in names:
        result = UnitResult(rows={"tracks": []})
        result.fail("scan", {"name": name}, "no_face", "no face was found")
        commit_unit(scan.folder, "scan", {"name": name}, result, 1.0, "w")
        record.count(summary(failed=True))


@pytest.mark.parametrize("moment", ["units are staged", "they are in the manifests", "another stage has begun"])
def test_problems_of_a_killed_attempt_are_counted_once(dataset, moment):
    scan = ledger(dataset)
    dataset.recipe_file.write_text(recipe_toml(RECIPE))
    with suppress(_Killed), record_run(dataset, [], RECIPE) as record:
        record.enter("scan", scan.folder.name, 3, 3)
        fail(scan, record, "u0", "u1", "u2")
        if moment != "units are staged":
            scan.absorb()
        if moment == "another stage has begun":
            record.enter("crop", ledger(dataset, "crop").folder.name, 0, 0)
        record.write()
        raise _Killed
    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", scan.folder.name, 5, 2, 3)
        fail(scan, record, "u3")
        record.write()
        (stage,) = read_status(dataset).stages
        assert (stage.num_done, stage.num_planned, stage.num_problems) == (4, 5, 4)


def test_heartbeat_goes_on_while_no_unit_ends(dataset, monkeypatch):
    monkeypatch.setattr(runs, "BEAT_S", 0.01)
    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 1, 1)
        first = read_heartbeat(dataset)
        deadline = time.monotonic() + 60
        while len(read_heartbeat(dataset)["stages"][0]["samples"]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert read_heartbeat(dataset)["beat_at"] > first["beat_at"]
    after = run_file(dataset).read_bytes()
    time.sleep(0.05)
    assert run_file(dataset).read_bytes() == after, "nothing is written after the end"


def test_no_heartbeat_takes_the_place_of_a_later_one(dataset, monkeypatch):
    """The thread's takes long, and meanwhile the next stage begins."""
    began = threading.Event()

    def write(path: Path, data: bytes) -> None:
        if threading.current_thread() is not threading.main_thread():
            began.set()
            time.sleep(0.5)
        write_bytes_atomically(path, data)

    with record_run(dataset, [], RECIPE) as record:
        monkeypatch.setattr(runs, "write_bytes_atomically", write)
        beat = threading.Thread(target=record.write)
        beat.start()
        assert began.wait(60)
        record.enter("scan")
        beat.join()
        assert [stage["stage"] for stage in read_heartbeat(dataset)["stages"]] == ["scan"]


def test_failures_and_workers_in_the_heartbeat_are_bounded(dataset, monkeypatch):
    monkeypatch.setattr(runs, "_MAX_WORKERS", 5)
    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 100, 100)
        for k in range(50):
            record.count(summary(f"node/{k}", failed=True))
        record.enter("select")
        beat = read_heartbeat(dataset)
        assert len(beat["failures"]) == 20
        assert (sorted(beat["workers"]), beat["num_workers"]) == ([f"node/{k}" for k in range(45, 50)], 50)


def test_committed_units_are_counted_once(dataset):
    """Staged, in the manifests, or both, which is what a crash while rows are moved leaves."""
    scan = ledger(dataset)
    for k in range(4):
        commit_unit(scan.folder, "scan", {"name": f"u{k}"}, UnitResult(rows={"tracks": []}), 1.0, "w")
    assert committed_units(dataset, scan.folder.name)[:2] == (4, 4)
    kept = {p.name: p.read_bytes() for p in scan.folder.glob("u[01].json")}
    scan.absorb()
    assert committed_units(dataset, scan.folder.name)[:2] == (4, 0)
    for name, data in kept.items():
        (scan.folder / name).write_bytes(data)
    assert committed_units(dataset, scan.folder.name)[:2] == (4, 2)
    assert committed_units(dataset, "scan-ffffffff") == (0, 0, None)


def test_inputs_are_named_as_sources_are(tmp_path, monkeypatch):
    """`forget` compares them."""
    import fsspec

    (tmp_path / "a.png").write_bytes(b"x")
    fsspec.filesystem("memory").pipe_file("/bucket/b.png", b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("a.png", "~/a.png", "./a.png", str(tmp_path / "a.png"), "memory://bucket/b.png"):
        (unit,) = list_inputs([text], IndexOptions())
        assert runs._full_name(text) == unit["uri"]


def test_runs_of_the_command(tmp_path, without_ray, rows_of, capsys):
    """Nothing usable, nothing to do, and a refused attempt that leaves no row."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    output = tmp_path / "dataset"
    arguments = ["run", str(tmp_path / "broken.png"), "--output", str(output)]
    assert main(arguments) == 1
    assert main(arguments) == 1
    assert main(["run", str(tmp_path / "missing.png"), "--output", str(output)]) == 2
    first, second = rows_of(output, "runs")
    assert [row["status"] for row in (first, second)] == ["succeeded", "succeeded"]
    wanted = ["index", "scan", "crop", "select", "pack"]
    assert [[s["stage"] for s in row["stages"]] for row in (first, second)] == [wanted, wanted]
    index = [
        {k: row["stages"][0][k] for k in ("num_planned", "num_done_before", "num_done")} for row in (first, second)
    ]
    assert index == [
        {"num_planned": 1, "num_done_before": 0, "num_done": 1},
        {"num_planned": 1, "num_done_before": 1, "num_done": 0},
    ]
    assert not run_file(Dataset(output)).exists()
    newest, oldest = ask(connect(output), "runs").fetchall()
    assert (newest[0], oldest[0]) == (second["run_id"], first["run_id"])
    assert (newest[4], oldest[4]) == (0, 1), "units"
    assert oldest[3] >= 0
    capsys.readouterr()
    assert main(["status", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == {"succeeded": 2}


def test_a_command_of_one_stage_leaves_a_row_and_no_heartbeat(dataset, rows_of):
    """The heartbeat of a run that was killed stays: the next run continues its counts."""
    with suppress(KeyboardInterrupt), record_run(dataset, ["videos"], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 5, 5)
        raise KeyboardInterrupt
    left = read_heartbeat(dataset)
    with record_command(dataset, RECIPE, "select"):
        pass
    with pytest.raises(OSError, match="full"), record_command(dataset, RECIPE, "forget"):
        raise OSError("the disk is full")
    rows = rows_of(dataset.root, "runs")
    assert [[s["stage"] for s in row["stages"]] for row in rows] == [["scan"], ["select"], ["forget"]]
    assert [row["status"] for row in rows] == ["killed", "succeeded", "failed"]
    assert [row["last_error"] for row in rows[1:]] == [None, "the disk is full"]
    assert all(row["ended_at"] and row["recipe_hash"] == RECIPE.stage_hash("pack") for row in rows)
    assert left is not None
    assert read_heartbeat(dataset) == left


def test_selecting_again_and_forgetting_are_in_the_history(demo_copy, rows_of, capsys):
    assert main(["select", "--output", str(demo_copy)]) == 0
    assert main(["forget", str(demo_copy), "--source", "sway.mp4", "--yes"]) == 0
    rows = rows_of(demo_copy, "runs")
    assert [row["stages"][-1]["stage"] for row in rows] == ["pack", "select", "forget"]
    assert {row["status"] for row in rows} == {"succeeded"}
    assert not run_file(Dataset(demo_copy)).exists()
    assert read_status(Dataset(demo_copy)).run_id == rows[0]["run_id"], "status speaks of the run"
    capsys.readouterr()
    assert main(["forget", str(demo_copy), "--source", "sway.mp4", "--yes"]) == 1
    assert len(rows_of(demo_copy, "runs")) == 3, "nothing was there to forget"
