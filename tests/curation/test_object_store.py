"""Data sets that live on an object store, with nothing but the store between sources, workers and driver.

A real S3 protocol server on loopback; the stages run in this process.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import manifests.__main__
from curation import __main__ as command
from curation import lock, pack, pipeline, units
from curation.recipe import PackOptions, Recipe, SelectOptions
from curation.sandbox import FatalError
from curation.verify import verify
from manifests import storage
from manifests.schema import TABLES
from manifests.storage import list_files, place, read_bytes, write_bytes_atomically
from manifests.store import Dataset, read_table

RECIPE = Recipe(pack=PackOptions(shard_bytes=400_000), select=SelectOptions(min_sharpness=None, max_upscale=None))
ROOT = "s3://data/sets/portraits"


@pytest.fixture
def remote_stills(s3, sources: list[str]) -> str:
    """The stills of `sources` in the bucket."""
    for path in sorted(Path(sources[0]).iterdir()):
        s3.upload_file(str(path), "data", f"raw/{path.name}")
    return "s3://data/raw"


def keys(s3, prefix: str = "sets/") -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket="data", Prefix=prefix).get("Contents", [])]


def content_of(root: str | Path) -> dict[str, object]:
    """Tables without times, workers and places of the sources; bytes of the shards; names of the manifests' files."""
    dataset = Dataset(root)
    found: dict[str, object] = {}
    for name in set(TABLES) - {"runs"}:
        rows = read_table(dataset, name).to_pylist()
        for row in rows:
            for column in ("wall_s", "worker", "uri", "uris", "places", "unit"):
                row.pop(column, None)
            for column in ("detail", "message"):
                row[column] = re.sub(r"\S+/(?=\w+\.\w)", "", row.get(column) or "")
        found[name] = sorted(rows, key=lambda row: json.dumps(row, default=str, sort_keys=True))
    found["shard files"] = {path.name: read_bytes(path) for path in list_files(dataset.shards)}
    return found


def differences_of(root: str | Path) -> list[str]:
    return [str(difference) for difference in verify(Dataset(root))]


def test_bucket_to_bucket_gives_what_files_give(s3, run_here, demo_run, capsys):
    """Videos that a glob finds, with the real networks: the same shards byte for byte, the same manifests."""
    local = demo_run[0]
    for path in sorted((local.parent / f"{local.name}_videos").iterdir()):
        s3.upload_file(str(path), "data", f"raw/deep/{path.name}")
    s3.put_object(Bucket="data", Key="raw/deep/notes.txt", Body=b"no video")
    videos = ["s3://data/raw/**/*.mp4"]
    assert run_here(videos, ROOT, Recipe()).num_units > 0
    assert content_of(ROOT) == content_of(local)
    uris = [uri for row in read_table(Dataset(ROOT), "sources").to_pylist() for uri in row["uris"]]
    assert "s3://data/raw/deep/sway.mp4" in uris
    assert not [key for key in keys(s3) if "/staging/" in key or key.endswith((".lock", ".tmp"))]
    assert differences_of(ROOT) == []
    assert run_here(videos, ROOT, Recipe()).num_units == 0, "a second run does nothing"

    assert manifests.__main__.main([ROOT]) == 0
    assert manifests.__main__.main([ROOT, "SELECT count(*) AS n FROM frames", "--format", "csv"]) == 0
    shown = capsys.readouterr().out
    num_frames = len(read_table(Dataset(local), "frames"))
    assert shown.endswith(f"n\n{num_frames}\n")
    assert ROOT in shown


