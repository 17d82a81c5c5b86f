"""Options, giving up, and workers that die."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from curation import distribute, leftovers
from curation.distribute import Cluster, ClusterOptions, cluster
from curation.leftovers import ATTEMPTS
from curation.pipeline import run
from curation.ray_start import make_ray_folder, require_room
from curation.recipe import CropOptions, Recipe
from curation.safeguards import check_networks
from curation.sandbox import FatalError, NoSpaceError, SandboxError
from curation.worker import NoScratchError, UnitWorker, committed_summary, give_up
from manifests.storage import place
from manifests.store import Dataset
from model.faces import Detections, FacesConfig
from model.faces.yunet import YuNetDetector
from model.termination import Terminated


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 2, "min_workers": 3}, "--min-workers is 3: expected 1 or more and at most --workers 2"),
        ({"min_workers": 0}, "--min-workers is 0: expected 1 or more$"),
        ({"workers": -1}, "--workers is -1: expected 1 or more"),
        ({"kept_sources_gb": -1.0}, "--kept-sources-gb is -1"),
        ({"kept_sources_gb": float("nan")}, "kept_sources_gb is nan, expected a finite number"),
        ({"deadline_s": -5.0}, "--deadline-s is -5.0: expected 0 or more"),
        ({"deadline_s": float("inf")}, "deadline_s is inf, expected a finite number"),
        ({"gpus_per_worker": -0.5}, "--gpus-per-worker is -0.5"),
        ({"gpus_per_worker": 1.5}, "share up to 1"),
    ],
)
def test_impossible_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        ClusterOptions(**options)


def test_there_are_as_many_workers_as_cores_may_be_used(monkeypatch):
    asked, cores = [], os.sched_getaffinity(0)

    def start(folder: str, num_cpus: int) -> None:
        asked.append(num_cpus)
        raise FatalError("enough")

    monkeypatch.setattr(distribute, "start_embedded", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    os.sched_setaffinity(0, {min(cores)})  # as a container does, or Slurm
    try:
        with pytest.raises(FatalError, match="enough"), cluster(ClusterOptions()) as workers:
            workers.connect()
    finally:
        os.sched_setaffinity(0, cores)
    assert asked == [1 + 1], "one for Ray's own tasks"


def test_an_embedded_ray_needs_no_home():
    root = Path(__file__).resolve().parents[2]
    script = (
        "from curation.distribute import ClusterOptions, cluster\n"
        "with cluster(ClusterOptions(workers=1)) as workers: workers.connect(); print(workers.workers)"
    )
    unset = ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
    env = {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": "/proc/none"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_full_disk_of_temporary_files_is_told(tmp_path, monkeypatch):
    require_room(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=64 << 10))
    with pytest.raises(FatalError, match=f"disk of {tmp_path.parent}, .* is full.*TMPDIR"):
        require_room(tmp_path)


def test_gpus_that_nobody_would_use_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--faces\.device cuda or --decoder nvdec"):
        run([str(tmp_path)], tmp_path / "data", Recipe(), cluster_options=ClusterOptions(gpus_per_worker=0.25))
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing_is_told_before_anything_is_read():
    with pytest.raises(FatalError, match="cannot start: decoder is nvdec, but no video can be decoded on a GPU here"):
        check_networks(Recipe(decoder="nvdec"))


def test_given_up_units_are_named_once(tmp_path: Path):
    unit = {"name": "u1", "source_id": "s", "uri": "a.mp4"}
    summary = give_up(tmp_path, "crop", unit, "worker_died", "out of memory", 3)
    assert summary["failures"] == [{"reason": "worker_died", "message": "out of memory", "uri": "a.mp4"}]
    assert committed_summary(tmp_path, unit)["failures"] == summary["failures"], "it is committed and not done again"
    row = json.loads((tmp_path / "u1.json").read_bytes())["rows"]["failures"][0]
    assert (row["attempts"], row["unit"]) == (3, "u1")


def test_a_unit_that_was_committed_for_its_rows_is_not_committed_as_failed(tmp_path: Path):
    unit = {"name": "u1", "pixels_only": True}
    assert give_up(tmp_path, "crop", unit, "crashed", "SIGSEGV", 2)["failures"]
    assert not list(tmp_path.iterdir())
    assert committed_summary(tmp_path, unit) is None, "its commit says nothing of its pictures"


def test_a_shard_that_cannot_be_written_ends_the_run(tmp_path: Path):
    with pytest.raises(FatalError, match=r"train-000000\.tar cannot be written: SIGKILL"):
        give_up(tmp_path, "pack", {"name": "1f", "shard": "train-000000.tar"}, "worker_died", "SIGKILL", 3)
    assert not list(tmp_path.iterdir())


class _RefusedCommit:
    """Stands in for the child process of a worker: the store, which still gives, takes nothing any more."""

    def __init__(self, make, deadline_s: float) -> None:
        pass

    def __call__(self, unit: dict, deadline_s: float) -> dict:
        raise SandboxError("unreadable", "PermissionError: Access Denied (put_object)")


def test_a_data_set_that_takes_nothing_any_more_ends_the_run_at_once(tmp_path: Path, monkeypatch):
    """The key has expired, the bucket is full: every other unit would fail likewise, one actor after the other."""

    def refuse(path, data: bytes) -> None:
        raise PermissionError(f"Access Denied (put_object of {path})")

    monkeypatch.setattr("curation.worker.Sandbox", _RefusedCommit)
    monkeypatch.setattr("curation.units.write_bytes_atomically", refuse)
    worker = UnitWorker(stage="scan", recipe=Recipe(), folder=tmp_path, deadline_s=0.0, kept_bytes=0)
    (tmp_path / "bundle").write_text(json.dumps([{"name": f"u{k}"} for k in range(3)]))
    (row,) = worker({"bundle": str(tmp_path / "bundle")})
    said = f"cannot write to {tmp_path}: Access Denied (put_object of {tmp_path}/u0.json)"
    assert json.loads(row["summary"])["fatal"] == said
    assert worker.finish({"name": "u1"})["fatal"] == said.replace("u0", "u1")


class _FullDisk:
    """Stands in for the child process of a worker: its scratch has no room for two of the units, for one at first."""

    def __init__(self, make, deadline_s: float) -> None:
        self._num_calls = 0

    def __call__(self, unit: dict, deadline_s: float) -> dict:
        self._num_calls += 1
        if unit["name"] == "u2" or (unit["name"] == "u3" and self._num_calls <= 5):
            raise NoSpaceError("OSError: [Errno 28] No space left on device")
        return {"unit": unit["name"], "failures": []}


def test_a_unit_for_which_no_node_has_scratch_is_left_to_the_next_run(tmp_path: Path, monkeypatch, capsys):
    """The results are on an object store; with a local output the disk is taken for that of the results."""
    store = place("memory://bucket/staging/scan-1")
    options = {"stage": "scan", "recipe": Recipe(), "folder": store, "deadline_s": 0.0, "kept_bytes": 0}
    monkeypatch.setattr("curation.worker.Sandbox", _FullDisk)
    monkeypatch.setattr(UnitWorker, "room_pauses_s", (0.1, 0.1))
    units = [{"name": f"u{k}", "source_id": "s", "uri": f"{k}.mp4"} for k in range(5)]
    (tmp_path / "bundle").write_text(json.dumps(units))
    rows = UnitWorker(**options)({"bundle": str(tmp_path / "bundle")})
    assert [json.loads(row["summary"])["unit"] for row in rows] == ["u0", "u1", "u4", "u3"], "u2 is left to others"
    with pytest.raises(
        NoScratchError, match=rf"{socket.gethostname()} cannot write to its scratch {tempfile.gettempdir()}"
    ) as full:
        UnitWorker(**options).finish(units[2])
    assert pickle.loads(pickle.dumps(full.value)).args == full.value.args, "it comes from another process"

    monkeypatch.setattr(leftovers, "do_again", lambda given, *_: ((u, leftovers.Loss(3, full.value)) for u in given))
    monkeypatch.setattr(Cluster, "workers", 1)
    (given_up,) = Cluster(ClusterOptions())._run_leftovers(units[2:3], UnitWorker, options, 0)
    assert given_up["failures"][0]["reason"] == "unreadable", "every run tries again"
    assert given_up["failures"][0]["message"].startswith("no node has room for it, the last one that was asked: node ")
    assert (
        f"{socket.gethostname()} cannot write to its scratch {tempfile.gettempdir()}"
        in given_up["failures"][0]["message"]
    )
    local = options | {"folder": tmp_path}
    *_, row = UnitWorker(**local)({"bundle": str(tmp_path / "bundle")})
    assert "No space left" in json.loads(row["summary"])["fatal"]


class KillsItsWorker(YuNetDetector):
    """Takes the actor down, not only its child process, on a still of 97 pixels' height; on one of 98 once."""

    def __init__(self, config: FacesConfig) -> None:
        super().__init__(config)

    def detect(self, images: list[np.ndarray]) -> list[Detections]:
        marks = Path(os.environ["KILLER_MARKS"])
        for image in images:
            height = image.shape[0]
            tries = len(list(marks.glob(f"{height}-*")))
            if height == 97 or (height == 98 and not tries):
                (marks / f"{height}-{tries}").touch()
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
        return super().detect(images)


