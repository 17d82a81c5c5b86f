"""Cropping of made videos: which source frame stands at which tick, what is measured, and what the pictures show."""

from __future__ import annotations

import io
import json
import math
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg

from curation import crop
from curation.crop import CropStage
from curation.places import hash_file
from curation.recipe import CropOptions, Recipe
from curation.samples import sample_key
from model.faces import AnalyserInfo, Detections, Landmarks
from model.framing import eye_and_mouth_centers
from model.video import open_video

SIDE = 96
TIME_BASE = 1000


class StillFace:
    """Stands in for the networks: a face that stays where it was. The decoding and cropping around it are real."""

    info = AnalyserInfo("still", "none", {}, 2, 0.4)
    presence = 1.0

    def __init__(self) -> None:
        self.num_detections = 0

    def landmarks(self, image: np.ndarray, faces: Detections) -> Landmarks:
        points = self.points if hasattr(self, "points") else np.zeros((68, 2))
        return Landmarks(points[None].astype(np.float32), np.array([self.presence], np.float32), np.zeros((1, 3)))

    def detect(self, images):
        self.num_detections += 1
        box = np.array([[*self.points.min(0), *self.points.max(0)]], np.float32)
        return [Detections(box, np.ones(1, np.float32), np.zeros((1, 5, 2), np.float32))]


