"""The whole command on real videos, stills and malformed files, against what a person saw in them (index.csv)."""

from __future__ import annotations

import csv
import os
import re
import shutil
import tarfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import simplejpeg
import webdataset

from manifests.store import Dataset, read_table
from model.faces import FacesConfig, load_analyser
from model.framing import FixedCrop

STYLISED = {"v11", "v12", "v20"}
NEVER_KEPT = {"v16": "1 s long", "v18": "nobody", "v24": "an animal", "v15": "too small", "v17": "too small"}
CUTS = {"v07": (20, 82, 211), "v08": (72, 73), "v14": (60, 140), "v15": (70, 170, 301, 421, 484)}


def _short(uri: str) -> str:
    return Path(uri).name.split("_")[0]


class MediaRun:
    """The data set made of all shared media, with its rows by file."""

    def __init__(self, folder: Path, arguments: list[str], media: Path) -> None:
        self.folder, self.arguments, self.media = folder, arguments, media
        self.dataset = Dataset(folder)
        with open(media / "index.csv", newline="") as file:
            self.index = {_short(row["path"]): row for row in csv.DictReader(file)}
        self.sources = {_short(row["uris"][0]): row for row in self.rows("sources")}
        self.name = {row["source_id"]: short for short, row in self.sources.items()}
        self.clips = self.rows("clips")
        self.kept = [clip for clip in self.clips if clip["decision"] == "keep"]
        self.shards = sorted(self.dataset.shards.iterdir())

    def rows(self, table: str) -> list[dict]:
        return read_table(self.dataset, table).to_pylist()

    def picture(self, clip: dict, frame: int) -> np.ndarray:
        """uint8 [512, 512, 3] of a packed frame, by its byte offset."""
        with open(self.dataset.shards / clip["shard"], "rb") as file:
            data = os.pread(file.fileno(), clip["frame_sizes"][frame], clip["frame_offsets"][frame])
        return simplejpeg.decode_jpeg(data)


@pytest.fixture(scope="module")
def run(media: Path, curate, tmp_path_factory: pytest.TempPathFactory) -> MediaRun:
    folder = tmp_path_factory.mktemp("media") / "dataset"
    inputs = [str(media / kind) for kind in ("videos", "malformed", "images")]
    arguments = ["run", *inputs, "--output", str(folder), "--workers", "2"]
    curate(*arguments, timeout_s=1200)  # minutes of video, on whatever machine
    return MediaRun(folder, arguments, media)


def test_every_usable_video_has_a_kept_clip(run):
    usable = {
        n for n, row in run.index.items() if row["type"] == "video" and row["has_usable_single_face_clip"] == "yes"
    }
    assert len(usable) == 13  # of the index; m08 among them
    kept = {run.name[clip["source_id"]] for clip in run.kept}
    assert usable - kept == set()
    for clip in run.kept:
        assert clip["kind"] == "still" or clip["duration_s"] >= 1.5


def test_of_the_other_videos_only_stylised_ones_and_one_more_are_kept(run):
    unusable = {
        n for n, row in run.index.items() if row["type"] == "video" and row["has_usable_single_face_clip"] == "no"
    }
    kept = {run.name[clip["source_id"]] for clip in run.kept if clip["kind"] == "video"}
    assert len((kept & unusable) - STYLISED) <= 1, kept & unusable
    assert kept & set(NEVER_KEPT) == set()


def test_faceless_stills_and_those_too_small_are_not_kept(run):
    kept = {run.name[clip["source_id"]] for clip in run.kept if clip["kind"] == "still"}
    assert kept & {"i31", "i09", "i14", "i20", "i29", "i19", "i22"} == set()
    usable = {
        n for n, row in run.index.items() if row["type"] == "image" and row["has_usable_single_face_clip"] == "yes"
    }
    assert usable <= kept


def test_no_clip_spans_a_cut(run):
    seen = set()
    for clip in run.clips:
        name = run.name[clip["source_id"]]
        for cut in CUTS.get(name, ()):
            assert not clip["start_frame"] < cut < clip["end_frame"], f"{name}: {clip['clip_id']} spans cut {cut}"
            seen.add(name)
    assert {"v07", "v08", "v14", "v15"} <= seen, "these videos have candidate clips at all"


def test_kept_clips_show_one_face(run):
    """Faces are looked for again, on the packed pictures."""
    detector = load_analyser(FacesConfig())
    for clip in run.kept:
        if clip["kind"] == "still":
            continue
        for frame in np.unique(np.linspace(0, clip["num_frames"] - 1, 8).astype(int)):
            boxes = detector.detect([run.picture(clip, frame)])[0].boxes
            heights = np.sort(boxes[:, 3] - boxes[:, 1])[::-1]
            place = f"{run.name[clip['source_id']]} frame {frame} of {clip['clip_id']}: faces {heights.round()} px high"
            assert len(heights) >= 1, place
            assert (heights[1:] < heights[0] / 4).all(), place