@pytest.mark.slow
def test_a_file_that_takes_its_actor_down_is_named_and_the_job_goes_on(curate, rows_of, tmp_path: Path, monkeypatch):
    import cv2
    import skimage.data

    marks, sources = tmp_path / "marks", tmp_path / "sources"
    marks.mkdir()
    sources.mkdir()
    monkeypatch.setenv("KILLER_MARKS", str(marks))
    portrait = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)[:300, 100:400]
    for name, height in (("poison", 97), ("unlucky", 98), ("good", 300), ("fine", 299)):
        cv2.imwrite(str(sources / f"{name}.png"), cv2.resize(portrait, (300, height)))
    done = curate(
        *("run", sources, "--output", tmp_path / "dataset", "--workers", 2),
        *("--faces.detector", "tests.curation.test_distribute:KillsItsWorker"),
    )
    failures = [r for r in rows_of(tmp_path / "dataset", "failures") if r["reason"] == "worker_died"]
    assert [(Path(row["uri"]).name, row["stage"], row["attempts"]) for row in failures] == [("poison.png", "scan", 3)]
    assert "Worker exit type" in failures[0]["message"]
    assert "poison.png" in done.stderr
    assert len(list(marks.glob("97-*"))) in (ATTEMPTS, 1 + ATTEMPTS), "in its bundle, if that came so far, and alone"
    assert len(list(marks.glob("98-*"))) == 1
    names = {row["source_id"]: Path(row["uris"][0]).name for row in rows_of(tmp_path / "dataset", "sources")}
    assert {names[row["source_id"]] for row in rows_of(tmp_path / "dataset", "clips")} >= {"good.png", "fine.png"}
    units = [(row["stage"], row["unit"]) for row in rows_of(tmp_path / "dataset", "units")]
    assert len(units) == len(set(units))


