"""The counters that the workers show to Prometheus: what is counted, and that a real Ray exposes it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curation import metrics
from curation.demo import make_videos
from curation.metrics import count_unit
from tests.curation.poison import DETECTOR, write_poison

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def counted(monkeypatch) -> Counter:
    """(name, *tags) -> sum, of counters that only add up."""
    sums: Counter = Counter()

    class Sum:
        def __init__(self, name: str) -> None:
            self.name = name

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0, "Ray refuses anything else"
            sums[self.name.removeprefix("curation_"), *tags.values()] += value

    monkeypatch.setattr(metrics, "_counter", Sum)
    return sums


def test_scanned_unit(counted):
    unit = {"name": "a-0000", "width_px": 640, "height_px": 360}
    summary = {"num_frames": 10, "video_s": 0.4, "wall_s": 2.0, "failures": [], "counts": {"tracks": 3}}
    assert count_unit("scan", unit, summary) is summary
    count_unit("scan", unit, summary | {"failures": [{"reason": "no_face"}, {"reason": "stopped_early"}]})
    assert counted == {
        ("units_total", "scan"): 2,
        ("frames_total", "scan"): 20,
        ("video_seconds_total", "scan"): 0.8,
        ("worker_seconds_total", "scan"): 4.0,
        ("decoded_bytes_total", "scan"): 20 * 640 * 360 * 1.5,
        ("failures_total", "scan", "no_face"): 1,
        ("failures_total", "scan", "stopped_early"): 1,
    }


def test_bytes_are_read_by_index_and_written_by_crop_and_pack(counted):
    for stage, counts in (("index", {"sources": 1}), ("crop", {"clips": 2, "frames": 90}), ("pack", {"places": 5})):
        count_unit(stage, {"name": "x"}, {"counts": counts, "size_bytes": 1000, "failures": []})
    assert {key: value for key, value in counted.items() if key[0] != "units_total"} == {
        ("read_bytes_total", "index"): 1000,
        ("written_bytes_total", "crop"): 1000,
        ("written_bytes_total", "pack"): 1000,
        ("clips_total", "crop"): 2,
        ("clips_total", "pack"): 5,
    }


def test_unit_that_only_made_pictures_again_has_no_ledger_row(counted):
    count_unit("crop", {"name": "x"}, {"unit": "x", "num_frames": 3, "video_s": 0.1, "failures": []})
    assert counted == {("units_total", "crop"): 1, ("frames_total", "crop"): 3, ("video_seconds_total", "crop"): 0.1}


@pytest.fixture
def head(tmp_path, monkeypatch) -> Iterator[tuple[str, str]]:
    """A Ray head of its own; its address, and that of its metrics."""
    import ray._private.services as services

    ports = [_free_port() for _ in range(2)]
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets below it may have 107 characters
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"),
        *(f"--port={ports[0]}", f"--metrics-export-port={ports[1]}", "--include-dashboard=false"),
        *(f"--temp-dir={folder}", f"--node-ip-address={services.get_node_ip_address()}"),
        "--object-store-memory=200000000",
    ]
    with open(tmp_path / "head.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"{services.get_node_ip_address()}:{ports[0]}", f"http://{services.get_node_ip_address()}:{ports[1]}"
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("", 0))
        return taken.getsockname()[1]


def run_on(address: str, curate: Callable, *arguments: object) -> None:
    """Run on a head with one worker, as soon as the head answers."""
    for attempt in range(30):
        try:
            curate("run", *arguments, "--workers", 1, "--address", address)
            return
        except AssertionError:
            if attempt == 29:
                raise
            time.sleep(2)


def _read_counters(address: str) -> dict[tuple[str, str, str], float]:
    """(name, stage, reason) -> sum over the workers."""
    try:
        with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    sums: dict[tuple[str, str, str], float] = Counter()
    for line in lines:
        if line.startswith("ray_curation_"):
            name, tags, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()
            tag = dict(re.findall(r'(\w+)="([^"]*)"', tags))
            sums[name.removeprefix("ray_curation_"), tag["stage"], tag.get("reason", "")] += float(value)
    return sums


@pytest.mark.slow
def test_a_cluster_exposes_what_the_tables_say(head, curate, tmp_path, rows_of):
    """Every unit of a run is counted at the endpoint of its node, under the name of its stage."""
    make_videos(tmp_path / "videos")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video at all")
    dataset = tmp_path / "dataset"
    run_on(head[0], curate, tmp_path / "videos", "--output", dataset)
    (run,) = [row for row in rows_of(dataset, "runs") if row["status"] == "succeeded"]
    stages = {stage["stage"]: stage for stage in run["stages"]}
    wanted = {("units_total", name, ""): stages[name]["num_done"] for name in ("index", "scan", "crop", "pack")}
    wanted |= {("frames_total", name, ""): stages[name]["num_frames"] for name in ("scan", "crop", "pack")}
    clips = rows_of(dataset, "clips")
    wanted["clips_total", "crop", ""] = len(clips)
    wanted["written_bytes_total", "crop", ""] = sum(clip["staged_bytes"] for clip in clips)
    wanted["written_bytes_total", "pack", ""] = sum(row["size_bytes"] for row in rows_of(dataset, "shards"))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = _read_counters(head[1])
        if all(found.get(key) == value for key, value in wanted.items()):
            break
        time.sleep(1)
    assert {key: found.get(key) for key in wanted} == wanted


@pytest.mark.slow
def test_a_file_that_takes_its_workers_down_is_counted_once(head, curate, tmp_path, rows_of):
    """By the driver, and what shared a worker with it, too: no worker is left that could."""
    sources, dataset = tmp_path / "sources", tmp_path / "dataset"
    make_videos(sources)
    write_poison(sources)
    run_on(head[0], curate, sources, "--output", dataset, "--faces.detector", DETECTOR)
    reasons = Counter(row["reason"] for row in rows_of(dataset, "failures"))
    assert reasons["crashed"] == reasons["worker_died"] == 1
    wanted = {("failures_total", "scan", reason): 1.0 for reason in ("crashed", "worker_died")}
    deadline = time.monotonic() + 60
    found: dict[tuple[str, str, str], float] = {}
    while {key: found.get(key) for key in wanted} != wanted and time.monotonic() < deadline:
        found = _read_counters(head[1])
        time.sleep(1)
    assert {key: found.get(key) for key in wanted} == wanted
