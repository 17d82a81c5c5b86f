"""Sources on an object store, served by a real S3 protocol server on loopback."""

from __future__ import annotations

from pathlib import Path


def _shards(dataset: Path) -> dict[str, bytes]:
    """Shards of any split: the one person's split follows from the bytes that the encoder made of the videos."""
    return {path.name: path.read_bytes() for path in (dataset / "shards").iterdir()}


def test_a_glob_of_objects_gives_the_clips_of_the_same_files(s3, demo_dataset: Path, curate, rows_of, tmp_path: Path):
    for path in sorted(demo_dataset.with_name(f"{demo_dataset.name}_videos").iterdir()):
        s3.upload_file(str(path), "data", f"videos/deep/{path.name}")
    curate("run", "s3://data/videos/**/*.mp4", "--output", tmp_path / "remote", "--workers", 2)
    assert _shards(tmp_path / "remote") == _shards(demo_dataset) != {}
    uris = [uri for row in rows_of(tmp_path / "remote", "sources") for uri in row["uris"]]
    assert "s3://data/videos/deep/sway.mp4" in uris
    assert {row["reason"] for row in rows_of(tmp_path / "remote", "sources")} == {None, "no_frames"}


def test_a_missing_bucket_is_one_clear_line(s3, curate, tmp_path: Path):
    done = curate("run", "s3://nowhere/videos", "--output", tmp_path / "dataset", status=2)
    assert done.stderr.strip().splitlines()[-1] == "error: there is no bucket 'nowhere'"