def test_a_node_that_does_not_see_the_output_ends_the_run_and_writes_nothing(tmp_path: Path):
    """Its mount was forgotten."""
    staging, unit = tmp_path / "staging", {"name": "u1"}
    worker = UnitWorker(stage="index", recipe=Recipe(), folder=staging / "index-1", deadline_s=0, kept_bytes=0)
    (row,) = worker({"bundle": str(staging / "plan-index" / "000000.json")})
    assert f"{socket.gethostname()} does not see {staging / 'index-1'}: " in json.loads(row["summary"])["fatal"]
    assert f"does not see {staging / 'index-1'}: " in worker.finish(unit)["fatal"]
    assert not staging.exists()
    (staging / "index-1").mkdir(parents=True)  # on its own disk
    (row,) = worker({"bundle": str(staging / "plan-index" / "000000.json")})
    assert f"does not see {staging / 'plan-index'}" in json.loads(row["summary"])["fatal"]


def test_workers_get_places_that_mean_the_same_in_other_folders(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = []

    def run_pool(made: Cluster, bundles, worker, options, num_gpus):
        given.append(options)
        yield {"unit": "u"}

    monkeypatch.setattr(Cluster, "connect", lambda made: None)
    monkeypatch.setattr(Cluster, "_workers_to_plan_for", 1)
    monkeypatch.setattr(Cluster, "_run_pool", run_pool)
    recipe = Recipe(crop=CropOptions(quality_model="quality.onnx"))
    folder = Dataset("dataset").staging / "crop-1"
    assert list(Cluster(ClusterOptions()).run("crop", recipe, folder, [{"name": "u"}])) == [{"unit": "u"}]
    assert given[0]["folder"] == tmp_path / "dataset" / "staging" / "crop-1"
    assert given[0]["recipe"].crop.quality_model == f"{tmp_path}/quality.onnx"


@pytest.mark.parametrize(
    ("memory", "asked", "num_workers", "said"),
    [
        (2.4e9, 0, 2, "memory is free for 2 of 4 workers: so many start (--workers sets another number)\n"),
        (0.3e9, 0, 1, "warning: 0.3 GB of memory are free, and a run with one worker needs about 1.6: workers may be"),
        (0.3e9, 3, 3, ""),
        (64e9, 0, 4, ""),
    ],
)
def test_no_more_workers_start_than_there_is_memory_for(monkeypatch, capsys, memory, asked, num_workers, said):
    """But as many as are asked for."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    monkeypatch.setattr(distribute, "start_embedded", lambda *_: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": (asked or 4) + 1, "memory": memory})
    with cluster(ClusterOptions(workers=asked)) as made:
        made.connect()
        assert made.workers == num_workers
    told = capsys.readouterr().err
    assert told.startswith(said) if said else not told


def test_ray_that_starts_too_slowly_is_started_again(monkeypatch, capsys):
    """A busy machine: the first start runs into Ray's own limit; what never starts is one line."""
    import ray

    tries, start = [], ray.init

    def init(**options):
        tries.append(options)
        if len(tries) == 1:
            raise RuntimeError("the node timed out during startup")
        return start(**options)

    monkeypatch.setattr(ray, "init", init)
    made = Cluster(ClusterOptions(workers=1))
    made.connect()
    assert made.workers == 1
    silent = ("ray.data.dataset", "ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
    assert {logging.getLogger(name).getEffectiveLevel() for name in silent} == {logging.CRITICAL}, "they write pages"
    made.close()
    assert len(tries) == 2
    assert "trying again" in capsys.readouterr().err
    monkeypatch.setattr(ray, "init", lambda **_: 1 / 0)
    with (
        pytest.raises(FatalError, match="Ray cannot be started on this machine: division by zero"),
        cluster(ClusterOptions(workers=1)) as made,
    ):
        made.connect()


def test_another_version_than_the_cluster_has_is_one_line(monkeypatch):
    import ray

    def init(**_):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.11.2\n"
            "This process on 127.0.0.1 was started with:\n    Ray: 2.61.0\n    Python: 3.11.2\n"
        )

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(FatalError) as told, cluster(ClusterOptions(address="127.0.0.1:6379")) as made:
        made.connect()
    assert str(told.value) == (
        "Version mismatch: The cluster was started with: Ray: 2.60.0 Python: 3.11.2 This process on 127.0.0.1 was "
        "started with: Ray: 2.61.0 Python: 3.11.2; install on this machine what the nodes have"
    )


def test_a_signal_while_ray_starts_ends_in_order(monkeypatch):
    """Ray takes the signal for itself while it starts, and would end the process at once."""
    import ray

    def init(**_):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("curation.ray_start._RAY_FOLDER", name := f"portrait-ray-{os.getpid()}-")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), cluster(ClusterOptions(workers=1)) as made:
        made.connect()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(Path("/tmp").glob(f"{name}*"))


