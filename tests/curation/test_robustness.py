"""Damaged files and misbehaving analysers cost themselves only."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from curation.demo import make_videos
from model.faces import Detections, FacesConfig
from model.faces.yunet import YuNetDetector

SMALL = (
    "videos/v16_man_webcam_av1_1s.mp4",
    "videos/v18_black_vp9_no_duration.webm",
    "malformed/m05_non_utf8_metadata_h263.3gp",
    "malformed/m08_editlist_158packets_55frames_tv_overlay.mp4",
    "images/i16_man_with_glasses_and_beard_white_background.jpg",
    "images/i26_chrome_robot_with_glasses_palette_mode_png.png",
)


class PoisonedDetector(YuNetDetector):
    """Kills its process on a still of 97 pixels' height and hangs on one of 98."""

    def __init__(self, config: FacesConfig) -> None:
        super().__init__(config)

    def detect(self, images: list[np.ndarray]) -> list[Detections]:
        for image in images:
            if image.shape[0] == 97:
                os.abort()
            if image.shape[0] == 98:
                time.sleep(600)
        return super().detect(images)


def explanations(rows_of, folder: Path) -> dict[str, list[str]]:
    """For every URI that the data set knows: why it is rejected, what failed, or what became of its tracks."""
    found: dict[str, list[str]] = {}
    uris = {}
    for row in rows_of(folder, "sources"):
        for uri in row["uris"]:
            uris.setdefault(row["source_id"], []).append(uri)
            found.setdefault(uri, [])
            if row["status"] == "rejected":
                assert row["detail"], row
                found[uri].append(row["reason"])
    for row in rows_of(folder, "failures"):
        assert row["message"], row
        found.setdefault(row["uri"], []).append(row["reason"])
    for table in ("tracks", "clips"):
        for row in rows_of(folder, table):
            for uri in uris[row["source_id"]]:
                found[uri].append(table)
    return found


def mutate(data: bytes, seed: int) -> bytes:
    """The content cut off somewhere, or with some bits flipped: in its first kilobytes, or anywhere."""
    chance = random.Random(seed)
    if seed % 4 == 0:
        return data[: chance.randrange(1, len(data))]
    changed = bytearray(data)
    reach = min(len(data), 4096) if seed % 2 else len(data)
    for _ in range(chance.choice((1, 8, 64))):
        changed[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("num_files", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_mutations(num_files: int, request: pytest.FixtureRequest, curate, rows_of, tmp_path: Path):
    sources = tmp_path / "sources"
    sources.mkdir()
    try:
        originals = [request.getfixturevalue("media") / name for name in SMALL]
    except pytest.skip.Exception:
        make_videos(tmp_path / "demo")
        originals = sorted((tmp_path / "demo").glob("*.mp4"))
    for seed in range(num_files):
        original = originals[seed % len(originals)]
        data = mutate(original.read_bytes(), seed)
        (sources / f"{seed:03d}{original.suffix}").write_bytes(data)
    (sources / "empty.mp4").touch()
    shutil.copy(originals[0], sources / "good.mp4")
    before = {p.name: p.read_bytes() for p in sources.iterdir()}
    curate("run", sources, "--output", tmp_path / "dataset", "--workers", 2, "--deadline-s", 60)
    found = explanations(rows_of, tmp_path / "dataset")
    unexplained = [p.name for p in sources.iterdir() if not found.get(str(p))]
    assert not unexplained
    assert found[str(sources / "empty.mp4")] == ["empty_file"]
    assert "tracks" in found[str(sources / "good.mp4")]
    assert before == {p.name: p.read_bytes() for p in sources.iterdir()}, "a source was changed"


@pytest.mark.slow  # what becomes of such units without Ray: test_sandbox.py
def test_an_analyser_that_crashes_or_hangs(curate, rows_of, tmp_path: Path):
    import cv2
    import skimage.data

    portrait = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)[:300, 100:400]
    sources = tmp_path / "sources"
    sources.mkdir()
    for name, height in (("crash", 97), ("hang", 98), ("good", 300), ("fine", 299)):
        cv2.imwrite(str(sources / f"{name}.png"), cv2.resize(portrait, (300, height)))
    done = curate(
        *("run", sources, "--output", tmp_path / "dataset", "--workers", 1, "--deadline-s", 10),
        *("--faces.detector", "tests.curation.test_robustness:PoisonedDetector"),
    )
    failures = {Path(row["uri"]).name: row for row in rows_of(tmp_path / "dataset", "failures")}
    assert set(failures) == {"crash.png", "hang.png"}
    assert failures["crash.png"]["reason"] == "crashed"
    assert "SIGABRT" in failures["crash.png"]["message"]
    assert failures["hang.png"]["reason"] == "deadline"
    assert {row["attempts"] for row in failures.values()} == {2}
    clips = rows_of(tmp_path / "dataset", "clips")
    names = {row["source_id"]: Path(row["uris"][0]).name for row in rows_of(tmp_path / "dataset", "sources")}
    assert {names[row["source_id"]] for row in clips} == {"good.png", "fine.png"}
    assert "crash.png" in done.stderr


def test_an_analyser_that_cannot_start_is_one_clear_error(curate, tmp_path: Path):
    make_videos(tmp_path / "sources")
    done = curate(
        *("run", tmp_path / "sources", "--output", tmp_path / "dataset", "--workers", 1, "--faces", "insightface"),
        *("--faces.root", tmp_path / "nowhere"),
        status=1,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error:")
    assert "nowhere" in last
    assert "index" not in done.stderr, "it is said before any file is read"


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow  # now and then the full disk takes Ray itself down, and with it the last line
def test_full_disk_stops_clearly_and_continues(tiny_disk: Path, curate, rows_of, tmp_path: Path):
    make_videos(tmp_path / "sources")
    output = tiny_disk / "dataset"
    done = curate("run", tmp_path / "sources", "--output", output, "--workers", 2, status=1)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error:"), done.stderr[-3000:]
    assert "No space left" in last
    assert not list(output.glob("shards/*")), "no shard under its final name"
    subprocess.run(["mount", "-o", "remount,size=200m", tiny_disk], check=True)
    curate("run", tmp_path / "sources", "--output", output, "--workers", 2)
    assert [row["decision"] for row in rows_of(output, "clips")].count("keep") >= 3
    assert not (output / "staging").exists()
