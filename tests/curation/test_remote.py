"""Sources on an object store, served by a real S3 protocol server on loopback."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from curation.demo import make_videos


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch):
    """A bucket `raw`; the usual variables lead every client of this process and its children to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="raw")
    yield client
    server.stop()


def test_a_glob_of_objects_gives_the_clips_of_the_same_files(bucket, curate, rows_of, tmp_path: Path):
    make_videos(tmp_path / "videos")
    for path in sorted((tmp_path / "videos").iterdir()):
        bucket.upload_file(str(path), "raw", f"videos/deep/{path.name}")
    curate("run", "s3://raw/videos/**/*.mp4", "--output", tmp_path / "remote", "--workers", 2)
    curate("run", tmp_path / "videos", "--output", tmp_path / "local", "--workers", 2)
    shards = {name: (tmp_path / name / "shards" / "train-000000.tar").read_bytes() for name in ("remote", "local")}
    assert shards["remote"] == shards["local"]
    uris = [uri for row in rows_of(tmp_path / "remote", "sources") for uri in row["uris"]]
    assert "s3://raw/videos/deep/sway.mp4" in uris
    assert {row["reason"] for row in rows_of(tmp_path / "remote", "sources")} == {None, "no_frames"}


def test_a_missing_bucket_is_one_clear_line(bucket, curate, tmp_path: Path):
    done = curate("run", "s3://nowhere/videos", "--output", tmp_path / "dataset", status=2)
    assert done.stderr.strip().splitlines()[-1] == "error: no such file or folder: s3://nowhere/videos"
