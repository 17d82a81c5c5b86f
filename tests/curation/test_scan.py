"""Scanning of made videos with a stand-in for the networks: shots, tracks and the frame ranges of candidates."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data

from curation import scan
from curation.index import IndexStage, list_inputs
from curation.recipe import IndexOptions, Recipe, ScanOptions
from curation.scan import ScanStage
from model.faces import AnalyserInfo, Detections, Landmarks, WeightInfo
from model.video import VideoWriter
from tests.broken_packets import break_packets

SIZE = (320, 240)


class MarkedFaces:
    """Stands in for the networks: a face is a pure green disc, its person the brightness of the disc's red part."""

    info = AnalyserInfo("marked", "none", {"detector": WeightInfo("d.onnx", "00", "none")}, 2, 0.4)
    make_face68 = None
    presence = 1.0

    def detect(self, images):
        return [self._find(image) for image in images]

    def _find(self, image: np.ndarray) -> Detections:
        mask = (image[..., 1].astype(int) - image[..., 2] > 120).astype(np.uint8)
        num, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        boxes = [(x, y, x + w, y + h) for x, y, w, h, area in stats[1:num] if area > 150]
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        scores = np.full(len(boxes), 0.9, np.float32)
        return Detections(boxes, scores, np.zeros((len(boxes), 5, 2), np.float32))

    def landmarks(self, image, faces):
        centers = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
        heights = faces.boxes[:, 3] - faces.boxes[:, 1]
        points = [self.make_face68(tuple(c), float(h)) for c, h in zip(centers, heights, strict=True)]
        count = len(faces)
        return Landmarks(
            np.array(points, np.float32).reshape(-1, 68, 2),
            np.full(count, self.presence, np.float32),
            np.tile(np.array([5.0, -3.0, 1.0], np.float32), (count, 1)),
        )

    def embed(self, image, points):
        x, y = np.clip(np.asarray(points).reshape(-1, 2).mean(0).astype(int), 0, (SIZE[0] - 1, SIZE[1] - 1))
        angle = float(image[y, x, 0]) / 255 * np.pi / 2
        return np.array([[np.cos(angle), np.sin(angle)]], np.float32)


SCENES = {
    "coffee": cv2.resize(skimage.data.coffee(), SIZE),
    "rocket": cv2.resize(skimage.data.rocket(), SIZE),
}


def picture(scene: str, faces=(), k: int = 0) -> np.ndarray:
    """A scene without green, with discs (x, y, height, red) in it, a little different on every frame."""
    made = np.roll(SCENES[scene], k % 3, axis=1).copy()
    made[..., 1] = np.minimum(made[..., 1], made[..., 2])
    for x, y, height, red in faces:
        cv2.circle(made, (round(x), round(y)), round(height / 2), (red, 255, 0), -1)
    return made