@pytest.mark.parametrize(("stop", "is_tidied"), [(Terminated, False), (KeyboardInterrupt, True), (FatalError, True)])
def test_sigterm_leaves_the_sources_on_the_nodes_to_the_next_run(monkeypatch, stop, is_tidied):
    """`ray job stop` kills after seconds, and before that the data set's lock has to go."""
    tidied = []
    monkeypatch.setattr(Cluster, "_remove_kept_sources", lambda made: tidied.append(made))

    def end() -> None:
        with cluster(ClusterOptions(address="127.0.0.1:6379")) as made:
            made._is_begun, made._is_embedded, made._has_remote_sources = True, False, True
            raise stop

    with pytest.raises(stop):
        end()
    assert bool(tidied) == is_tidied


def test_the_files_of_an_embedded_ray_lie_where_paths_of_sockets_are_short(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = make_ray_folder()
    try:
        assert made.folder.parent == Path("/tmp")
    finally:
        made.remove()


def test_a_cluster_that_does_not_answer_is_told(monkeypatch, capfd):
    """Something else listens there: Ray asks it for ever."""
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: (os.write(2, b"noise"), time.sleep(0.3)))
    monkeypatch.setattr("curation.ray_start._LATE_S", 0.05)
    with cluster(ClusterOptions(address="127.0.0.1:8265")) as made:
        made.connect()
    assert capfd.readouterr().err.startswith("still waiting for the Ray cluster: ")