def test_no_two_people_are_one_identity(run):
    """Four stills and a video show the same man; all other files and all faces of one picture different people."""
    files: dict[str, set[str]] = {}
    for clip in run.clips:
        files.setdefault(clip["identity_id"], set()).add(run.name[clip["source_id"]])
    assert [sorted(names) for names in files.values() if len(names) > 1] == [["i11", "i12", "i13", "i14", "m08"]]
    for name in ("i10", "i11", "i23", "i29"):
        in_picture = [clip["identity_id"] for clip in run.clips if run.name[clip["source_id"]] == name]
        assert len(set(in_picture)) == len(in_picture) > 1, name


def test_no_clip_is_taken_for_a_copy(run):
    """Every file shows footage of its own; v22 shows one man in one shot in two clips."""
    assert [clip["clip_id"] for clip in run.clips if clip["duplicate_of"] is not None] == []
    assert all(len(clip["face_hashes"]) >= 2 for clip in run.clips)


def test_weights_are_one_on_average(run):
    for split in {clip["split"] for clip in run.kept}:
        weights = [clip["weight"] for clip in run.kept if clip["split"] == split]
        assert abs(np.mean(weights) - 1) < 1e-9
        assert 0.25 <= min(weights) <= max(weights) <= 4


def test_pixels_are_square(run):
    """The packed picture of v02 (SAR 15:16) is the displayed one's, decoded here without the project's reader."""
    source = run.sources["v02"]
    assert (source["coded_width_px"], source["coded_height_px"]) == (512, 480)
    assert (source["width_px"], source["height_px"]) == (480, 480)
    wide = run.sources["v15"]
    assert (wide["coded_width_px"], wide["width_px"], wide["height_px"]) == (704, 1024, 576)

    clip = next(c for c in run.kept if c["source_id"] == source["source_id"])
    row = next(f for f in run.rows("frames") if f["clip_id"] == clip["clip_id"] and f["frame"] == 100)
    with av.open(source["uris"][0]) as container:
        frame = next(f for k, f in enumerate(container.decode(video=0)) if k == row["source_frame"])
        coded = frame.to_ndarray(format="rgb24")
    assert frame.pts == row["pts"]
    crop = FixedCrop(
        center_x_px=clip["crop_center_x_px"], center_y_px=clip["crop_center_y_px"], size_px=clip["crop_size_px"]
    )
    packed = run.picture(clip, 100).astype(np.float32)
    errors = {}
    for width in (480, 512):
        displayed = cv2.resize(coded, (width, 480), interpolation=cv2.INTER_AREA)
        cut = cv2.warpAffine(displayed, crop.matrix[:2], (512, 512), flags=cv2.INTER_LINEAR)
        errors[width] = float(np.abs(cut.astype(np.float32) - packed).mean())
    assert errors[480] < 2, errors
    assert errors[512] > 10, "the difference would be seen"


def test_every_malformed_file_is_accounted_for(run):
    expected = {"m01": "no_video_stream", "m02": "no_video_stream", "m03": "no_frames", "m04": "encrypted"}
    for name, reason in (expected | {"m07": "empty_file"}).items():
        source = run.sources[name]
        assert (source["status"], source["reason"]) == ("rejected", reason)
        assert len(source["detail"].split()) >= 4, "the reason in plain words"
    failures = {_short(row["uri"]): row for row in run.rows("failures")}
    assert run.sources["m05"]["status"] == "ok", "bytes in the metadata that are no UTF-8 do not matter"
    assert failures["m05"]["reason"] == "no_face"
    assert failures["m06"]["reason"] == "stopped_early"
    assert "28 frames" in failures["m06"]["message"]
    assert run.sources["m08"]["status"] == "ok"
    assert {(c["start_frame"], c["end_frame"]) for c in run.clips if run.name[c["source_id"]] == "m08"} == {(0, 55)}


