"""A Ray cluster of two nodes, whose scratch has no room for some of the sources, or for any of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.curation.ray_nodes import ROOT, RayNodes

pytestmark = pytest.mark.slow

NUM_SOURCES = 30
INDEX = """
import json, sys, time
from curation import distribute
from curation.index import list_inputs
from curation.recipe import Recipe
from manifests.storage import place

class Slow(distribute.UnitWorker):
    room_pauses_s = (2.0, 10.0)

    def _do(self, unit):
        summary = super()._do(unit)
        time.sleep(1)
        return summary

distribute.UnitWorker = Slow
units = [unit | {"expected_s": 1.0} for unit in list_inputs(["s3://data/raw"], Recipe().index)]  # a bundle each
with distribute.cluster(distribute.ClusterOptions(address=sys.argv[1])) as cluster:
    for summary in cluster.run("index", Recipe(), place("s3://data/out/staging/index-1"), units):
        print(json.dumps(summary))
"""


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Scratch of the nodes a and b: of 256 KiB and of 3 MiB."""
    folders = {name: tmp_path / name for name in ("a", "b")}
    for folder, size in zip(folders.values(), ("256k", "3m"), strict=True):
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount small file systems")
    yield folders
    for folder in folders.values():
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def nodes(s3: Any, disks: dict[str, Path]) -> Iterator[RayNodes]:
    """A head without workers, and two nodes with room for two each."""
    cluster = RayNodes(head_cpus=0)
    try:
        for name, scratch in disks.items():
            cluster.add(name, cpus=2, scratch=scratch)
        yield cluster
    finally:
        cluster.close()


def put_picture(s3: Any, name: str, side_px: int) -> None:
    """Noise: about 3 bytes a pixel."""
    picture = np.random.default_rng(list(name.encode())).integers(0, 256, (side_px, side_px, 3), np.uint8)
    s3.put_object(Bucket="data", Key=f"raw/{name}.png", Body=cv2.imencode(".png", picture)[1].tobytes())


def test_what_one_node_has_no_room_for_is_done_by_the_other(s3: Any, nodes: RayNodes):
    names = [f"{k:02d}" for k in range(NUM_SOURCES)]
    for name in names:
        put_picture(s3, name, 350)  # 370 kB: too much for a
    put_picture(s3, "large", 1200)  # 4.3 MB: too much for both
    done = subprocess.run(
        [sys.executable, "-c", INDEX, nodes.address],
        cwd=ROOT,
        env=nodes.env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summaries = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({summary["unit"] for summary in summaries}) == len(summaries) == NUM_SOURCES + 1, "each exactly once"
    (failure,) = [failure for summary in summaries for failure in summary["failures"]]
    assert (failure["uri"], failure["reason"]) == ("s3://data/raw/large.png", "unreadable")
    assert re.match(r"no node has room for it, .* node \S+ cannot write to its scratch", failure["message"])
    assert sum(summary["counts"].get("sources", 0) for summary in summaries) == NUM_SOURCES
    undone = int(re.search(r"index: (\d+) units came back undone", done.stderr)[1])
    assert undone <= NUM_SOURCES / 2, "a, which refuses each at once, has not taken most of the plan"
