"""A worker on a node that lacks what the others have."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from curation.distribute import Cluster, ClusterOptions
from curation.recipe import Recipe
from curation.sandbox import FatalError
from curation.worker import UnitWorker, UnseenSource
from manifests.errors import NoBucket

_NODE = socket.gethostname()


def _run_here(stage: str, folder: Path, units: list[dict], monkeypatch, *, is_embedded: bool) -> list[dict]:
    """`Cluster.run` with a worker in this process in place of its pool."""

    def run_pool(made: Cluster, bundles: list[str], worker: type[UnitWorker], options: dict, num_gpus: float):
        for path in bundles:
            yield from (json.loads(row["summary"]) for row in worker(**options)({"bundle": path}))

    monkeypatch.setattr(Cluster, "connect", lambda made: None)
    monkeypatch.setattr(Cluster, "_workers_to_plan_for", 1)
    monkeypatch.setattr(Cluster, "_run_pool", run_pool)
    made = Cluster(ClusterOptions())
    made._is_embedded = is_embedded
    return list(made.run(stage, Recipe(), folder, units))


@pytest.mark.parametrize(
    ("is_embedded", "said", "told"),
    [
        (False, "cannot start: no weights", f"node {_NODE}: cannot start: no weights"),
        (False, f"node {_NODE} does not see /data", f"node {_NODE} does not see /data"),
        (True, "cannot start: no weights", "cannot start: no weights"),
    ],
)
def test_of_several_nodes_the_one_that_can_do_nothing_is_named(tmp_path: Path, monkeypatch, is_embedded, said, told):
    def refuse(worker: UnitWorker, unit: dict) -> dict:
        raise FatalError(said)

    monkeypatch.setattr(UnitWorker, "_do", refuse)
    with pytest.raises(FatalError) as error:
        _run_here("scan", tmp_path / "scan-1", [{"name": "u1"}], monkeypatch, is_embedded=is_embedded)
    assert str(error.value) == told


@pytest.mark.parametrize("problem", [PermissionError("no key"), NoBucket("no bucket"), OSError(5, "no key"), None])
def test_a_node_that_cannot_read_the_data_set_ends_the_run_and_blames_none(tmp_path: Path, monkeypatch, problem):
    """It would take all bundles from the others. None: there is another file system of the same names."""

    def read(path: Path) -> bytes:
        raise problem or FileNotFoundError(2, "no file", str(path))

    worker = UnitWorker(stage="scan", recipe=Recipe(), folder=tmp_path / "scan-1", deadline_s=0.0, kept_bytes=0)
    monkeypatch.setattr("curation.plans.read_bytes", read)
    with pytest.raises(FatalError, match=f"^node {_NODE}: cannot read {tmp_path}/plan-scan/000000.json: .*no "):
        _run_here("scan", tmp_path / "scan-1", [{"name": "u1"}], monkeypatch, is_embedded=False)
    monkeypatch.setattr("curation.worker.read_bytes", read)
    if problem:
        assert worker.finish({"name": "u1"})["fatal"] == f"cannot read {tmp_path}/scan-1/u1.json: {problem}"
    assert list((tmp_path / "scan-1").iterdir()) == [], "nothing was committed"


@pytest.mark.parametrize("is_mount_point", [False, True])
def test_a_node_that_does_not_see_a_source_folder_is_named_and_blames_none(tmp_path: Path, monkeypatch, is_mount_point):
    """Its mount was forgotten, and there are others; an empty folder may be in its place."""
    worker = UnitWorker(stage="index", recipe=Recipe(), folder=tmp_path, deadline_s=0.0, kept_bytes=0)
    monkeypatch.setattr(worker, "_sandbox", lambda unit, deadline_s: {"unit": unit["name"], "failures": []})
    videos = tmp_path / "videos"
    if is_mount_point:
        videos.mkdir()
    unit = {"name": "u", "seen_at": [f"{videos}/a.mp4"]}
    said = f"node {_NODE} does not see {videos}/a.mp4: a local source must be on a file system that all"
    (tmp_path / "bundle").write_text(json.dumps([{"name": "stills", "seen_at": []}, unit]))
    done, ended = (json.loads(row["summary"]) for row in worker({"bundle": str(tmp_path / "bundle")}))
    assert done["unit"] == "stills"
    assert ended["fatal"].startswith(said)
    assert worker.finish(unit)["fatal"].startswith(said)
    videos.mkdir(exist_ok=True)
    (videos / "b.mp4").touch()
    assert worker.finish(unit)["unit"] == "u", "the file alone is gone, which its child finds"


@pytest.mark.parametrize("gone", ["", "videos", "all"])
def test_sources_that_are_removed_during_a_run_are_no_matter_of_a_node(tmp_path: Path, monkeypatch, gone: str):
    """What is still there a node does not see; where the folder of all is gone, no single source is to blame either."""
    files = [tmp_path / "raw" / "videos" / "a.mp4", tmp_path / "raw" / "stills" / "b.png"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    units = [{"name": file.name, "uri": str(file)} for file in files]
    left = []

    def do(worker: UnitWorker, unit: dict) -> dict:
        assert unit["seen_at"] == [unit["uri"]]
        if unit["name"] == "b.png":
            return {"unit": "b.png", "failures": []}
        if gone:
            shutil.rmtree(tmp_path / "raw" / (gone if gone != "all" else ""))
        raise UnseenSource(unit["uri"])

    def run_leftovers(made: Cluster, units: Iterable[dict], *_: object) -> Iterable[dict]:
        left.extend(units)
        return left

    monkeypatch.setattr(UnitWorker, "_do", do)
    monkeypatch.setattr(Cluster, "_run_leftovers", run_leftovers)
    if gone == "videos":
        _run_here("index", tmp_path / "index-1", units, monkeypatch, is_embedded=False)
        assert [(unit["name"], unit["seen_at"]) for unit in left] == [("a.mp4", []), ("b.png", [files[1].as_posix()])]
    else:
        with pytest.raises(FatalError, match=f"^node {_NODE} does not see {files[0]}: "):
            _run_here("index", tmp_path / "index-1", units, monkeypatch, is_embedded=False)


def test_a_node_without_a_temporary_folder_blames_no_source(s3, tmp_path: Path):
    """All of them are read-only there; the worker and its child are real."""
    s3.put_object(Bucket="data", Key="raw/a.mp4", Body=b"a")
    script = """
from curation.recipe import Recipe
from curation.worker import NoScratchError, UnitWorker
from manifests.storage import place

options = {"stage": "index", "recipe": Recipe(), "deadline_s": 0.0, "kept_bytes": 0}
unit = {"name": "u", "uri": "s3://data/raw/a.mp4", "size_bytes": 1, "changed": "", "columns": {}}
try:
    UnitWorker(folder=place("s3://data/out/staging/index-1"), **options).finish(unit)
except NoScratchError as error:
    print(error)
"""
    read_only = (
        "for d in /tmp /var/tmp; do mount --bind $d $d && mount -o remount,bind,ro $d || exit 77; done; cd /proc"
    )
    command = ["unshare", "--mount", "sh", "-c", f'{read_only}; exec "$@"', "sh", sys.executable, "-c", script]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "TMPDIR": "/proc"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    if os.geteuid() != 0 or done.returncode == 77:
        pytest.skip("needs the right to mount")
    said = f"node {_NODE} cannot write to its scratch: OSError: [Errno 28] No usable temporary directory"
    assert done.stdout.startswith(said), done.stderr
    assert "Contents" not in s3.list_objects_v2(Bucket="data", Prefix="out/"), "nothing was committed"