def write_video(path: Path, times_ms: list[int]) -> None:
    """Lossless; frame k is grey 4 k + 8 and shown at times_ms[k]."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv444p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TIME_BASE)
        for k, time_ms in enumerate(times_ms):
            picture = np.full((SIDE, SIDE, 3), 4 * k + 8, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p")
            frame.pts, frame.time_base = time_ms, Fraction(1, TIME_BASE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def cropped(tmp_path, monkeypatch, make_face68):
    """Crops one clip of a video with frames at the given times; returns its row, its frames and its members."""

    def run(times_ms, *, frames=None, end_s=None, face=None, **options):
        path = tmp_path / "made.mkv"
        write_video(path, times_ms)
        with open_video(str(path)) as video:
            decoded = [(f.index, f.pts, f.pts_s) for f in video.frames(first_index=0)]
        assert [round(s * 1000) for _, _, s in decoded] == times_ms, "the file is what it should be"
        start, end = frames or (0, len(times_ms))
        step = (times_ms[-1] - times_ms[0]) / max(len(times_ms) - 1, 1)
        after = decoded[end] if end < len(decoded) else (end, times_ms[-1] + round(step), (times_ms[-1] + step) / 1000)
        face = face or StillFace()
        face.points = make_face68((256, 256), 220.0)
        monkeypatch.setattr(crop, "load_analyser", lambda config: face)
        candidate = {
            "clip_id": "clip", "track_id": "track", "start_frame": start, "end_frame": end,
            "start_pts": decoded[start][1], "end_pts": after[1], "start_s": decoded[start][2],
            "end_s": after[2] if end_s is None else end_s,
            "crop_center_x_px": SIDE / 2, "crop_center_y_px": SIDE / 2, "crop_size_px": SIDE * 1.0,
            "outside_fraction": 0.0, "first_landmarks": make_face68((SIDE / 2, SIDE / 2), 40.0).ravel().tolist(),
            "face_height_px": 40.0, "face_height_median_px": 40.0, "detection_score": 0.9,
            "identity_similarity": 1.0, "embedding": [1.0, 0.0],
        }  # fmt: skip
        unit = {
            "name": "unit", "uri": str(path), "places": [{"uri": str(path), "size_bytes": None, "changed": None}],
            "content_sha256": hash_file(str(path)), "source_id": "source", "kind": "video", "width_px": SIDE,
            "height_px": SIDE, "candidates": [candidate], "licence": "CC0", "attribution": "Jane", "consent": "form 7",
            "provenance": {"show": "one"},
        }  # fmt: skip
        stage = CropStage(Recipe(crop=CropOptions(**options)), tmp_path / "staged")
        result = stage.process(unit)
        (row,) = result.rows["clips"]
        with tarfile.open(fileobj=io.BytesIO((tmp_path / "staged/unit/clip.tar").read_bytes())) as archive:
            members = {m.name: archive.extractfile(m).read() for m in archive}
        assert [p.name for p in (tmp_path / "staged/unit").iterdir()] == ["clip.tar"]
        return row, result.rows["frames"], members

    return run


def expected_sources(times_ms: list[int], end_ms: float, fps: float = 25.0) -> list[int]:
    """What is on show at each tick: the last frame that has begun."""
    num_ticks = math.ceil((end_ms - times_ms[0]) / 1000 * fps - 1e-6)
    ticks = [times_ms[0] + 1000 * k / fps for k in range(num_ticks)]
    return [max(k for k, time in enumerate(times_ms) if time <= tick + 1e-3) for tick in ticks]


RATES = {
    "25 fps": [40 * k for k in range(30)],
    "30 fps": [round(1000 * k / 30) for k in range(36)],
    "16 fps": [round(62.5 * k) for k in range(24)],
    "50 fps": [20 * k for k in range(50)],
    "12.5 fps": [80 * k for k in range(12)],
    "variable": [0, 15, 40, 41, 100, 230, 240, 250, 260, 400, 440, 480, 490, 700, 735],
    "starts late": [5000 + 40 * k for k in range(20)],
}


@pytest.mark.parametrize("rate", RATES)
def test_every_tick_shows_the_frame_that_was_on_show(cropped, rate):
    times = RATES[rate]
    row, frames, members = cropped(times)
    end_ms = times[-1] + (times[-1] - times[0]) / (len(times) - 1)
    expected = expected_sources(times, end_ms)
    assert [f["source_frame"] for f in frames] == expected
    assert [f["frame"] for f in frames] == list(range(len(expected)))
    repeats = [k > 0 and expected[k] == expected[k - 1] for k in range(len(expected))]
    assert [f["is_repeat"] for f in frames] == repeats
    assert [f["time_s"] for f in frames] == pytest.approx([times[k] / 1000 for k in expected], abs=1e-4)
    assert (row["num_frames"], row["num_repeats"]) == (len(expected), sum(repeats))
    assert row["duration_s"] == pytest.approx(len(expected) / 25)
    for tick, source in enumerate(expected):  # and the pictures are those frames
        picture = simplejpeg.decode_jpeg(members[f"{sample_key('clip', tick)}.jpg"])
        assert picture.shape == (512, 512, 3)
        assert abs(float(picture[200:300, 200:300].mean()) - (4 * source + 8)) < 2, tick


def test_part_of_a_video(cropped):
    times = RATES["variable"]
    _, frames, _ = cropped(times, frames=(4, 10))
    assert [f["source_frame"] for f in frames] == [k + 4 for k in expected_sources(times[4:10], times[10])]


def test_other_rates_and_sizes(cropped):
    times = RATES["30 fps"]
    row, frames, members = cropped(times, fps=10.0, size_px=128)
    end_ms = times[-1] + times[-1] / (len(times) - 1)
    assert [f["source_frame"] for f in frames] == expected_sources(times, end_ms, fps=10.0)
    assert simplejpeg.decode_jpeg(members["clip_000000.jpg"]).shape == (128, 128, 3)
    assert row["crop_fps"] == 10.0
    assert row["upscale_factor"] == pytest.approx(128 / SIDE)


def test_video_that_ends_early_repeats_its_last_frame(cropped):
    """The scan knew of a later end (a damaged tail that another decoder lost)."""
    _, frames, _ = cropped([0, 40, 80], end_s=0.24)
    assert [(f["source_frame"], f["is_repeat"]) for f in frames] == [
        (0, False), (1, False), (2, False), (2, True), (2, True), (2, True),
    ]  # fmt: skip


def test_columns_of_the_source_reach_the_clip(cropped):
    row, _, _ = cropped(RATES["25 fps"])
    assert (row["licence"], row["attribution"], row["consent"]) == ("CC0", "Jane", "form 7")
    assert row["provenance"] == {"show": "one"}
    assert (row["clip_id"], row["source_id"], row["track_id"], row["unit"]) == ("clip", "source", "track", "unit")


def test_labels_hold_what_the_manifests_say(cropped, make_face68):
    expected = make_face68((256, 256), 220.0)
    _, frames, members = cropped(RATES["16 fps"])
    for row in frames:
        label = json.loads(members[f"{sample_key('clip', row['frame'])}.json"])
        np.testing.assert_allclose(label.pop("landmarks"), expected, atol=0.0051)
        assert label == {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def test_a_still_face_does_not_move(cropped):
    row, frames, _ = cropped(RATES["16 fps"])
    assert row["motion"] == 0.0
    assert row["landmark_jitter"] == 0.0
    assert row["exposure"] == pytest.approx(np.mean([f["exposure"] for f in frames]))
    assert frames[-1]["exposure"] > frames[0]["exposure"]


@pytest.mark.parametrize("rate", ["25 fps", "30 fps", "16 fps", "12.5 fps"])
def test_smooth_movement_is_no_jitter_at_any_rate(cropped, rate):
    """A face that moves by one distance between its eyes a second."""

    class Gliding(StillFace):
        def landmarks(self, image, faces):
            found = super().landmarks(image, faces)
            found.points68 += 2.5 * (float(image.mean()) - 8) / 4 * time_ms / 40
            return found

    times = RATES[rate]
    time_ms = times[-1] / (len(times) - 1)
    row, _, _ = cropped(times, face=Gliding(), size_px=SIDE)
    assert row["motion"] > 0.8
    assert row["landmark_jitter"] < 0.01


def test_the_face_is_looked_for_again_when_it_is_lost(cropped):
    """At once, and while it stays lost at intervals: a face that nobody finds does not cost a detection a frame."""

    class Unsure(StillFace):
        presence = 0.2

    class Silent(StillFace):
        presence = float("nan")

    class Flickering(StillFace):
        """Found at every second frame, by the detector on the others."""

        num_landmarks = 0

        def landmarks(self, image, faces):
            self.num_landmarks += 1
            self.presence = 0.2 if self.num_landmarks % 3 == 2 else 1.0
            return super().landmarks(image, faces)

    counts = []
    for face in (Unsure(), Silent(), StillFace(), Flickering()):
        cropped([40 * k for k in range(20)], face=face, redetect_every_frames=5)
        counts.append(face.num_detections)
    assert counts == [4, 4, 0, 10]


def test_the_search_goes_by_time_where_frames_repeat(cropped):
    class Silent(StillFace):
        presence = float("nan")

    silent = Silent()
    cropped([0, *(40 + 80 * k for k in range(10))], face=silent, redetect_every_frames=2)  # ticks 0, 1, 3, 5 ...
    assert silent.num_detections == 10


def test_aligned_crops_show_every_face_upright(cropped):
    """Its landmarks, its roll, and what the turned square shows beside the picture."""

    class Tilted(StillFace):
        def landmarks(self, image, faces):
            found = super().landmarks(image, faces)
            cos, sin = math.cos(0.4), math.sin(0.4)
            turned = (found.points68 - 256) @ np.array([[cos, sin], [-sin, cos]], np.float32) + 256
            return Landmarks(turned, found.presence, np.array([[3.0, 2.0, math.degrees(0.4)]]))

    for framing, roll in (("fixed", 0.4), ("aligned", 0.0)):
        row, frames, members = cropped(RATES["25 fps"], frames=(26, 30), face=Tilted(), framing=framing)
        assert frames[-1]["roll_deg"] == pytest.approx(math.degrees(roll))
        assert (frames[-1]["yaw_deg"], frames[-1]["pitch_deg"]) == (3.0, 2.0)
        key = sample_key("clip", frames[-1]["frame"])
        landmarks = np.array(json.loads(members[f"{key}.json"])["landmarks"])
        eyes, mouth = eye_and_mouth_centers(landmarks)
        assert math.atan2(eyes[0] - mouth[0], mouth[1] - eyes[1]) == pytest.approx(roll, abs=1e-3)
        picture = simplejpeg.decode_jpeg(members[f"{key}.jpg"])
        assert (picture < 62).mean() == pytest.approx(row["outside_fraction"], abs=0.01)  # of grey 124
    assert row["outside_fraction"] > 0.05
    longer = max(np.ptp(landmarks, axis=0))
    assert longer * CropOptions().scale == pytest.approx(512, abs=0.1)
    assert row["motion"] == 0.0


@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
def test_pictures_have_the_colour_resolution_that_is_asked_for(cropped, subsampling):
    _, _, members = cropped([0, 40], jpeg_subsampling=subsampling)
    assert simplejpeg.decode_jpeg_header(members[f"{sample_key('clip', 1)}.jpg"])[3] == subsampling