def test_commands_on_a_bucket(s3, sources, remote_stills, tmp_path, capsys):
    pipeline.run([remote_stills], ROOT, RECIPE)
    strict = replace(RECIPE, select=replace(RECIPE.select, max_exposure=0.5))
    pipeline.reselect(Dataset(ROOT), strict)
    assert any("kept, but" in line or "not kept" in line for line in differences_of(ROOT)), "shards are not up to date"
    pipeline.run([remote_stills], ROOT, strict)
    kept = [c for c in read_table(Dataset(ROOT), "clips").to_pylist() if c["decision"] == "keep"]
    assert len(kept) == 3
    assert command.main(["verify", ROOT]) == 0
    assert command.main(["select", "--output", ROOT, "--dry-run"]) == 0
    s3.put_object(Bucket="data", Key="sets/portraits/shards/stray.tar", Body=b"?")
    assert command.main(["verify", ROOT]) == 1
    assert "shards/stray.tar: no manifest knows this file" in capsys.readouterr().out
    assert command.main(["run", remote_stills, "--output", "s3://nowhere/portraits"]) == 2
    assert "there is no bucket 'nowhere'" in capsys.readouterr().err
    assert command.main(["run", "s3://nowhere/videos", "--output", str(tmp_path / "local")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: there is no bucket 'nowhere'"
    assert command.main(["status", "s3://nowhere/portraits"]) == 2
    assert manifests.__main__.main(["s3://nowhere/portraits"]) == 2
    assert capsys.readouterr().err == "error: there is no bucket 'nowhere'\n" * 2
    assert command.main(["run", remote_stills, "--output", "s3://data/raw"]) == 2
    assert "s3://data/raw exists and is no data set" in capsys.readouterr().err


@pytest.mark.slow
def test_a_name_that_looks_like_a_pattern_touches_no_neighbour(s3, sources, remote_stills):
    """Which has all files of the same names, also those that a run or `forget` removes in the end."""
    named, neighbour = "s3://data/sets/set*x", "s3://data/sets/set1x"

    def neighbours() -> dict[str, str]:
        found = s3.list_objects_v2(Bucket="data", Prefix="sets/set1x/")["Contents"]
        return {entry["Key"]: f"{entry['ETag']} {entry['LastModified']}" for entry in found}

    pipeline.run([remote_stills], neighbour, RECIPE, keep_staging=True)
    before = neighbours()
    assert any("/staging/" in key for key in before)
    pipeline.run([remote_stills], named, RECIPE)
    assert command.main(["forget", named, "--source", f"{remote_stills}/0.png", "--yes"]) == 0
    assert differences_of(named) == []
    assert len(read_table(Dataset(named), "clips")) == len(read_table(Dataset(neighbour), "clips")) - 1
    assert not keys(s3, "sets/set*x/staging")
    assert neighbours() == before


@pytest.mark.slow
def test_further_commands_on_a_bucket(s3, sources, remote_stills, tmp_path, capsys):
    pipeline.run([remote_stills], ROOT, RECIPE)
    before = read_table(Dataset(ROOT), "clips").to_pylist()
    assert command.main(["card", ROOT]) == 0
    assert b"# portraits" in read_bytes(place(ROOT) / "report/card.md")
    assert command.main(["review", ROOT]) == 2
    assert "name a local folder for the page with --output" in capsys.readouterr().err
    page = tmp_path / "page"
    assert command.main(["review", ROOT, "--output", str(page), "--no-open", "--no-sources"]) == 0
    assert len(list(page.glob("strips/*.jpg"))) == len(before), "drawn from the shards"
    assert command.main(["forget", ROOT, "--source", f"{remote_stills}/0.png", "--yes"]) == 0
    assert differences_of(ROOT) == []
    assert len(read_table(Dataset(ROOT), "clips")) == len(before) - 1
    assert not [key for key in keys(s3) if "report" in key or "staging" in key or key.endswith("forget.json")]


def test_shards_are_copied_by_ranges_over_clips(s3, flaky_s3, sources, remote_stills):
    """Neither listing nor reading is done once a frame, and nothing is listed once a clip."""
    flaky_s3.failed_share = 0.0
    pipeline.run([remote_stills], ROOT, RECIPE)
    flaky_s3.requests.clear()
    pipeline.run([remote_stills], ROOT, replace(RECIPE, select=replace(RECIPE.select, max_exposure=0.5)))
    ranged = [path for method, path in flaky_s3.requests if method == "GET" and path.endswith(".tar")]
    assert len(ranged) == 3, "one a kept clip"
    flaky_s3.requests.clear()
    pipeline.run([remote_stills], ROOT, replace(RECIPE, select=replace(RECIPE.select, max_exposure=0.5)))
    by_time = ("/.lock", "/run.json")
    assert sum(not path.endswith(by_time) for _, path in flaky_s3.requests) < 240, "whole tables alone"


def test_errors_of_the_store_change_nothing(s3, flaky_s3, sources, remote_stills, tmp_path):
    pipeline.run(sources, tmp_path / "local", RECIPE)
    flaky_s3.failed_share = 0.15
    pipeline.run([remote_stills], ROOT, RECIPE)
    flaky_s3.failed_share = 0.0
    assert flaky_s3.num_failed > 15
    assert content_of(ROOT) == content_of(tmp_path / "local")
    assert not [key for key in keys(s3) if "/staging/" in key or key.endswith(".lock")]


def test_who_may_only_read_takes_no_lock(flaky_s3):
    flaky_s3.failed_share = 0.0
    with lock.only_run_where_allowed(Dataset(ROOT)) as was_finished:
        assert was_finished is False
    flaky_s3.denied = ("PUT",)
    with lock.only_run_where_allowed(Dataset(ROOT)) as was_finished:
        assert was_finished is None
    with pytest.raises(ValueError, match=r"cannot write to s3://data/sets/portraits: Access Denied \(put_object of"):
        lock.only_run(Dataset(ROOT)).__enter__()


@pytest.mark.slow
def test_who_may_only_read_looks_without_the_lock(flaky_s3, sources, tmp_path, capsys):
    pipeline.run(sources, ROOT, RECIPE)
    flaky_s3.failed_share, flaky_s3.denied = 0.0, ("PUT", "POST", "DELETE")
    assert command.main(["review", ROOT, "--output", str(tmp_path / "page"), "--no-open", "--no-sources"]) == 0
    assert command.main(["forget", ROOT, "--where", "true", "--dry-run"]) == 0
    assert "dry run" in capsys.readouterr().out
    assert command.main(["forget", ROOT, "--where", "true", "--yes"]) == 2
    assert "cannot write to s3://data/sets/portraits: Access Denied (put_object" in capsys.readouterr().err


def test_a_store_that_throttles_everything_is_waited_for(flaky_s3):
    flaky_s3.failed_share = 0.0
    flaky_s3.throttle_next(4)
    write_bytes_atomically(place(ROOT) / "recipe.toml", b"here")
    assert flaky_s3.num_failed == 4
    assert read_bytes(place(ROOT) / "recipe.toml") == b"here"


def test_a_store_that_stays_out_of_reach_is_one_clear_line(flaky_s3, monkeypatch, capsys):
    monkeypatch.setattr("manifests.object_store.PATIENCE_S", 1.0)
    monkeypatch.setattr("manifests.object_store._TELL_AFTER_S", 0.1)
    monkeypatch.setattr("manifests.object_store._is_waiting_told", False)
    flaky_s3.throttle(600)
    with pytest.raises(
        OSError, match=r"has failed every call for \d+ s, .*get_object of s3:..data.sets/portraits/recipe.toml"
    ):
        read_bytes(place(ROOT) / "recipe.toml")
    assert command.main(["verify", ROOT]) == 1, "and not: there is no data set"
    assert capsys.readouterr().err.count("out of reach or overloaded: trying again for up to 1 s") == 1


def test_folders_that_a_console_has_made(s3, sources, remote_stills, capsys):
    """Empty objects `folder/`: no source, no obstacle for a new data set, and nothing that does not belong to one."""
    for key in ("raw/", "sets/portraits/"):
        s3.put_object(Bucket="data", Key=key, Body=b"")
    pipeline.run(["s3://data/raw/**"], ROOT, RECIPE)
    assert not [row["uris"] for row in read_table(Dataset(ROOT), "sources").to_pylist() if row["uris"][0][-1] == "/"]
    for key in ("sets/portraits/shards/", "sets/portraits/report/"):
        s3.put_object(Bucket="data", Key=key, Body=b"")
    assert differences_of(ROOT) == []
    assert pipeline.run([remote_stills], ROOT, RECIPE).num_units == 0
    assert "left out" not in capsys.readouterr().err


class Killed(BaseException):
    """What a killed process does not even see."""


KILLS = {
    "a unit is committed, its stage is not": (units, "read_files"),
    "frames are written, their clips are not": (units.Ledger, "_merge"),
    "the shards' markers are there, the shards are not in place": (pack, "move_all"),
    "the shards are in place, the tables do not name them": (pack, "replace_table"),
}


SLOW = ("frames are written, their clips are not", "the shards' markers are there, the shards are not in place")


@pytest.mark.parametrize("moment", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in KILLS])
def test_a_killed_run_is_continued(s3, sources, remote_stills, tmp_path, monkeypatch, capsys, moment):
    """Its lock stays, and the same command waits for it to go stale."""
    pipeline.run(sources, tmp_path / "local", RECIPE)
    monkeypatch.setattr(lock, "STALE_S", 2.0)
    owner, name = KILLS[moment]
    original, calls = getattr(owner, name), []

    def kill(*arguments, **options):
        is_last = name != "replace_table" or len(calls) == 1  # the first only drops what is going to be replaced
        calls.append(name)
        if is_last and (owner is not units.Ledger or arguments[0].stage == "crop"):
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, kill)
        patch.setattr(lock._LockObject, "release", lambda self: None)
        with pytest.raises(Killed):
            pipeline.run([remote_stills], ROOT, RECIPE)
    assert "sets/portraits/.lock" in keys(s3)
    pipeline.run([remote_stills], ROOT, RECIPE)
    assert "waiting up to 2 s: another run is writing to s3://data/sets/portraits" in capsys.readouterr().err
    assert content_of(ROOT) == content_of(tmp_path / "local")
    assert not [key for key in keys(s3) if "/staging/" in key or key.endswith(".lock")]


