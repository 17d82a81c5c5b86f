"""The status of a run, from the files alone: while it goes on, after it has ended, and when its driver is dead."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import datetime

import pytest

from curation import runs
from curation import status as status_module
from curation.__main__ import main
from curation.recipe import Recipe, recipe_toml
from curation.runs import read_heartbeat, record_run, run_file
from curation.status import read_status
from curation.units import Ledger, UnitResult, commit_unit
from manifests import storage
from manifests.schema import make_table
from manifests.store import Dataset, open_parquet, read_table, replace_table, write_bytes_atomically

RECIPE = Recipe()


class _Killed(BaseException):
    """What a killed process does not even see."""


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    made = Dataset(tmp_path / "dataset")
    made.staging.mkdir(parents=True)
    made.recipe_file.write_text(recipe_toml(RECIPE))
    return made


def ledger(dataset: Dataset, stage: str = "scan") -> Ledger:
    made = Ledger(dataset, stage, RECIPE.stage_hash(stage))
    made.folder.mkdir(exist_ok=True)
    return made


def do(ledger: Ledger, record, *numbers: int, fail: bool = False) -> None:
    """Units commit, and the driver hears of it where there is one."""
    for k in numbers:
        unit = {"name": f"u{k:03d}", "uri": f"/v/{k}.mp4"}
        result = UnitResult(rows={"tracks": []}, num_frames=50, video_s=2.0)
        if fail:
            result.fail("scan", unit, "no_face", "no face was found")
        row = commit_unit(ledger.folder, "scan", unit, result, 1.0, f"node/{k % 3}")
        if record is not None:
            record.count({**row, "failures": result.rows.get("failures", [])})


def change_heartbeat(dataset: Dataset, **values: object) -> None:
    run_file(dataset).write_text(json.dumps(read_heartbeat(dataset) | values))


def end_of_a_process() -> int:
    """Number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_while_it_runs(dataset, capsys):
    scan = ledger(dataset)
    do(scan, None, 0, 1)
    with record_run(dataset, ["/v"], RECIPE) as record:
        record.enter("index", ledger(dataset, "index").folder.name, 12, 0)
        record.enter("scan", scan.folder.name, 12, 10, 2)
        do(scan, record, 2, 3, 4, 5)
        do(scan, record, 6, fail=True)
        record.write()
        do(scan, None, 7)  # committed, and the driver has not heard of it
        status = read_status(dataset)
        assert (status.status, status.is_active, status.runs) == ("running", True, {"running": 1})
        index, now = status.stages
        assert (index.state, index.num_done, index.num_planned) == ("done", 12, 12)
        assert (now.state, now.num_done, now.num_planned, now.num_problems) == ("running", 8, 12, 1)
        assert (now.num_frames, now.units_per_s > 0, now.recent_units_per_s > 0) == (250, True, True)
        assert now.eta_s == pytest.approx(4 / now.recent_units_per_s, abs=0.1)
        assert now.recent_frames_per_s == pytest.approx(50 * now.recent_units_per_s, rel=0.01)
        assert (status.num_workers, status.num_recent_workers) == (3, 3)
        assert main(["status", str(dataset.root)]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "workers 3 processes that have finished a unit, 3 of them in the last 5 minutes" in shown
        last = max(path.stat().st_mtime for path in scan.folder.glob("*.json"))
        assert datetime.fromisoformat(status.last_unit_at).timestamp() == int(last), "of the unheard one"
        (failure,) = status.failures
        assert failure == {"stage": "scan", "uri": "/v/6.mp4", "reason": "no_face", "message": "no face was found"}


def test_rows_on_their_way_into_the_manifests_are_counted_once(dataset):
    scan = ledger(dataset)
    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", scan.folder.name, 3, 3)
        do(scan, record, 0, 1)
        do(scan, record, 2, fail=True)
        record.write()
        before = read_status(dataset).stages[0]
        scan.absorb()
        after = read_status(dataset).stages[0]
        for stage in (before, after):
            assert (stage.num_done, stage.num_planned, stage.num_problems, stage.state) == (3, 3, 1, "running")


def test_commits_that_go_while_they_are_looked_at(dataset, monkeypatch):
    scan = ledger(dataset)

    def list_then_absorb(folder):
        found = list_commits(folder)
        scan.absorb()
        return found

    list_commits = runs._list_commits

    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", scan.folder.name, 2, 2)
        do(scan, record, 0, 1)
        record.write()
        monkeypatch.setattr(runs, "_list_commits", list_then_absorb)
        assert (read_status(dataset).stages[0].num_done, read_status(dataset).last_unit_at is None) == (2, False)


def test_driver_is_dead_and_units_go_on(dataset, rows_of, capsys):
    """The plan is in the heartbeat, the count in the commits; the next attempt takes both up."""
    scan = ledger(dataset)
    with suppress(_Killed), record_run(dataset, [], RECIPE) as record:
        record.enter("scan", scan.folder.name, 6, 6)
        do(scan, record, 0, 1)
        record.write()
        raise _Killed
    do(scan, None, 2)
    (row,) = rows_of(dataset.root, "runs")
    assert row["status"] == "running"
    assert read_status(dataset).status == "running", "this process lives"

    dead = end_of_a_process()
    set_process(dataset, dead)
    status = read_status(dataset)
    assert (status.status, status.is_active, status.runs) == ("lost", False, {"lost": 1})
    (stage,) = status.stages
    assert (stage.state, stage.num_done, stage.num_planned, stage.eta_s) == ("stopped", 3, 6, None)
    assert main(["status", str(dataset.root)]) == 0
    shown = capsys.readouterr().out
    assert f"lost: the driver on {row['host']}, process {dead} is gone" in shown
    assert "3/6" in shown
    heartbeat = read_heartbeat(dataset)["stages"][0]
    assert stage.units_per_s == pytest.approx(2 / heartbeat["took_s"], rel=0.01), "units that its clock has seen"

    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", scan.folder.name, 6, 3, 3)
        do(scan, record, 3)
        status = read_status(dataset)
        assert (status.stages[0].num_done, status.runs) == (4, {"killed": 1, "running": 1})


def set_process(dataset: Dataset, number: int, host: str | None = None) -> None:
    """As if the last attempt had run there."""
    rows = read_table(dataset, "runs").to_pylist()
    rows[-1] |= {"process": number, "host": host or rows[-1]["host"]}
    replace_table(dataset, "runs", make_table("runs", rows))


@pytest.mark.parametrize(("age_s", "status"), [(5, "running"), (3600, "lost")])
def test_driver_on_another_machine(dataset, age_s, status):
    """Only its heartbeat tells: process numbers mean nothing there."""
    with suppress(_Killed), record_run(dataset, [], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 6, 6)
        raise _Killed
    set_process(dataset, end_of_a_process(), host="elsewhere")
    change_heartbeat(dataset, beat_at=time.time() - age_s, pid_space="elsewhere")
    found = read_status(dataset)
    assert found.status == status
    assert age_s <= found.heartbeat_s < age_s + 60


def test_process_numbers_of_another_container_mean_nothing(dataset, monkeypatch):
    """Which may have the same host name."""
    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 6, 6)
        set_process(dataset, end_of_a_process())
        assert read_status(dataset).status == "lost"
        monkeypatch.setattr(status_module, "pid_space", lambda: "the same host, another namespace")
        assert read_status(dataset).status == "running"


