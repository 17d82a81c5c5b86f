"""What was forgotten stays out, also where a worker that outlived its driver commits it afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation import pipeline, units
from curation.forget import Request, forget
from curation.recipe import Recipe, SelectOptions
from curation.tombstones import (
    LateRows,
    Refusals,
    add_tombstones,
    clip_tombstone,
    face_tombstone,
    forgets,
    same_stretch,
    source_tombstone,
    strip_tracks,
)
from curation.units import Ledger, UnitResult, commit_unit
from curation.verify import verify
from manifests.store import Dataset, read_table

PLACE = {"start_s": 0.0, "end_s": 2.0, "crop_center_x_px": 50.0, "crop_center_y_px": 50.0, "crop_size_px": 80.0}


@pytest.fixture
def crop(tmp_path) -> Ledger:
    return Ledger(Dataset(tmp_path / "dataset"), "crop", "abcd1234")


def commit(ledger: Ledger, source_id: str, *clips: dict) -> list[Path]:
    """A unit of crop with a frame, a failure and pictures of each clip; returns the pictures."""
    unit = {"name": f"{source_id}-0000", "source_id": source_id, "uri": f"/v/{source_id}.mp4"}
    rows = [{"source_id": source_id, "unit": unit["name"], "analyser": "a", "embedding": None} | clip for clip in clips]
    result = UnitResult(rows={"clips": rows, "frames": [{"clip_id": c["clip_id"], "frame": 0} for c in clips]})
    pictures = [ledger.folder / unit["name"] / f"{clip['clip_id']}.tar" for clip in clips]
    pictures[0].parent.mkdir(parents=True)
    for clip, path in zip(clips, pictures, strict=True):
        path.write_bytes(b"pictures")
        result.fail("crop", unit, "no_frames", f"clip {clip['clip_id']}: damaged")
    commit_unit(ledger.folder, "crop", unit, result, 1.0, "host/1")
    return pictures


def test_commits_that_come_late_bring_nothing_forgotten_back(crop):
    """Of one source nothing is left, of another one a clip, and the same stretch under another name."""
    forgotten = {"clip_id": "s1_0000000_0", "source_id": "s1"} | PLACE
    stones = [source_tombstone({"source_id": "s0", "content_sha256": "00"}), clip_tombstone(forgotten, "11")]
    add_tombstones(crop.dataset, [row | {"request": "r"} for row in stones])
    gone = commit(crop, "s0", {"clip_id": "s0_0000000_0"} | PLACE)
    elsewhere = {"clip_id": "s1_0000000_1"} | PLACE | {"crop_center_x_px": 500.0}
    recut = {"clip_id": "s1_0000009_0"} | PLACE | {"start_s": 1.0, "end_s": 3.0}
    one, stays, other = commit(crop, "s1", forgotten, elsewhere, recut)
    commit(crop, "s2", {"clip_id": "s2_0000000_0"} | PLACE)
    crop.absorb()
    found = {name: read_table(crop.dataset, name).to_pylist() for name in ("clips", "frames", "failures", "units")}
    left = ["s1_0000000_1", "s2_0000000_0"]
    assert [row["clip_id"] for row in found["clips"]] == left
    assert [row["clip_id"] for row in found["frames"]] == left
    assert [row["message"] for row in found["failures"]] == [f"clip {clip_id}: damaged" for clip_id in left]
    assert [row["unit"] for row in found["units"]] == ["s1-0000", "s2-0000"]
    assert [path.exists() for path in (*gone, one, other, stays)] == [False, False, False, True]
    assert crop.staged_units() == []


def test_candidates_of_a_late_scan_are_refused(tmp_path):
    scan = Ledger(Dataset(tmp_path), "scan", "abcd1234")
    candidates = [
        {"clip_id": f"s0_{k:07d}_0", "embedding": None} | PLACE | {"start_s": k, "end_s": k + 2} for k in (0, 2)
    ]
    add_tombstones(scan.dataset, [clip_tombstone(candidates[0] | {"source_id": "s0"}, "00") | {"request": "r"}])
    track = {"track_id": "s0_t0000000_0", "unit": "s0-0000", "analyser": "a", "num_clips": 2, "reasons": []}
    rows = {"tracks": [track | {"candidates": candidates}]}
    commit_unit(scan.folder, "scan", {"name": "s0-0000", "source_id": "s0"}, UnitResult(rows=rows), 1.0, "w")
    scan.absorb()
    (row,) = read_table(scan.dataset, "tracks").to_pylist()
    assert [c["clip_id"] for c in row["candidates"]] == ["s0_0000002_0"]
    assert (row["num_clips"], row["reasons"]) == (1, ["forgotten"])


def test_a_face_that_is_refused_is_refused_by_its_own_analyser_everywhere():
    stone = face_tombstone(np.array([1.0, 0.0], np.float32), "a", 0.5)
    near, far = ({"clip_id": "s7_0_0", "embedding": [value, 0.8]} | PLACE for value in (0.5, 0.49))
    assert Refusals([stone]).refuses(near, "a")
    assert not Refusals([stone]).refuses(far, "a")
    assert not Refusals([stone]).refuses(near, "b")
    rows = {"clips": [near | {"analyser": "a"}]}
    stone |= dict.fromkeys(("source_id", "clip_id", *PLACE))
    assert LateRows([stone]).take_out(rows, "s7") == {"s7_0_0"}
    assert rows == {"clips": []}


def test_names_that_are_forgotten():
    clip = {"clip_id": "s1_0000000_0", "source_id": "s1"} | PLACE
    is_gone = forgets([clip_tombstone(clip, "11"), source_tombstone({"source_id": "s0", "content_sha256": "00"})])
    assert [name for name in ("s0_0000000_0", "s1_0000000_0", "s1_0000000_1", "s2_0000000_0") if is_gone(name)] == [
        *("s0_0000000_0", "s1_0000000_0")
    ]


def test_stretches_of_stills_and_of_squares_of_other_sizes():
    still = PLACE | {"end_s": 0.0}
    assert same_stretch(still, still)
    large = PLACE | {"crop_size_px": 200.0, "crop_center_y_px": 130.0}  # 80 away: 0.4 of the larger side
    assert same_stretch(PLACE, large)
    assert not same_stretch(PLACE, PLACE | {"crop_center_y_px": 130.0})


def test_a_track_of_which_nothing_is_left_goes():
    tracks = [{"candidates": [{"clip_id": "a"}], "reasons": []}, {"candidates": [], "reasons": ["too_short"]}]
    assert strip_tracks(tracks, lambda candidate: True, lambda track: False) == tracks[1:]


class _Killed(BaseException):
    pass


def test_a_worker_that_outlives_its_driver_and_forget(sources, tmp_path, monkeypatch):
    dataset, recipe = Dataset(tmp_path / "dataset"), Recipe(select=SelectOptions(min_sharpness=None, max_upscale=None))
    late: dict[Path, bytes] = {}

    def killed(ledger: Ledger, collapse=None) -> int:
        if ledger.stage != "crop":
            return absorb(ledger, collapse)
        commit = next(iter(sorted(ledger.folder.glob("*.json"))))
        for path in (*ledger.folder.glob(f"{commit.stem}/*.tar"), commit):
            late[path] = path.read_bytes()
            path.unlink()
        raise _Killed

    absorb = units.Ledger.absorb
    with monkeypatch.context() as patch:
        patch.setattr(units.Ledger, "absorb", killed)
        with pytest.raises(_Killed):
            pipeline.run(sources, dataset.root, recipe)
    source_id = list(late)[-1].stem.rsplit("-", 1)[0]
    assert forget(dataset, Request(sources=(source_id,)))
    for path, data in late.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    pipeline.run(sources, dataset.root, recipe)
    clips = read_table(dataset, "clips").to_pylist()
    assert len(clips) == 4
    assert source_id not in {row["source_id"] for row in clips}
    assert list(verify(dataset)) == []
