"""One job with everything against it: the result is that of a job that nobody disturbed.

    python -m pytest -m slow -s tests/curation/test_chaos.py

Repeatable by seed: which fault comes after how many units, whom it meets, and which calls the store fails are drawn by
it (what a worker has in hand at that moment is not). Prints the table of faults and what became of them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from curation.demo import make_videos
from curation.leftovers import ATTEMPTS
from curation.verify import verify
from manifests.store import Dataset, read_table
from tests.curation.chaos import Chaos, table_of
from tests.curation.poison import DETECTOR, write_poison
from tests.curation.ray_nodes import RayNodes
from tests.curation.test_object_store import content_of
from tests.flaky_store import FlakyStore

pytestmark = pytest.mark.slow

RESULT = "s3://data/portraits"
OPTIONS = ("--index.max-span-s", 2, "--pack.shard-bytes", 6_000_000, "--faces.detector", DETECTOR)
SOME = (
    "videos/v05_man_dusk_lowlight.mp4",
    "videos/v10_man_suit_vfr22fps_700.mp4",
    "videos/v16_man_webcam_av1_1s.mp4",
    "videos/v22_man_webcam_vp8_400x300.webm",
    "malformed/m06_damaged_28_of_50_frames.mp4",
    "malformed/m07_zero_bytes.webm",
    "images/i11_two_men_in_office.jpg",
    "images/i16_man_with_glasses_and_beard_white_background.jpg",
    "images/i22_person_wearing_skull_mask.jpg",
)


@pytest.fixture
def sources(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The demonstration's clips, two poisonous pictures, and some real media where there are any."""
    folder = tmp_path / "raw"
    make_videos(folder)
    write_poison(folder)
    try:
        media = request.getfixturevalue("media")
    except pytest.skip.Exception:
        return folder
    for name in SOME:
        shutil.copy(media / name, folder)
    return folder


@pytest.fixture
def nodes(s3: Any) -> Iterator[RayNodes]:
    """A head with room for one worker, and two nodes with room for two each."""
    cluster = RayNodes(env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")})
    try:
        for name in ("a", "b"):
            cluster.add(name, cpus=2)
        yield cluster
    finally:
        cluster.close()


class Jobs:
    """The same command, submitted as often as its driver is killed."""

    def __init__(self, pool: ThreadPoolExecutor, nodes: RayNodes, store_url: str) -> None:
        names = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self._environment = {"env_vars": names | {"AWS_ENDPOINT_URL": store_url}}
        self._pool, self._nodes = pool, nodes
        self.submitted: list[Future[str]] = []

    def submit(self) -> None:
        command = ("run", "s3://data/raw", "--output", RESULT, *OPTIONS)
        self.submitted.append(self._pool.submit(self._nodes.submit, self._environment, *command))

    def is_over(self) -> bool:
        return self.submitted[-1].done()

    def said(self) -> list[str]:
        """What each of them printed; fails unless the last one succeeded."""
        *killed, last = self.submitted
        return [*(str(job.exception()) for job in killed), last.result()]


def outcome_of(root: str | Path) -> dict[str, Any]:
    """`content_of`, without what Ray says of a worker that died, in which there are process numbers."""
    content = content_of(root)
    for row in content["failures"]:
        if row["reason"] == "worker_died":
            row["message"] = ""
    return content


def poison_in(root: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of `failures` that name a poisonous picture."""
    rows = read_table(Dataset(root), "failures").to_pylist()
    return {name: row for row in rows if (name := Path(row["uri"]).name) in ("aborts.png", "kills.png")}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_disturbed_job_ends_as_an_undisturbed_one(
    seed: int, s3: Any, nodes: RayNodes, sources: Path, curate: Callable, tmp_path: Path, record_property: Callable
):
    for path in sorted(sources.iterdir()):
        s3.upload_file(str(path), "data", f"raw/{path.name}")
    curate("run", sources, "--output", tmp_path / "calm", *OPTIONS, "--workers", 2)
    calm_units = read_table(Dataset(tmp_path / "calm"), "units").to_pylist()
    num_units = sum(not row["stage"].startswith("pack") for row in calm_units)

    store = FlakyStore(os.environ["AWS_ENDPOINT_URL"], failed_share=0.05, seed=seed)
    try:
        with ThreadPoolExecutor(2) as pool:
            jobs = Jobs(pool, nodes, store.url)
            jobs.submit()
            chaos = Chaos(nodes, store, jobs.submit, num_units=num_units, seed=seed)
            chaos.inject(jobs.is_over)
            said = jobs.said()
    finally:
        store.close()

    found = poison_in(RESULT)
    table = table_of(
        [
            ("fault", "met", "outcome"),
            *((fault.name, fault.met, fault.outcome) for fault in chaos.faults),
            ("5 % of calls", f"{store.num_failed} of {len(store.requests)} failed", "all tried again"),
            *(
                (row["uri"], row["reason"], f"{row['attempts']} attempts: {row['message'][:200]}")
                for row in found.values()
            ),
        ]
    )
    lost = [line for text in said for line in text.splitlines() if "were lost" in line or "going on" in line]
    report = "\n".join([f"seed {seed}: {num_units} units of index, scan and crop", table, *lost])
    print(f"\n{report}", file=sys.stderr)
    (tmp_path / "faults.txt").write_text(report)
    record_property("faults", report)

    assert all(fault.outcome for fault in chaos.faults), "the job was over before all faults had come"
    assert len(jobs.submitted) == 2
    assert outcome_of(RESULT) == outcome_of(tmp_path / "calm")
    assert_whole(s3, calm_units)
    assert (found["aborts.png"]["reason"], found["aborts.png"]["attempts"]) == ("crashed", 2)
    assert "SIGABRT" in found["aborts.png"]["message"]
    assert (found["kills.png"]["reason"], found["kills.png"]["attempts"]) == ("worker_died", ATTEMPTS)
    assert "died" in found["kills.png"]["message"]
    runs = read_table(Dataset(RESULT), "runs").to_pylist()
    assert [run["status"] for run in runs] == ["killed", "succeeded"]


def assert_whole(s3: Any, calm_units: list[dict[str, Any]]) -> None:
    """Nothing is lost, doubled or left behind."""
    dataset = Dataset(RESULT)
    units = [(row["stage"], row["unit"]) for row in read_table(dataset, "units").to_pylist()]
    assert len(set(units)) == len(units)
    assert {unit for unit in units if not unit[0].startswith(("index", "pack"))} == {
        (row["stage"], row["unit"]) for row in calm_units if not row["stage"].startswith(("index", "pack"))
    }, "units of index are named after the places of the sources"
    frames = read_table(dataset, "frames", ["clip_id", "frame"]).to_pylist()
    assert len({(row["clip_id"], row["frame"]) for row in frames}) == len(frames) > 0
    assert not list(verify(dataset))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="data", Prefix="portraits/")
    left = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert not [key for key in left if "/staging/" in key or key.endswith((".lock", ".tmp"))]