@pytest.mark.parametrize(("ahead_s", "status"), [(-60, "running"), (60, "running"), (60, "lost")])
def test_clock_that_differs_from_the_drivers(dataset, monkeypatch, capsys, ahead_s, status):
    """Whether the heartbeat moves decides, not its age by this machine's clock."""
    monkeypatch.setattr(status_module, "pid_space", lambda: "elsewhere")
    monkeypatch.setattr(status_module, "_TWO_BEATS_S", 1.0)
    monkeypatch.setattr(status_module, "_LOOK_S", 0.1)
    status_module._say_once.cache_clear()
    now = time.time
    with record_run(dataset, [], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 6, 6)
        record.count({"worker": "a/1"})
        record.write()
        beats = threading.Timer(0.3, record.write)
        if status == "running":
            beats.start()
        monkeypatch.setattr(status_module.time, "time", lambda: now() + (ahead_s if called_by_status() else 0))
        found = read_status(dataset)
        assert found.status == status
        assert 0 <= found.heartbeat_s == pytest.approx(0 if status == "running" else 60, abs=5)
        assert found.num_recent_workers == (status == "running")
        (stage,) = found.stages
        assert stage.took_s < 5
        assert ("which may be wrong: waiting up to 1 s" in capsys.readouterr().err) == (ahead_s > 0)
        beats.cancel()


