"""Units commit themselves once, and their rows reach the manifests once, whatever is interrupted."""

from __future__ import annotations

import contextlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from curation import units
from curation.units import Ledger, UnitResult, commit_unit, plain
from manifests.schema import make_table
from manifests.store import Dataset, read_parquet, read_table, replace_table, write_bytes_atomically

UNITS = [{"name": f"unit{k}", "source_id": f"s{k}", "uri": f"/v/{k}.mp4"} for k in range(4)]


def commit(ledger: Ledger, unit: dict, text: str = "first") -> None:
    """A crop unit with a clip, two frames and a failure."""
    clip = f"{unit['name']}_clip"
    result = UnitResult(num_frames=2, video_s=0.5)
    result.rows = {
        "clips": [{"clip_id": clip, "unit": unit["name"], "motion": np.float32(0.5), "quality": float("nan")}],
        "frames": [{"clip_id": clip, "frame": np.int64(k)} for k in (1, 0)],
    }
    result.fail(ledger.stage, unit, "stopped_early", text)
    commit_unit(ledger.folder, ledger.stage, unit, result, 1.25, "host/1")


def tables(dataset: Dataset) -> dict[str, list[dict]]:
    found = {name: read_table(dataset, name).to_pylist() for name in ("clips", "frames", "failures", "units")}
    found["frames"].sort(key=lambda row: (row["clip_id"], row["frame"]))
    return found


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(Dataset(tmp_path), "crop", "abcd1234")


def test_values_become_plain():
    assert plain({"a": np.float32(0.5), 3: (np.int64(2), math.nan, np.array([1.0, np.inf]))}) == {
        "a": 0.5,
        "3": [2, None, [1.0, None]],
    }


def test_absorbed_rows_are_sorted_and_complete(ledger):
    for unit in reversed(UNITS):
        commit(ledger, unit)
    assert ledger.staged_units() == [u["name"] for u in UNITS]
    assert ledger.absorb() == 4
    found = tables(ledger.dataset)
    assert [c["clip_id"] for c in found["clips"]] == [f"unit{k}_clip" for k in range(4)]
    assert found["clips"][0]["quality"] is None
    assert [(f["clip_id"], f["frame"]) for f in found["frames"][:3]] == [
        ("unit0_clip", 0),
        ("unit0_clip", 1),
        ("unit1_clip", 0),
    ]
    assert [f["uri"] for f in found["failures"]] == [u["uri"] for u in UNITS]
    assert {(u["stage"], u["wall_s"], u["num_frames"], u["num_rows"]) for u in found["units"]} == {
        ("crop-abcd1234", 1.25, 2, 4)
    }
    assert list(ledger.folder.glob("*.json")) == []
    assert ledger.finished_units() == {u["name"] for u in UNITS}
    assert ledger.absorb() == 0


@pytest.mark.parametrize("crash_at", range(1, 6))
def test_absorb_may_crash_anywhere_and_be_repeated(ledger, monkeypatch, crash_at):
    """After the frames, or after any of the tables: the second call ends where an undisturbed one does."""
    for unit in UNITS[:2]:
        commit(ledger, unit)
    ledger.absorb()
    for unit in UNITS[2:]:
        commit(ledger, unit)
    writes = 0

    def crashing(original):
        def write(*arguments):
            nonlocal writes
            writes += 1
            if writes == crash_at:
                raise KeyboardInterrupt
            return original(*arguments)

        return write

    monkeypatch.setattr(units, "write_parquet", crashing(units.write_parquet))
    monkeypatch.setattr(units, "replace_table", crashing(units.replace_table))
    try:
        ledger.absorb()
    except KeyboardInterrupt:
        assert ledger.finished_units() == {u["name"] for u in UNITS}, "what was committed is not done again"
    else:
        assert crash_at == 5, "there are four writes: frames, failures, clips, units"
    monkeypatch.undo()
    ledger.absorb()
    found = tables(ledger.dataset)
    assert [c["clip_id"] for c in found["clips"]] == [f"unit{k}_clip" for k in range(4)]
    assert len(found["frames"]) == 8
    assert len(found["failures"]) == 4
    assert len(found["units"]) == 4


def test_frames_come_in_files_of_bounded_size(ledger, monkeypatch):
    """Whole units in the order of their names; the same units give the same files, and no row is there twice."""
    for unit in UNITS[:2]:
        commit(ledger, unit)
    ledger.absorb()
    monkeypatch.setattr(units, "FRAMES_OF_FILE", 3)
    for unit in reversed(UNITS):
        commit(ledger, unit)
    commits = {p.name: p.read_bytes() for p in ledger.folder.glob("*.json")}
    ledger.absorb()
    files = {p.name: p.read_bytes() for p in ledger.dataset.table_files("frames")}
    rows = [
        read_parquet([p], "frames", ["clip_id"])["clip_id"].to_pylist() for p in ledger.dataset.table_files("frames")
    ]
    assert sorted(rows) == [["unit0_clip"] * 2 + ["unit1_clip"] * 2, ["unit2_clip"] * 2 + ["unit3_clip"] * 2]
    for name, data in commits.items():
        write_bytes_atomically(ledger.folder / name, data)
    ledger.absorb()
    assert {p.name: p.read_bytes() for p in ledger.dataset.table_files("frames")} == files