def test_nothing_is_silently_dropped(run):
    files = {p.name for kind in ("videos", "malformed", "images") for p in (run.media / kind).iterdir()}
    assert {Path(uri).name for row in run.sources.values() for uri in row["uris"]} == files
    tracks, failed = run.rows("tracks"), {row["source_id"] for row in run.rows("failures")}
    explained = {t["source_id"] for t in tracks if t["num_clips"] or t["reasons"]} | failed
    for name, source in run.sources.items():
        if source["status"] == "ok":
            assert source["source_id"] in explained, f"{name}: no track, no clip, no failure"
        else:
            assert source["reason"] and source["detail"], name  # noqa: PT018
    assert all(t["num_clips"] or t["reasons"] for t in tracks)
    named = {c["clip_id"] for t in tracks for c in t["candidates"]}
    assert {c["clip_id"] for c in run.clips} == named
    for clip in run.clips:
        assert (clip["decision"] == "keep") == (not clip["failed_rules"])
        assert (clip["decision"] == "keep") == (clip["shard"] is not None)


def test_webdataset_reads_every_sample(run):
    """A pipeline that knows nothing of this project."""
    num_samples = 0
    for shard in run.shards:
        pipeline = webdataset.WebDataset(str(shard), shardshuffle=False).decode("rgb").to_tuple("jpg", "json")
        for picture, label in pipeline:
            num_samples += 1
            assert picture.shape == (512, 512, 3)
            points = np.array(label["landmarks"])
            assert points.shape == (68, 2)
            assert (points > -16).all(), label["clip_id"]
            assert (points < 528).all(), label["clip_id"]
            assert (points[17:] >= 0).all(), "brows, nose, eyes and mouth are in the picture"
            assert (points[17:] < 512).all()
    assert num_samples == sum(clip["num_frames"] for clip in run.kept)
    assert num_samples == sum(row["num_samples"] for row in run.rows("shards"))
    assert num_samples == sum(len(clip["frame_offsets"]) for clip in run.kept)


def test_offsets_point_at_the_members(run):
    members = {}
    for shard in run.shards:
        with tarfile.open(shard) as archive:
            members |= {member.name: (shard.name, member.offset_data, member.size) for member in archive}
    for clip in run.kept:
        for frame in range(clip["num_frames"]):
            key = f"{clip['clip_id']}_{frame:06d}"
            jpeg = (clip["shard"], clip["frame_offsets"][frame], clip["frame_sizes"][frame])
            label = (clip["shard"], clip["label_offsets"][frame], clip["label_sizes"][frame])
            assert members.pop(f"{key}.jpg") == jpeg
            assert members.pop(f"{key}.json") == label
    assert members == {}, "nothing else is in the shards"
    for clip in run.kept:  # and what stands there is a picture
        assert run.picture(clip, clip["num_frames"] - 1).shape == (512, 512, 3)


def test_select_reads_no_video(run, tmp_path, monkeypatch):
    from curation.__main__ import main

    copy = tmp_path / "dataset"
    shutil.copytree(run.folder, copy, copy_function=os.link)

    def forbidden(*_, **__):
        raise AssertionError("select opened a source")

    readers = ("curation.index.local_copy", "curation.scan.opened_source", "curation.crop.opened_source")
    for place in ("model.video.open_video", "curation.scan.open_video", "curation.crop.open_video", *readers):
        monkeypatch.setattr(place, forbidden)
    assert main(["select", "--output", str(copy), "--select.max-yaw-deg", "12"]) == 0
    after = read_table(Dataset(copy), "clips").to_pylist()
    decided = ("decision", "failed_rules", "split", "split_group", "identity_id", "weight")
    measured = [{k: v for k, v in clip.items() if k not in decided} for clip in after]
    before = {clip["clip_id"]: clip for clip in run.clips}
    assert measured == [{k: v for k, v in before[c["clip_id"]].items() if k not in decided} for c in after]
    lost = {c["clip_id"] for c in run.kept} - {c["clip_id"] for c in after if c["decision"] == "keep"}
    assert lost == {c["clip_id"] for c in run.kept if c["yaw_abs_p95_deg"] > 12}
    assert len(lost) > 3
    assert all(c["failed_rules"] == ["yaw"] for c in after if c["clip_id"] in lost)


def test_the_same_command_again_does_nothing(run, curate):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in run.shards}
    clips, frames = run.rows("clips"), run.rows("frames")
    done = curate(*run.arguments)
    assert "nothing to do" in done.stdout
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in run.shards} == before
    assert (run.rows("clips"), run.rows("frames")) == (clips, frames)


def test_only_results_are_left(run):
    files = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}
    wanted = re.compile(
        r"recipe\.toml|metrics\.jsonl|shards/(train|val|test)-\d{6}\.tar"
        r"|manifests/(sources|tracks|clips|frames|shards|failures|units|runs)/[\w-]+\.parquet"
    )
    assert [f for f in sorted(files) if not wanted.fullmatch(f)] == []
    assert {"recipe.toml", "metrics.jsonl"} < files
    assert not (run.folder / "staging").exists()