def called_by_status() -> bool:
    """Whether the reader's clock is asked, and not the driver's, which is in the same process here."""
    return sys._getframe(2).f_globals["__name__"] == status_module.__name__


def test_commits_are_listed_once_a_look(dataset, monkeypatch):
    """There may be hundreds of thousands."""
    scan, listed, scandir = ledger(dataset), [], os.scandir
    with record_run(dataset, [], RECIPE) as record:
        record.enter("index", ledger(dataset, "index").folder.name, 2, 0)
        record.enter("scan", scan.folder.name, 2, 2)
        do(scan, record, 0, 1)
        record.write()
        monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
        assert read_status(dataset).stages[1].num_done == 2
        assert [folder for folder in listed if folder.parent == dataset.staging] == [scan.folder]


def test_only_the_end_of_many_failures_is_read_in_full(dataset):
    """Units are counted once a stage, however many failures they have."""
    many = ({"stage": "scan", "unit": f"u{k // 2:06d}", "uri": f"/v/{k}", "message": str(k)} for k in range(5000))
    rows = [{"stage": "crop", "unit": None, "message": "no unit"}, *many]
    replace_table(dataset, "failures", make_table("failures", rows))
    do(ledger(dataset), None, 0)
    do(ledger(dataset, "crop"), None, 1)
    found = read_status(dataset)
    assert {stage.stage: stage.num_problems for stage in found.stages} == {"scan": 2500, "crop": 1}
    assert [failure["message"] for failure in found.failures] == [str(k) for k in range(4992, 5000)]