def test_other_thresholds_after_a_run_that_was_killed_among_its_shards(s3, remote_stills, monkeypatch, capsys):
    """No kept clip is lost, though all sources are gone."""
    pipeline.run([remote_stills], ROOT, RECIPE)
    for number in range(5):
        s3.delete_object(Bucket="data", Key=f"{remote_stills.removeprefix('s3://data/')}/{number}.png")

    def kill(moves: list) -> None:
        storage.move_all(moves[:1])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pack, "move_all", kill)
        with pytest.raises(Killed):
            pipeline.run([remote_stills], ROOT, replace(RECIPE, seed=3))
    pipeline.run([remote_stills], ROOT, replace(RECIPE, select=replace(RECIPE.select, max_exposure=0.5)))
    assert "putting the shards in place that an interrupted run has left in s3://data/sets" in capsys.readouterr().err
    assert len(read_table(Dataset(ROOT), "clips")["shard"].drop_null()) == 3
    assert differences_of(ROOT) == []
    assert not [key for key in keys(s3) if "/staging/" in key]


def test_a_lock_that_another_run_holds(s3, sources, remote_stills, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_S", 0.2)
    with (
        lock.only_run(Dataset(ROOT)),
        pytest.raises(ValueError, match=r"another run is writing to s3://.* process \d+"),
    ):
        pipeline.run([remote_stills], ROOT, RECIPE)
    assert keys(s3) == []


def test_a_data_set_at_rest_or_not(s3, monkeypatch):
    """A lock that nobody writes again is no sign of a run."""
    monkeypatch.setattr(lock, "RENEW_S", 0.3)
    lock.require_idle(Dataset(ROOT))
    with lock.only_run(Dataset(ROOT)), pytest.raises(lock.DatasetBusy, match="another run is writing to s3://"):
        lock.require_idle(Dataset(ROOT))
    s3.put_object(Bucket="data", Key="sets/portraits/.lock", Body=b"{}")
    lock.require_idle(Dataset(ROOT))


def test_what_ended_the_work_is_told_and_not_that_the_lock_cannot_be_removed(flaky_s3):
    flaky_s3.failed_share = 0.0

    def work() -> None:
        with lock.only_run(Dataset(ROOT)):
            flaky_s3.denied = ("HEAD", "GET", "PUT", "DELETE")
            raise FatalError("the bucket is full")

    with pytest.raises(FatalError, match="the bucket is full"):
        work()


def test_a_local_lock_names_its_holder(tmp_path):
    with (
        lock.only_run(Dataset(tmp_path)),
        pytest.raises(ValueError, match=r"another run is writing to .* process \d+, since 2"),
        lock.only_run(Dataset(tmp_path)),
    ):
        pass
    assert not (tmp_path / ".lock").exists()


def test_no_scratch_is_left(s3, sources, remote_stills, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    pipeline.run([remote_stills], ROOT, RECIPE)

    def fail(*_):
        raise OSError("no way")

    monkeypatch.setattr("manifests.storage.upload", fail)
    with pytest.raises(OSError, match="no way"):
        pipeline.run([remote_stills], f"{ROOT}2", RECIPE)
    assert not list(scratch.glob("portrait-scratch-*"))