def write_stream(frames: list[np.ndarray], fps: int, times: list[int] | None = None, container="mpegts") -> bytes:
    """An MPEG transport stream. times: when each frame is shown, in frames; one after the other where not given."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=fps, options={"g": "25"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = times[k] if times else k, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture
def scanned(tmp_path, monkeypatch, make_face68):
    """Scans a video made of frames; returns the rows of its tracks and its failures.

    embed: instead of the analyser's.

    joined_at: the frames from there on are a stream of their own behind the first one.
    gap: (position, number of frames) of frames missing in between.
    broken_at: a packet that cannot be decoded.
    """

    def run(
        frames: list[np.ndarray],
        *,
        fps=25,
        presence=1.0,
        max_span_s=300.0,
        joined_at: int | None = None,
        gap: tuple[int, int] | None = None,
        broken_at: int | None = None,
        embed=None,
        **options,
    ):
        analyser = MarkedFaces()
        analyser.embed = embed or analyser.embed
        analyser.make_face68, analyser.presence = make_face68, presence
        monkeypatch.setattr(scan, "load_analyser", lambda config: analyser)
        path = tmp_path / ("made.mp4" if joined_at is None else "made.ts")
        if gap is not None:
            times = [k if k < gap[0] else k + gap[1] for k in range(len(frames))]
            path.write_bytes(write_stream(frames, fps, times, "mp4"))
        elif joined_at is None:
            with VideoWriter(path, fps) as writer:
                for frame in frames:
                    writer.write(frame)
        else:
            path.write_bytes(b"".join(write_stream(part, fps) for part in (frames[:joined_at], frames[joined_at:])))
        if broken_at is not None:
            break_packets(path, broken_at)
        recipe = Recipe(scan=ScanOptions(**options), index=IndexOptions(max_span_s=max_span_s))
        (listed,) = list_inputs([str(path)], recipe.index)
        source = IndexStage(recipe, Path()).process(listed).rows["sources"][0]
        tracks, failures, num_frames = [], [], 0
        for number, span in enumerate(source["spans"]):
            unit = {"name": f"source-{number:04d}", "uri": str(path), "source_id": "source", "span": span}
            unit |= {k: source[k] for k in ("content_sha256", "places", "kind", "fps", "width_px", "height_px")}
            result = ScanStage(recipe, Path()).process(unit)
            tracks += result.rows["tracks"]
            failures += result.rows.get("failures", [])
            num_frames += result.num_frames
        if broken_at is None:
            assert num_frames == (joined_at or len(frames)), "each frame belongs to one span"
        return tracks, failures

    return run


def ranges(tracks) -> list[tuple[int, int]]:
    return sorted((c["start_frame"], c["end_frame"]) for track in tracks for c in track["candidates"])


def test_one_face_is_one_candidate_over_the_whole_shot(scanned):
    tracks, failures = scanned([picture("coffee", [(160, 120, 60, 90)], k) for k in range(60)])
    assert failures == []
    assert ranges(tracks) == [(0, 60)]
    (track,) = tracks
    candidate = track["candidates"][0]
    assert (track["num_clips"], track["reasons"], track["num_samples"]) == (1, [], 12)
    assert track["track_id"] == "source_t0000000_0"
    assert candidate["clip_id"] == "source_0000000_0"
    assert (candidate["start_s"], candidate["end_s"]) == (0.0, pytest.approx(60 / 25))
    assert candidate["face_height_median_px"] == pytest.approx(60, abs=3)
    assert abs(candidate["crop_center_x_px"] - 160) < 5
    assert np.reshape(candidate["first_landmarks"], (68, 2)).mean(0) == pytest.approx([160, 120], abs=8)
    assert (track["yaw_deg"], track["pitch_deg"]) == (5.0, -3.0)
    assert track["analyser_weights"] == {"detector": "d.onnx sha256:00"}


def test_cut_divides_exactly(scanned):
    face = [(160, 120, 60, 90)]
    frames = [picture("coffee", face, k) for k in range(53)] + [picture("rocket", face, k) for k in range(47)]
    tracks, _ = scanned(frames)
    assert ranges(tracks) == [(0, 53), (53, 100)]
    assert [(t["shot"], t["shot_start_frame"], t["shot_end_frame"]) for t in tracks] == [(0, 0, 53), (1, 53, 100)]


def test_face_that_comes_and_goes(scanned):
    """It begins with its first sample when others saw nothing before."""
    frames = [picture("coffee", [(160, 120, 60, 90)] if 30 <= k < 90 else [], k) for k in range(120)]
    tracks, _ = scanned(frames)
    assert ranges(tracks) == [(30, 86)], "sampled on 30, 35, ... 85"


def test_person_who_is_replaced(scanned):
    """The same place, no cut: the identity says so. No clip shows both."""
    frames = [picture("coffee", [(160, 120, 60, 0 if k < 50 else 250)], k) for k in range(100)]
    tracks, _ = scanned(frames, embed_every_s=0.2)
    assert len(tracks) == 2
    for start, end in ranges(tracks):
        assert end <= 50 or start >= 50


@pytest.mark.parametrize("nothing", [np.nan, np.inf, 0.0])
def test_embeddings_that_say_nothing_count_as_none(scanned, nothing):
    """The next sample is asked, and a change of the person is seen all the same; a clip may be without identity."""
    frames = [picture("coffee", [(160, 120, 60, 20 if k < 12 else 230)], k) for k in range(24)]
    asked = iter(range(1000))

    def embed_at_times(image, points):
        embedding = MarkedFaces.embed(None, image, points)
        return embedding * np.float32(nothing) if next(asked) % 2 == 0 else embedding

    with np.errstate(invalid="ignore"):
        tracks, _ = scanned(frames, fps=5, embed_every_s=0.2, embed=embed_at_times)
        (unknown,), _ = scanned(frames[:10], fps=5, embed=lambda *_: np.full((1, 2), nothing, np.float32))
    assert [track["num_identity_samples"] for track in tracks] == [6, 6]
    people = [candidate["embedding"] for track in tracks for candidate in track["candidates"]]
    assert np.linalg.norm(people, axis=1) == pytest.approx([1, 1])
    assert [track["identity_similarity"] > 0.99 for track in tracks] == [True, True]
    assert (unknown["num_identity_samples"], unknown["identity_similarity"]) == (0, None)
    assert [candidate["embedding"] for candidate in unknown["candidates"]] == [None]


def test_frames_between_two_persons_are_in_no_clip(scanned):
    """Somewhere between the last embedding of the one and the first of the other the person changed."""
    frames = [picture("coffee", [(160, 120, 60, 0 if k < 55 else 250)], k) for k in range(140)]
    tracks, _ = scanned(frames)
    assert ranges(tracks) == [(0, 51), (75, 140)], "identified on 0, 25, 50, 75, ..."
    assert [t["reasons"] for t in tracks] == [["person_changes"], []]


def test_person_who_is_replaced_just_before_the_end_is_in_no_clip(scanned):
    """Identified on 0, 25, 50 and on the last sample, 70."""
    frames = [picture("coffee", [(90, 70, 60, 0 if k < 62 else 250)], k) for k in range(74)]
    tracks, _ = scanned(frames)
    assert ranges(tracks) == [(0, 51)]
    assert (tracks[0]["reasons"], tracks[0]["num_identity_samples"]) == (["person_changes"], 3)
    assert ranges(scanned(frames[:60])[0]) == [(0, 60)]


def test_clips_do_not_reach_over_samples_of_another_person(scanned):
    """Not even to the edges of the shot close by."""
    frames = [picture("coffee", [(160, 120, 60, 250 if 3 <= k < 53 else 0)], k) for k in range(57)]
    tracks, _ = scanned(frames, embed_every_s=0.2)
    assert ranges(tracks) == [(5, 51)], "sampled on 0, 5, ... 55"


def test_joined_streams_are_used_up_to_where_time_stamps_go_back(scanned):
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(60)]
    joined = frames + [picture("rocket", [(160, 120, 60, 250)], k) for k in range(50)]
    for spans in (300.0, 1.0):
        tracks, failures = scanned(joined, joined_at=60, max_span_s=spans, min_clip_s=0.5)
        assert (ranges(tracks)[0][0], ranges(tracks)[-1][1]) == (0, 60)
        assert [end for _, end in ranges(tracks)[:-1]] == [start for start, _ in ranges(tracks)[1:]]
        (failure,) = failures
        assert failure["reason"] == "stopped_early"
        assert failure["message"].startswith("time stamps go back from ")
        assert tracks[-1]["candidates"][-1]["end_s"] - tracks[0]["candidates"][0]["start_s"] == pytest.approx(60 / 25)


def test_after_damage_it_goes_on_with_the_next_key_frame(scanned):
    face = [(160, 120, 60, 90)]
    frames = [picture("coffee", face, k) for k in range(100)] + [picture("rocket", face, k) for k in range(60)]
    tracks, (failure,) = scanned(frames, broken_at=75)
    told = re.fullmatch(r"(\d+) frames from (.+) s to 3.96 s are left out for damage", failure["message"])
    assert failure["reason"] == "frames_left_out"
    num_lost = int(told[1])
    assert num_lost == pytest.approx(25, abs=8)
    assert float(told[2]) == pytest.approx(3.0, abs=0.33)
    (start, end), after = ranges(tracks)
    assert (start, after) == (0, (100 - num_lost, 160 - num_lost))
    assert end == pytest.approx(75, abs=12)
    assert [t["candidates"][0]["start_s"] for t in tracks] == pytest.approx([0.0, 4.0])
    assert tracks[0]["candidates"][0]["end_s"] <= float(told[2]), "no clip reaches over the hole"


def test_two_people_side_by_side_are_no_clip(scanned):
    frames = [picture("coffee", [(125, 120, 60, 0), (190, 120, 60, 250)], k) for k in range(50)]
    tracks, failures = scanned(frames)
    assert len(tracks) == 2
    assert ranges(tracks) == []
    assert [t["reasons"] for t in tracks] == [["other_face_in_crop"]] * 2
    assert failures == []


def test_long_shot_is_divided_evenly(scanned):
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(100)]
    tracks, _ = scanned(frames, max_clip_s=1.6, min_clip_s=1.0)
    assert ranges(tracks) == [(0, 33), (33, 67), (67, 100)]
    assert [c["clip_id"] for c in tracks[0]["candidates"]] == [
        "source_0000000_0", "source_0000033_0", "source_0000067_0",
    ]  # fmt: skip


def test_shot_whose_even_parts_would_be_too_short_is_divided_into_full_ones(scanned):
    """3 of 1.33 s would all be rejected; what is left behind is said."""
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(100)]
    tracks, _ = scanned(frames, max_clip_s=1.6, min_clip_s=1.5)
    assert ranges(tracks) == [(0, 40), (40, 80)]
    assert tracks[0]["reasons"] == ["too_short"]
    assert ranges(scanned(frames[:76], max_clip_s=2.0, min_clip_s=1.52)[0]) == [(0, 38), (38, 76)]
    assert ranges(scanned(frames[:75], max_clip_s=2.0, min_clip_s=1.5)[0]) == [(0, 50)], "37 and 38 frames"


def test_clip_before_a_gap_in_time_ends_with_its_last_frame(scanned):
    """Nothing fills the gap, and a last frame does not last as long as the average one of such a file."""
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(116)]
    for gap_s in (3, 100):
        tracks, _ = scanned(frames, gap=(76, 25 * gap_s))
        assert ranges(tracks) == [(0, 76), (76, 116)]
        before, after = [track["candidates"][0] for track in tracks]
        assert (before["start_s"], before["end_s"]) == (0.0, pytest.approx(76 / 25))
        assert tracks[0]["end_s"] == before["end_s"]
        assert (before["end_pts"] - before["start_pts"]) / (after["start_pts"] - before["start_pts"]) == pytest.approx(
            76 / (76 + 25 * gap_s)
        )
        assert after["start_s"] == pytest.approx(76 / 25 + gap_s)
        assert after["end_s"] - after["start_s"] == pytest.approx(40 / 25, abs=0.04)
    assert [track["reasons"] for track in tracks] == [[], []]


def test_short_shot_says_why_there_is_no_clip(scanned):
    tracks, _ = scanned([picture("coffee", [(160, 120, 60, 90)], k) for k in range(30)])
    assert ranges(tracks) == []
    assert [t["reasons"] for t in tracks] == [["too_short"]]
    assert ranges(scanned([picture("coffee", [(160, 120, 60, 90)], k) for k in range(30)], min_clip_s=1.0)[0])


@pytest.mark.parametrize(
    ("faces", "presence", "message"),
    [
        ([], 1.0, "no face was found on 8 sampled frames"),
        ([(160, 120, 30, 90)], 1.0, r"the largest face on 8 sampled frames is \d+ px high, less than scan.min_track"),
        ([(160, 120, 60, 90)], 0.1, "what the detector found on 8 sampled frames is no face"),
    ],
)
def test_video_without_a_track_says_why(scanned, faces, presence, message):
    tracks, (failure,) = scanned([picture("coffee", faces, k) for k in range(40)], presence=presence)
    assert tracks == []
    assert failure["reason"] == "no_face"
    assert re.match(message, failure["message"]), failure["message"]


def test_analyser_without_presence_is_believed(scanned):
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(50)]
    assert ranges(scanned(frames, presence=float("nan"))[0]) == [(0, 50)]


def test_sampling_is_by_time(scanned):
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(60)]
    assert scanned(frames, fps=50, min_clip_s=0.5)[0][0]["num_samples"] == 6
    assert scanned(frames, fps=25, sample_fps=25.0)[0][0]["num_samples"] == 60


def test_frames_may_be_sampled_further_apart_than_a_face_may_be_undetected(scanned):
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(100)]
    for sample_fps in (1.5, 1.0):
        tracks, failures = scanned(frames, sample_fps=sample_fps, max_gap_s=0.2)
        assert (ranges(tracks), failures) == ([(0, 100)], [])


def test_clips_may_be_shorter_than_from_one_sampled_frame_to_the_next(scanned):
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(22)]
    (track,), failures = scanned(frames, fps=5, sample_fps=0.5, min_clip_s=0.8, max_clip_s=1.0)
    assert (track["num_samples"], failures) == (3, [])
    assert ranges([track]) == [(0, 4), (4, 9), (9, 13), (13, 18), (18, 22)]
    assert all(candidate["embedding"] is not None for candidate in track["candidates"])


def test_spans_of_a_long_video_join_without_gap_or_overlap(scanned):
    frames = [picture("coffee", [(160, 120, 60, 90)], k) for k in range(160)]
    frames += [picture("rocket", [(160, 120, 60, 90)], k) for k in range(60)]
    tracks, _ = scanned(frames, max_span_s=3.0, min_clip_s=0.5)
    found = ranges(tracks)
    assert found[0][0] == 0
    assert found[-1][1] == 220
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
    assert 160 in [start for start, _ in found], "the cut is found inside its span"
    ids = [c["clip_id"] for track in tracks for c in track["candidates"]]
    assert len(set(ids)) == len(ids) == 4
    assert len({track["track_id"] for track in tracks}) == len(tracks)
