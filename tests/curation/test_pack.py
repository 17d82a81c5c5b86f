"""The plan of the shards, the shards themselves, and that an interrupted change never mixes old and new."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from curation import pack
from curation.pack import (
    PackStage,
    clips_without_pixels,
    finish_publishing,
    pack_units,
    publish,
    unfinished_shards,
)
from curation.plans import bundle
from curation.recipe import PackOptions, Recipe
from curation.samples import SampleWriter, encode_label, sample_key
from curation.shard_plan import plan_shards
from curation.units import commit_unit
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table

RECIPE = Recipe(pack=PackOptions(shard_bytes=60_000))
NUM_CLIPS, NUM_FRAMES = 24, 3


def clip_row(k: int) -> dict:
    split = ("train", "train", "val", "test")[k % 4]
    return {
        "clip_id": f"clip{k:02d}",
        "decision": "reject" if k == 0 else "keep",
        "split": None if k == 0 else split,
        "identity_id": f"id_{k // 2}",
        "staged_bytes": 1000 * (5 + k % 7),
        "num_frames": NUM_FRAMES,
    }


class World:
    """A data set with cropped clips, and `pack` as the pipeline does it."""

    def __init__(self, root: Path) -> None:
        self.dataset = Dataset(root)
        self.crop = self.dataset.staging / "crop-0"
        rows = [clip_row(k) for k in range(NUM_CLIPS)]
        for row in rows:
            row["staged_bytes"] = self.stage(row["clip_id"])
        replace_table(self.dataset, "clips", make_table("clips", rows))

    def stage(self, clip_id: str) -> int:
        """Write the staged tar of a clip, with contents made of its name."""
        path = self.crop / "unit" / f"{clip_id}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            writer = SampleWriter(file)
            for frame in range(NUM_FRAMES):
                key = sample_key(clip_id, frame)
                writer.add(f"{key}.jpg", random.Random(key).randbytes(1000 + 300 * frame))
                writer.add(f"{key}.json", encode_label({"clip_id": clip_id, "frame": frame}))
            return writer.finish()

    def plan(self, recipe: Recipe = RECIPE) -> list[dict]:
        return plan_shards(read_table(self.dataset, "clips"), recipe)

    def write(self, plan: list[dict], name: str = "pack-0") -> Path:
        folder = self.dataset.staging / name
        folder.mkdir(parents=True, exist_ok=True)
        stage = PackStage(RECIPE, folder)
        for unit in pack_units(self.dataset, unfinished_shards(self.dataset, plan), self.crop):
            commit_unit(folder, "pack", unit, stage.process(unit), 0.0, "w")
        return folder

    def keep_only(self, split: str) -> None:
        rows = read_table(self.dataset, "clips").to_pylist()
        for row in rows:
            row["decision"] = "keep" if row["split"] == split else "reject"
        replace_table(self.dataset, "clips", make_table("clips", rows))

    def check(self) -> None:
        """Every kept clip's offsets lead to its own pictures and labels; every shard is what `shards` says."""
        shards = {row["shard"]: row for row in read_table(self.dataset, "shards").to_pylist()}
        assert {p.name for p in self.dataset.shards.iterdir()} == set(shards)
        for name, row in shards.items():
            content = (self.dataset.shards / name).read_bytes()
            assert (row["size_bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
            assert len(content) <= 60_000 or row["num_clips"] == 1
        for clip in read_table(self.dataset, "clips").to_pylist():
            if clip["decision"] != "keep":
                assert clip["shard"] is None
                continue
            content = (self.dataset.shards / clip["shard"]).read_bytes()
            for frame in range(NUM_FRAMES):
                start, size = clip["frame_offsets"][frame], clip["frame_sizes"][frame]
                key = sample_key(clip["clip_id"], frame)
                assert content[start : start + size] == random.Random(key).randbytes(1000 + 300 * frame)
                start, size = clip["label_offsets"][frame], clip["label_sizes"][frame]
                assert json.loads(content[start : start + size]) == {
                    "clip_id": clip["clip_id"], "frame": frame, "identity": clip["identity_id"],
                    "split": clip["split"], "licence": clip["licence"], "attribution": None, "consent": None,
                }  # fmt: skip


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def test_plan_holds_every_kept_clip_once_and_no_split_crosses(world):
    plan = world.plan()
    names = [c["clip_id"] for shard in plan for c in shard["clips"]]
    assert sorted(names) == [f"clip{k:02d}" for k in range(1, NUM_CLIPS)]
    splits = {clip_row(k)["clip_id"]: clip_row(k)["split"] for k in range(NUM_CLIPS)}
    for shard in plan:
        assert {splits[c["clip_id"]] for c in shard["clips"]} == {shard["split"]}
        assert shard["shard"].startswith(shard["split"] + "-")
    assert [s["shard"] for s in plan if s["split"] == "train"] == [f"train-{k:06d}.tar" for k in range(3)]
    assert names != sorted(names), "neighbours come from everywhere"


def test_plan_depends_on_the_clips_and_the_recipe_only(world):
    clips = read_table(world.dataset, "clips")
    plan = plan_shards(clips, RECIPE)
    order = list(range(NUM_CLIPS))
    random.Random(3).shuffle(order)
    assert plan_shards(clips.take(order), RECIPE) == plan
    other_seed = plan_shards(clips, Recipe(seed=1, pack=RECIPE.pack))
    assert [s["clips"] for s in other_seed] != [s["clips"] for s in plan]
    whole = plan_shards(clips, Recipe())
    assert [s["shard"] for s in whole] == ["train-000000.tar", "val-000000.tar", "test-000000.tar"]


def test_plan_of_nothing(world):
    world.keep_only("nobody")
    assert world.plan() == []
    publish(world.dataset, [], world.write([]))
    assert list(world.dataset.shards.iterdir()) == []


def test_shards_are_planned_below_their_target(world):
    """What is planned for a clip is never less than what it takes, so a shard never outgrows the target."""
    plan = world.plan()
    folder = world.write(plan)
    for shard in plan:
        assert (folder / f"{shard['plan_hash']}.tar").stat().st_size <= 60_000
    assert len(plan) < NUM_CLIPS / 2, "and they are not nearly empty"


def test_published_shards_and_offsets(world):
    plan = world.plan()
    publish(world.dataset, plan, world.write(plan))
    world.check()
    with tarfile.open(world.dataset.shards / plan[0]["shard"]) as archive:
        names = archive.getnames()
    clips = [c["clip_id"] for c in plan[0]["clips"]]
    assert names == [
        f"{sample_key(c, frame)}.{kind}" for c in clips for frame in range(NUM_FRAMES) for kind in ("jpg", "json")
    ]
    assert unfinished_shards(world.dataset, plan) == [], "nothing is left to write"


def test_shards_are_the_same_whoever_writes_them(world, tmp_path):
    other = World(tmp_path / "other")
    for one in (world, other):
        publish(one.dataset, one.plan(), one.write(one.plan()))
    for path in world.dataset.shards.iterdir():
        assert path.read_bytes() == (other.dataset.shards / path.name).read_bytes()


def test_pictures_are_copied_from_the_old_shards(world):
    """Staging is gone; another size of shards needs no source."""
    plan = world.plan()
    publish(world.dataset, plan, world.write(plan))
    for path in world.crop.glob("*/*.tar"):
        path.unlink()
    new = plan_shards(read_table(world.dataset, "clips"), Recipe(pack=PackOptions(shard_bytes=25_000)))
    assert len(new) > len(plan)
    assert clips_without_pixels(world.dataset, new, world.crop) == set()
    publish(world.dataset, new, world.write(new, "pack-1"))
    world.check()


def test_clips_that_are_nowhere_are_named(world):
    plan = world.plan()
    publish(world.dataset, plan, world.write(plan))
    for path in world.crop.glob("*/*.tar"):
        path.unlink()
    assert clips_without_pixels(world.dataset, plan, world.crop) == set()
    (world.dataset.shards / "val-000000.tar").unlink()
    lost = {c["clip_id"] for shard in plan if shard["shard"] == "val-000000.tar" for c in shard["clips"]}
    assert clips_without_pixels(world.dataset, plan, world.crop) == lost
    for clip_id in lost:
        world.stage(clip_id)
    assert [shard["shard"] for shard in unfinished_shards(world.dataset, plan)] == ["val-000000.tar"]


def test_every_shard_of_ordinary_size_is_work_of_its_own(tmp_path):
    """Forty of about 1 GB, in staged files that are all hole."""
    dataset = Dataset(tmp_path)
    rows = [clip_row(1) | {"clip_id": f"clip{k:03d}", "staged_bytes": 450_000_000} for k in range(80)]
    for row in rows:
        path = dataset.staging / "crop-0" / "unit" / f"{row['clip_id']}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, row["staged_bytes"])
    plan = plan_shards(make_table("clips", rows), Recipe())
    assert len(plan) == 40
    units = list(pack_units(dataset, plan, dataset.staging / "crop-0"))
    assert [unit["name"] for unit in units] == [shard["plan_hash"] for shard in plan]
    for workers in (2, 8, 32):
        assert len(bundle(units, workers)) == 40


def test_more_bytes_are_given_more_time(world):
    plan = plan_shards(read_table(world.dataset, "clips"), Recipe(pack=PackOptions(shard_bytes=10**9)))
    folder = world.write(plan)
    units = {unit["name"]: unit["expected_s"] for unit in pack_units(world.dataset, plan, world.crop)}
    sizes = {path.stem: path.stat().st_size for path in folder.glob("*.tar")}
    assert sorted(units, key=units.get) == sorted(sizes, key=sizes.get)
    for name, size in sizes.items():
        assert units[name] == pytest.approx(1 + size / 20e6, abs=1e-3)


def test_copying_from_old_shards_holds_nothing_a_frame(world):
    """A unit says where a clip begins and ends, also of a clip with many frames."""

    def peak_bytes(num_frames: int) -> int:
        """Of making all units, when every clip has as many frames."""
        rows = read_table(world.dataset, "clips").to_pylist()
        for row in rows:
            row |= {"shard": "train-000000.tar", "frame_sizes": [100] * num_frames, "label_sizes": [10] * num_frames}
            row |= {"frame_offsets": [512 + 2048 * k for k in range(num_frames)]}
            row |= {"label_offsets": [1536 + 2048 * k for k in range(num_frames)]}
        replace_table(world.dataset, "clips", make_table("clips", rows))
        tracemalloc.start()
        units = list(pack_units(world.dataset, plan, world.crop))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        clips = [clip for unit in units for clip in unit["clips"]]
        assert {(clip["start"], clip["end"]) for clip in clips} == {(0, 2048 * num_frames)}
        return peak

    plan = world.plan()
    publish(world.dataset, plan, world.write(plan))
    for path in world.crop.glob("*/*.tar"):
        path.unlink()
    peak_bytes(1)
    assert peak_bytes(20_000) < 1.5 * peak_bytes(10)


@pytest.mark.parametrize("crash_at", range(1, 20))
def test_publish_may_die_anywhere_and_be_repeated(world, monkeypatch, crash_at):
    plan = world.plan()
    folder = world.write(plan)
    if dies(monkeypatch, crash_at, lambda: publish(world.dataset, plan, folder)):
        publish(world.dataset, plan, folder)
    world.check()


@pytest.mark.parametrize("crash_at", range(1, 20))
def test_other_thresholds_after_a_publish_that_died(world, monkeypatch, crash_at):
    """Shards of one plan, half replaced by those of a second, then a third is wanted: no picture of a wrong clip, and
    none is lost of a clip that all three keep."""
    first = world.plan()
    publish(world.dataset, first, world.write(first))
    for path in world.crop.glob("*/*.tar"):
        path.unlink()
    rows = read_table(world.dataset, "clips").to_pylist()
    world.keep_only("train")
    second = plan_shards(read_table(world.dataset, "clips"), Recipe(seed=9, pack=RECIPE.pack))
    folder = world.write(second, "pack-1")
    if not dies(monkeypatch, crash_at, lambda: publish(world.dataset, second, folder)):
        return
    dies(monkeypatch, crash_at, lambda: finish_publishing(world.dataset))  # as any command does that takes the lock
    finish_publishing(world.dataset)
    shutil.rmtree(folder)
    places = {c["clip_id"]: c for c in read_table(world.dataset, "clips").to_pylist()}
    decided = [places[r["clip_id"]] | {k: r[k] for k in ("decision", "split", "identity_id")} for r in rows]
    replace_table(world.dataset, "clips", make_table("clips", decided))
    lost = clips_without_pixels(world.dataset, first, world.crop)
    assert not lost & {c["clip_id"] for shard in second for c in shard["clips"]}
    for clip_id in lost:
        world.stage(clip_id)  # the pipeline crops them again
    publish(world.dataset, first, world.write(first, "pack-2"))
    world.check()


def dies(monkeypatch, crash_at: int, act) -> bool:
    """Whether `act` was stopped at its `crash_at`-th change on disk."""
    changes = 0

    def crashing(original):
        def change(*arguments, **options):
            nonlocal changes
            changes += 1
            if changes == crash_at:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(pack, "replace_table", crashing(pack.replace_table))
        patch.setattr(os, "replace", crashing(os.replace))
        patch.setattr(Path, "unlink", crashing(Path.unlink))
        try:
            act()
        except KeyboardInterrupt:
            return True
    return False
