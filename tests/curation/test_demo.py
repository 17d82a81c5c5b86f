"""`python -m curation demo` needs no input and no shared media; what it makes is a whole data set."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import simplejpeg
import webdataset

from curation import demo, pipeline
from curation.__main__ import main
from curation.recipe import Recipe
from manifests.store import Dataset, read_table
from model.faces import FacesConfig, load_analyser


def by_name(rows_of, folder: Path) -> dict[str, dict]:
    """Clips by the name of their video."""
    names = {row["source_id"]: Path(row["uris"][0]).stem for row in rows_of(folder, "sources")}
    clips = rows_of(folder, "clips")
    assert len(clips) == 5
    return {names[clip["source_id"]]: clip for clip in clips}


def test_says_where_to_look(demo_run):
    folder, text = demo_run
    assert "3 kept of 5 candidates" in text
    assert "broken.mp4" in text
    (page,) = (line.removeprefix("look at it: ") for line in text.splitlines() if line.startswith("look at it: "))
    assert Path(page) == folder / "report" / "index.html"
    strips = list((folder / "report" / "strips").iterdir())
    assert len(strips) == 5
    assert all(cv2.imread(str(strip)) is not None for strip in strips)
    assert f"python -m manifests {folder}" in text


def test_decisions(demo_dataset, rows_of):
    clips = by_name(rows_of, demo_dataset)
    assert {name: clip["failed_rules"] for name, clip in clips.items()} == {
        "sway": [], "zoom": [], "cut": [], "blurred": ["blurred", "duplicate"], "far_away": ["face_too_small"],
    }  # fmt: skip
    assert clips["blurred"]["duplicate_of"] == clips["sway"]["clip_id"]
    assert (clips["cut"]["start_frame"], clips["cut"]["end_frame"]) == (0, 55), "exact to the frame"
    assert (clips["sway"]["start_frame"], clips["sway"]["end_frame"]) == (0, 75)
    kept = [clips[name] for name in ("sway", "zoom", "cut")]
    assert len({clip["identity_id"] for clip in kept}) == 1, "one person"
    assert len({clip["split"] for clip in kept}) == 1
    (broken,) = (row for row in rows_of(demo_dataset, "sources") if row["status"] != "ok")
    assert Path(broken["uris"][0]).name == "broken.mp4"
    assert broken["reason"]


def test_measures_follow_what_the_camera_did(demo_dataset, rows_of):
    """The camera turns by +-4 degrees twice in a hundred frames; the photograph's face smiles and looks ahead."""
    clips = by_name(rows_of, demo_dataset)
    frames = [f for f in rows_of(demo_dataset, "frames") if f["clip_id"] == clips["sway"]["clip_id"]]
    frames.sort(key=lambda f: f["frame"])
    turned = np.array([f["roll_deg"] for f in frames])
    expected = -4 * np.sin(2 * np.pi * np.arange(75) / 50)  # OpenCV turns counter-clockwise, roll + is clockwise
    assert np.abs(turned - turned.mean() - expected + expected.mean()).max() < 2
    assert abs(clips["sway"]["yaw_deg"]) < 20
    assert clips["blurred"]["sharpness"] < clips["sway"]["sharpness"] / 1.5
    assert clips["far_away"]["face_height_median_px"] < clips["sway"]["face_height_median_px"] / 1.8
    heights = [f["face_height_px"] for f in rows_of(demo_dataset, "frames") if f["clip_id"] == clips["zoom"]["clip_id"]]
    assert 1.15 < max(heights) / min(heights) < 1.4
    assert clips["sway"]["landmark_jitter"] < 0.03