def test_failures_that_are_replaced_while_they_are_read(s3, monkeypatch):
    dataset, rows = Dataset("s3://data/set"), make_table("failures", [{"message": "old"}, {"message": "new"}])
    replace_table(dataset, "failures", rows)

    @contextmanager
    def slow(file):
        with open_parquet(file) as parquet:
            replace_table(dataset, "failures", rows[1:])
            monkeypatch.setattr(status_module, "open_parquet", open_parquet)
            yield parquet

    monkeypatch.setattr(storage, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(status_module, "open_parquet", slow)
    assert status_module._last_failures(dataset)[0]["message"] == "new"


def test_after_its_end(dataset, capsys):
    """Staging is gone; the row tells."""
    with record_run(dataset, ["/v"], RECIPE) as record:
        for stage in ("index", "scan"):
            record.enter(stage, ledger(dataset, stage).folder.name, 2, 2)
            for _ in range(2):
                record.count({"num_frames": 10, "worker": "a/1", "failures": []})
    run_file(dataset).unlink()
    status = read_status(dataset)
    assert [(s.stage, s.state, s.num_done, s.num_planned) for s in status.stages] == [
        ("index", "done", 2, 2),
        ("scan", "done", 2, 2),
    ]
    assert (status.status, status.num_workers, status.num_recent_workers) == ("succeeded", 1, 0)
    assert main(["status", str(dataset.root)]) == 0
    shown = capsys.readouterr().out
    assert "succeeded" in shown
    assert "1 process that has finished a unit\n" in re.sub(" +\n", "\n", shown)


def test_names_in_square_brackets_are_shown(dataset, capsys):
    """As those of downloaded videos, and one that looks like the end of a style."""
    with suppress(ValueError), record_run(dataset, ["/v"], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 7, 7)
        record.count({"failures": [{"uri": "/v/Talk [dQw4w9W].mp4", "reason": "error", "message": "[h264 @ 0x5] no"}]})
        raise ValueError("cannot open [/v/x.mp4]")
    assert main(["status", str(dataset.root)]) == 0
    shown = capsys.readouterr().out
    for words in ("/v/Talk [dQw4w9W].mp4", "[h264 @ 0x5] no", "cannot open [/v/x.mp4]"):
        assert words in shown


def test_failed_run_says_why(dataset, capsys):
    with suppress(ValueError), record_run(dataset, ["/v"], RECIPE) as record:
        record.enter("scan", ledger(dataset).folder.name, 7, 7)
        do(ledger(dataset), record, 0)
        do(ledger(dataset), None, 1)  # of which the driver has not heard
        raise ValueError("the roof fell in")
    status = read_status(dataset)
    assert (status.status, status.last_error, status.stages[0].state) == ("failed", "the roof fell in", "stopped")
    assert main(["status", str(dataset.root)]) == 0
    shown = capsys.readouterr().out
    assert "ago: the roof fell in" in shown
    assert "2/7" in shown


def test_the_stage_in_which_a_run_failed_is_not_done(dataset):
    """Nor is one whose units are all done, or that has none, as select."""
    with suppress(ValueError), record_run(dataset, [], RECIPE) as record:
        record.enter("index", ledger(dataset, "index").folder.name, 2, 0)
        record.enter("select")
        raise ValueError("the roof fell in")
    assert [(s.stage, s.state) for s in read_status(dataset).stages] == [("index", "done"), ("select", "stopped")]
    with suppress(ValueError), record_run(dataset, [], RECIPE) as record:
        record.enter("select")
        record.enter("pack", ledger(dataset, "pack").folder.name, 2, 0)
        raise ValueError("the roof fell in")
    assert [(s.stage, s.state) for s in read_status(dataset).stages] == [("select", "done"), ("pack", "stopped")]


def test_crops_that_are_made_again_leave_no_commits(dataset):
    with record_run(dataset, [], RECIPE) as record:
        record.enter("recrop", "", 4, 4)
        record.count({"num_frames": 3, "failures": []})
        record.write()
        (stage,) = read_status(dataset).stages
        assert (stage.num_done, stage.num_planned) == (1, 4)


def test_data_set_without_records(dataset, capsys):
    """Made by a version that kept none, or forgotten in the middle."""
    scan = ledger(dataset)
    do(scan, None, 0, 1, 2)
    do(scan, None, 3, fail=True)
    status = read_status(dataset)
    assert status.status == "none"
    assert [(s.stage, s.num_done, s.num_planned) for s in status.stages] == [("scan", 4, None)]
    scan.absorb()
    assert [(s.num_done, s.num_problems) for s in read_status(dataset).stages] == [(4, 1)]
    assert main(["status", str(dataset.root)]) == 0
    assert "4/?" in capsys.readouterr().out


@pytest.mark.parametrize("every_s", ["0", "-1", "nan", "1e9"])
def test_no_interval_is_refused_at_once(dataset, capsys, every_s):
    assert main(["status", str(dataset.root), "--watch", "--every-s", every_s]) == 2
    assert "expected more than 0, at most 86400" in capsys.readouterr().err


def test_json_and_watching(dataset, monkeypatch, capsys):
    """One object a line, the last when the run has ended."""
    attempt = record_run(dataset, [], RECIPE)
    attempt.__enter__().enter("scan", ledger(dataset).folder.name, 5, 5)
    looks = iter(range(3))

    def look(where: Dataset):
        if next(looks) == 2:
            attempt.__exit__(None, None, None)
        return read_status(where)

    monkeypatch.setattr(status_module, "read_status", look)
    assert main(["status", str(dataset.root), "--json", "--watch", "--every-s", "0.01"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["is_active"] for line in lines] == [True, True, False]
    assert (lines[0]["stages"][0]["num_planned"], lines[-1]["status"]) == (5, "succeeded")


def test_no_data_set_is_said(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert f"no data set at {tmp_path}" in capsys.readouterr().err


def test_data_set_on_an_object_store(s3, capsys):
    """Plan, count and time of the last commit come from the bucket alone."""
    dataset = Dataset("s3://data/sets/portraits")
    write_bytes_atomically(dataset.recipe_file, recipe_toml(RECIPE).encode())
    scan = Ledger(dataset, "scan", RECIPE.stage_hash("scan"))
    with record_run(dataset, ["s3://data/raw"], RECIPE) as record:
        record.enter("scan", scan.folder.name, 4, 4)
        do(scan, record, 0)
        record.write()
        do(scan, None, 1)
        status = read_status(dataset)
        assert (status.status, status.stages[0].num_done, status.stages[0].num_planned) == ("running", 2, 4)
        (last, _) = sorted((o["LastModified"] for o in objects(s3, scan.folder.name)), reverse=True)
        assert datetime.fromisoformat(status.last_unit_at) >= last.replace(microsecond=0)
    assert main(["status", "s3://data/sets/portraits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == {"succeeded": 1}
    assert main(["status", "s3://data/nothing"]) == 2
    assert "no data set at s3://data/nothing" in capsys.readouterr().err


def objects(s3, stage: str) -> list[dict]:
    return s3.list_objects_v2(Bucket="data", Prefix=f"sets/portraits/staging/{stage}/")["Contents"]
