"""A Ray cluster of three nodes, jobs through its job server, sources and results in buckets: nothing else is shared."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curation.demo import make_videos
from curation.verify import verify
from manifests.store import Dataset, read_table
from tests.curation.ray_nodes import RayNodes
from tests.curation.test_object_store import content_of

pytestmark = pytest.mark.slow

SHARDS = ("--pack.shard-bytes", 6_000_000)
FEW = ("videos/v10_man_suit_vfr22fps_700.mp4", "videos/v16_man_webcam_av1_1s.mp4", "images/i11_two_men_in_office.jpg")


@pytest.fixture(params=["few", "all"])
def sources(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The demonstration's clips with a few real ones where there are some; or all real media, malformed ones too."""
    folder = tmp_path / "raw"
    if request.param == "all":
        media = request.getfixturevalue("media")
        for name in ("videos", "malformed", "images"):
            shutil.copytree(media / name, folder / name)
        return folder
    make_videos(folder)
    pad = b"\0" * (9 << 20)  # so large that nodes keep it between stages
    (folder / "large.mp4").write_bytes(
        (folder / "zoom.mp4").read_bytes() + struct.pack(">I4s", 8 + len(pad), b"free") + pad
    )
    try:
        media = request.getfixturevalue("media")
    except pytest.skip.Exception:
        return folder
    for name in FEW:
        shutil.copy(media / name, folder)
    return folder


@pytest.fixture
def nodes(s3) -> Iterator[RayNodes]:
    """A head and two workers that know nothing of the store: the job brings the way to it."""
    cluster = RayNodes(env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")})
    try:
        for name in ("a", "b"):
            cluster.add(name, cpus=2)
        yield cluster
    finally:
        cluster.close()


def test_bucket_to_bucket_over_three_nodes_gives_what_files_give(
    s3, nodes: RayNodes, sources: Path, curate: Callable, tmp_path: Path
):
    for path in (path for path in sorted(sources.rglob("*")) if path.is_file()):
        s3.upload_file(str(path), "data", f"raw/{path.relative_to(sources)}")
    store = {"env_vars": {name: value for name, value in os.environ.items() if name.startswith("AWS_")}}
    command = ("run", "s3://data/raw", "--output", "s3://data/portraits", *SHARDS)
    said = nodes.submit(store, *command)
    assert "clips" in said
    curate("run", sources, "--output", tmp_path / "local", *SHARDS, "--workers", 2)
    assert content_of("s3://data/portraits") == content_of(tmp_path / "local")
    dataset = Dataset("s3://data/portraits")
    units = read_table(dataset, "units").to_pylist()
    assert len({(row["stage"], row["unit"]) for row in units}) == len(units)
    assert len({row["worker"] for row in units}) >= 3, "work was spread over actors"
    assert not list(verify(dataset))
    left = [entry["Key"] for entry in s3.list_objects_v2(Bucket="data", Prefix="portraits/")["Contents"]]
    assert not [key for key in left if "/staging/" in key or key.endswith((".lock", ".tmp"))]
    left_on_nodes = [*nodes.folder.glob("*/portrait-scratch-*"), *nodes.folder.glob("*/portrait-sources-*")]
    assert not left_on_nodes, "every node has cleaned its scratch"
    assert "nothing to do" in nodes.submit(store, *command), "the same job again finds all done"
