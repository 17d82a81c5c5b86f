"""The same inputs and recipe give the same data set: on one worker or two, interrupted or not, with either decoder."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from curation.demo import make_videos
from curation.recipe import load_recipe
from manifests.schema import TABLES
from manifests.store import Dataset, read_table

ROOT = Path(__file__).resolve().parents[2]
FEW = (
    "videos/v08_face_then_noface_hevc_vfr.mov",
    "videos/v16_man_webcam_av1_1s.mp4",
    "malformed/m08_editlist_158packets_55frames_tv_overlay.mp4",
    "malformed/m06_damaged_28_of_50_frames.mp4",
    "images/i11_two_men_in_office.jpg",
    "images/i32_laughing_man_in_denim_shirt_outdoors_dark_skin.jpg",
)
SHARD_BYTES = 2_000_000
SMALL_SHARDS = ("--pack.shard-bytes", str(SHARD_BYTES))


def content_of(folder: Path) -> dict[str, object]:
    """Rows of every table but the bookkeeping, and a hash of every shard."""
    dataset = Dataset(folder)
    tables = {name: read_table(dataset, name).to_pylist() for name in TABLES if name not in ("units", "runs")}
    tables["frames"].sort(key=lambda row: (row["clip_id"], row["frame"]))
    shards = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(dataset.shards.glob("*"))}
    return tables | {"shard files": shards}


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    for name in one:
        assert one[name] == other[name], f"{name} differs"


def assert_nothing_left(folder: Path) -> None:
    left = [p for p in folder.rglob("*") if p.name.endswith(".tmp") or "staging" in p.parts or p.name == ".lock"]
    assert not left, left


def run_and_kill(arguments: list[str], after_s: float) -> bool:
    """Start a run and kill the driver after some seconds; whether it was still going. Its Ray must end by itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "curation", "run", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after_s)
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with a few files: real media where there are some, else the demonstration's."""
    folder = tmp_path_factory.mktemp("sources")
    try:
        media = request.getfixturevalue("media")
    except pytest.skip.Exception:
        make_videos(folder)
        return folder
    for name in FEW:
        shutil.copy(media / name, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(few: Path, run_here, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], float]:
    """What one process makes of them without Ray, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "dataset"
    recipe = load_recipe("default")
    start = time.monotonic()
    run_here([str(few)], folder, replace(recipe, pack=replace(recipe.pack, shard_bytes=SHARD_BYTES)))
    assert_nothing_left(folder)
    content = content_of(folder)
    assert len(content["shard files"]) >= 2, "the test wants several shards"
    return content, time.monotonic() - start


def test_two_workers_equal_one_process(few: Path, undisturbed, curate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_PERTURB_", "85")  # glibc fills memory with it: nothing depends on what was there before
    curate("run", few, "--output", tmp_path / "dataset", "--workers", 2, *SMALL_SHARDS)
    assert_same(undisturbed[0], content_of(tmp_path / "dataset"))


@pytest.mark.slow
def test_decord_equals_pyav(few: Path, undisturbed, curate, tmp_path: Path):
    curate("run", few, "--output", tmp_path / "dataset", "--workers", 2, "--decoder", "decord", *SMALL_SHARDS)
    assert undisturbed[0]["shard files"] == content_of(tmp_path / "dataset")["shard files"]


@pytest.mark.slow
def test_killed_five_times(few: Path, undisturbed, curate, tmp_path: Path):
    folder = tmp_path / "dataset"
    arguments = [str(few), "--output", str(folder), "--workers", "2", *SMALL_SHARDS]
    chance = random.Random(7)
    num_kills = sum(run_and_kill(arguments, chance.uniform(0.3, 0.8) * undisturbed[1]) for _ in range(5))
    assert num_kills >= 2
    curate("run", *arguments)
    assert_nothing_left(folder)
    assert_same(undisturbed[0], content_of(folder))


@pytest.mark.slow
def test_all_media(media: Path, curate, tmp_path: Path):
    """The whole media: one worker, two, decord, and five kills spread over the whole run."""
    inputs = [media / "videos", media / "malformed", media / "images"]
    options = ("--pack.shard-bytes", "50000000")
    start = time.monotonic()
    curate("run", *inputs, "--output", tmp_path / "one", "--workers", 1, *options, timeout_s=1200)
    wall_s = time.monotonic() - start
    one = content_of(tmp_path / "one")
    curate("run", *inputs, "--output", tmp_path / "two", "--workers", 2, *options, timeout_s=1200)
    assert_same(one, content_of(tmp_path / "two"))
    killed = tmp_path / "killed"
    arguments = [*map(str, inputs), "--output", str(killed), "--workers", "2", *options]
    chance = random.Random(11)
    for _ in range(5):
        run_and_kill(arguments, chance.uniform(8, max(9.0, wall_s / 3)))
    curate("run", *arguments, timeout_s=1200)
    assert_nothing_left(killed)
    assert_same(one, content_of(killed))
    decord = [*inputs, "--output", tmp_path / "decord", "--workers", 2, "--decoder", "decord"]
    curate("run", *decord, *options, timeout_s=1200)
    assert one["shard files"] == content_of(tmp_path / "decord")["shard files"]