def test_webdataset_and_offsets(demo_dataset, rows_of):
    kept = {clip["clip_id"]: clip for clip in rows_of(demo_dataset, "clips") if clip["decision"] == "keep"}
    (shard,) = (demo_dataset / "shards").iterdir()
    pipeline = webdataset.WebDataset(str(shard), shardshuffle=False).decode("rgb").to_tuple("__key__", "jpg", "json")
    num_samples = 0
    for key, picture, label in pipeline:
        clip = kept[label["clip_id"]]
        assert key == f"{clip['clip_id']}_{label['frame']:06d}"
        assert picture.shape == (512, 512, 3)
        assert (label["identity"], label["split"]) == (clip["identity_id"], clip["split"])
        points = np.array(label["landmarks"])
        assert points.shape == (68, 2)
        assert points.min() > 0
        assert points.max() < 512
        num_samples += 1
    assert num_samples == sum(clip["num_frames"] for clip in kept.values()) == 190
    with tarfile.open(shard) as archive, open(shard, "rb") as file:
        for clip in kept.values():
            for frame in range(clip["num_frames"]):
                key = f"{clip['clip_id']}_{frame:06d}"
                file.seek(clip["frame_offsets"][frame])
                jpeg = file.read(clip["frame_sizes"][frame])
                assert jpeg == archive.extractfile(f"{key}.jpg").read()
                file.seek(clip["label_offsets"][frame])
                label = file.read(clip["label_sizes"][frame])
                assert label == archive.extractfile(f"{key}.json").read()
                assert json.loads(label)["frame"] == frame
    assert simplejpeg.decode_jpeg(jpeg).shape == (512, 512, 3)


def test_landmarks_lie_on_the_face_of_the_source(demo_dataset, rows_of):
    """Brought back to the source's pixels, the packed eyes are where a detector finds them on the source's frame."""
    clip = by_name(rows_of, demo_dataset)["sway"]
    video = demo_dataset.parent / f"{demo_dataset.name}_videos" / "sway.mp4"
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    detector = load_analyser(FacesConfig())
    for frame in (0, 12, 37, 74):
        with open(demo_dataset / "shards" / clip["shard"], "rb") as file:
            file.seek(clip["label_offsets"][frame])
            label = json.loads(file.read(clip["label_sizes"][frame]))
        assert label["source_frame"] == frame
        corner = np.array([clip["crop_center_x_px"], clip["crop_center_y_px"]]) - clip["crop_size_px"] / 2
        points = corner + np.array(label["landmarks"]) * clip["crop_size_px"] / 512
        found = detector.detect([np.ascontiguousarray(frames[frame])])[0]
        eyes = np.stack([points[36:42].mean(0), points[42:48].mean(0)])
        np.testing.assert_allclose(eyes, found.points[0, :2], atol=12)  # 88 px apart
        assert clip["face_height_median_px"] == pytest.approx(found.boxes[0, 3] - found.boxes[0, 1], rel=0.1)


def test_tables_agree(demo_dataset):
    dataset = Dataset(demo_dataset)
    clips, frames = read_table(dataset, "clips").to_pylist(), read_table(dataset, "frames").to_pylist()
    by_clip: dict[str, list[int]] = {}
    for frame in frames:
        by_clip.setdefault(frame["clip_id"], []).append(frame["frame"])
    assert {c["clip_id"]: list(range(c["num_frames"])) for c in clips} == {k: sorted(v) for k, v in by_clip.items()}
    (shard,) = read_table(dataset, "shards").to_pylist()
    assert shard["num_clips"] == 3
    assert shard["size_bytes"] == (dataset.shards / shard["shard"]).stat().st_size


def test_is_not_mixed_into_what_is_there(sources, tmp_path, monkeypatch, capsys):
    """And leaves no videos behind; its own data set it takes again."""
    made = []
    monkeypatch.setattr(demo, "make_videos", lambda to: made.append(shutil.copytree(*sources, to, dirs_exist_ok=True)))
    monkeypatch.setattr(demo, "build", lambda dataset: "page")
    mine, folder, own = tmp_path / "mine", tmp_path / "folder", tmp_path / "own"
    pipeline.run(sources, mine, Recipe())
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    for output, said in ((mine, f"is a data set of other sources ({sources[0]})"), (folder, "is no data set")):
        assert main(["demo", "--output", str(output)]) == 2
        assert said in capsys.readouterr().err
        assert made == []
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before
    for _ in range(2):
        assert main(["demo", "--output", str(own)]) == 0
    assert made == [tmp_path / "own_videos"] * 2
    assert len(read_table(Dataset(own), "sources")) == 6