def test_crash_while_commits_are_removed(ledger):
    """Half of the units absorbed and removed, half absorbed and still there."""
    for unit in UNITS:
        commit(ledger, unit)
    kept = {p.name: p.read_bytes() for p in ledger.folder.glob("*.json")}
    ledger.absorb()
    for name in ("unit2.json", "unit3.json"):
        (ledger.folder / name).write_bytes(kept[name])
    before = tables(ledger.dataset)
    assert ledger.absorb() == 2
    assert tables(ledger.dataset) == before


def test_units_of_two_rounds_add_up(ledger):
    commit(ledger, UNITS[0])
    ledger.absorb()
    commit(ledger, UNITS[1])
    assert ledger.finished_units() == {"unit0", "unit1"}
    ledger.absorb()
    assert len(tables(ledger.dataset)["frames"]) == 4


def test_unit_that_is_done_again_replaces_its_rows(ledger):
    for unit in UNITS[:2]:
        commit(ledger, unit, "first")
    ledger.absorb()
    commit(ledger, UNITS[0], "second")
    ledger.absorb()
    found = tables(ledger.dataset)
    assert [f["message"] for f in found["failures"]] == ["second", "first"]
    assert (len(found["clips"]), len(found["frames"]), len(found["units"])) == (2, 4, 2)


def test_failures_of_other_stages_stay(ledger):
    scan = Ledger(ledger.dataset, "scan", "00000000")
    result = UnitResult()
    result.fail("scan", UNITS[0], "no_face", "nobody")
    commit_unit(scan.folder, "scan", UNITS[0], result, 0.0, "w")
    scan.absorb()
    commit(ledger, UNITS[0])
    ledger.absorb()
    assert [f["stage"] for f in tables(ledger.dataset)["failures"]] == ["crop", "scan"]


def test_changed_recipe_drops_the_rows_of_its_stage(ledger):
    scan = Ledger(ledger.dataset, "scan", "00000000")
    commit_unit(scan.folder, "scan", UNITS[0], UnitResult(), 0.0, "w")
    scan.absorb()
    for unit in UNITS[:2]:
        commit(ledger, unit)
    ledger.absorb()
    commit(ledger, UNITS[2])
    changed = Ledger(ledger.dataset, "crop", "ffff0000")
    assert changed.forget_other_recipes(["frames", "clips"])
    assert not ledger.folder.exists(), "staged units of the old recipe are gone"
    found = tables(ledger.dataset)
    assert (found["clips"], found["frames"], found["failures"]) == ([], [], [])
    assert [u["stage"] for u in found["units"]] == ["scan-00000000"]
    assert changed.finished_units() == set()
    assert not changed.forget_other_recipes(["frames", "clips"]), "nothing is left to forget"


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("then", ["f", "0"], ids=["the same recipe", "the old recipe"])
def test_changed_recipe_after_a_death_while_rows_are_dropped(ledger, monkeypatch, step, then):
    """Whatever is called next, a unit counts as finished only if its rows are there."""
    for unit in UNITS[:2]:
        commit(ledger, unit)
    ledger.absorb()
    commit(ledger, UNITS[2])
    changed = Ledger(ledger.dataset, "crop", "f" * 8)
    count = iter(range(100))
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        for name in ("replace_table", "remove_file", "remove_tree"):
            patch.setattr(units, name, _dies_at(step, count, getattr(units, name)))
        changed.forget_other_recipes(["frames", "clips"])
    next_one = Ledger(ledger.dataset, "crop", ledger._hash if then == "0" else "f" * 8)
    next_one.forget_other_recipes(["frames", "clips"])
    finished = next_one.finished_units()
    found = tables(ledger.dataset)
    absorbed = {name for name in finished if name not in next_one.staged_units()}
    assert {clip["unit"] for clip in found["clips"]} == absorbed
    assert len(found["frames"]) == 2 * len(found["clips"])
    assert not next_one.forget_other_recipes(["frames", "clips"])


def _dies_at(step, count, act):
    def do(*arguments):
        if next(count) == step:
            raise KeyboardInterrupt
        return act(*arguments)

    return do


def test_changed_recipe_after_a_death_while_frames_were_absorbed(ledger, monkeypatch):
    """Frames are written first; those of another recipe must not stay when the ledger does not know of them."""
    commit(ledger, UNITS[0])
    with monkeypatch.context() as patch:
        patch.setattr(units, "replace_table", _dies_at(0, iter(range(9)), units.replace_table))
        with pytest.raises(KeyboardInterrupt):
            ledger.absorb()
    assert len(tables(ledger.dataset)["frames"]) == 2
    Ledger(ledger.dataset, "crop", "f" * 8).forget_other_recipes(["frames", "clips"])
    assert tables(ledger.dataset)["frames"] == []


def test_reopened_units_lose_their_rows_in_the_ledger_and_their_failures(ledger):
    for unit in UNITS[:2]:
        commit(ledger, unit, "went wrong")
    ledger.absorb()
    (reason,) = {row["reason"] for row in tables(ledger.dataset)["failures"]}
    assert ledger.failed_units() == ledger.failed_units([reason]) == {"unit0", "unit1"}
    assert ledger.failed_units(["another"]) == set()
    ledger.reopen({"unit0"})
    assert ledger.finished_units() == {"unit1"}
    assert [row["unit"] for row in tables(ledger.dataset)["failures"]] == ["unit1"]


def test_collapse_sees_old_and_new_rows(tmp_path):
    dataset = Dataset(tmp_path)
    replace_table(dataset, "sources", make_table("sources", [{"source_id": "b", "uris": ["/1"]}]))
    ledger = Ledger(dataset, "index", "0" * 8)
    for k, source in enumerate(("b", "a")):
        result = UnitResult(rows={"sources": [{"source_id": source, "uris": [f"/new{k}"]}]})
        commit_unit(ledger.folder, "index", UNITS[k], result, 0.0, "w")

    def join(rows):
        joined = {}
        for row in rows:
            joined.setdefault(row["source_id"], {**row, "uris": []})["uris"] += row["uris"]
        return list(joined.values())

    ledger.absorb({"sources": join})
    rows = read_table(dataset, "sources", ["source_id", "uris"]).to_pylist()
    assert rows == [{"source_id": "a", "uris": ["/new1"]}, {"source_id": "b", "uris": ["/1", "/new0"]}]


def test_commit_is_one_whole_file(ledger, monkeypatch):
    commit(ledger, UNITS[0])
    assert [p.name for p in ledger.folder.iterdir()] == ["unit0.json"]
    content = json.loads((ledger.folder / "unit0.json").read_text())
    assert content["rows"]["clips"][0]["quality"] is None

    def fill_the_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(units, "write_bytes_atomically", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        commit(ledger, UNITS[1])
    assert ledger.staged_units() == ["unit0"]


def test_tracks_are_merged_where_they_belong_however_many_there_are(tmp_path: Path):
    """More than is held at a time, before, between and after the old ones, and in the place of some; the same file as
    when all are done at once."""
    names = [f"{k:016x}-0000" for k in range(0, 12_000, 4)]
    chance = random.Random(0)

    def absorbed(folder: Path, *parts: list[str]) -> Dataset:
        dataset = Dataset(folder)
        ledger = Ledger(dataset, "scan", "0" * 8)
        for part in parts:
            for name in part:
                rows = [{"track_id": f"{name[:16]}_t{k:07d}_0", "unit": name, "shot": k} for k in (0, 7)]
                commit_unit(ledger.folder, "scan", {"name": name}, UnitResult(rows={"tracks": rows}), 0.0, "w")
            assert ledger.absorb() == len(part)
        return dataset

    first = sorted(chance.sample(names, 1700))
    parts = [first, [name for name in names if name not in set(first)], names[5:9]]
    whole, divided = absorbed(tmp_path / "whole", names), absorbed(tmp_path / "divided", *parts)
    files = [dataset.table_files("tracks")[0].read_bytes() for dataset in (whole, divided)]
    assert files[0] == files[1]
    assert read_table(whole, "tracks")["track_id"].to_pylist() == sorted(
        f"{name[:16]}_t{k:07d}_0" for name in names for k in (0, 7)
    )


def test_units_whose_rows_are_out_of_order_are_sorted_all_the_same(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("curation.units._ROWS_AS_DICTS", 1)
    ledger = Ledger(Dataset(tmp_path), "scan", "0" * 8)
    for name, track in (("a", "z"), ("b", "y"), ("c", "x")):
        rows = {"tracks": [{"track_id": track, "unit": name}]}
        commit_unit(ledger.folder, "scan", {"name": name}, UnitResult(rows=rows), 0.0, "w")
    ledger.absorb()
    assert read_table(Dataset(tmp_path), "tracks")["track_id"].to_pylist() == ["x", "y", "z"]
