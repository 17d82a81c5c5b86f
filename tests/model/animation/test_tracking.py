"""Faces are followed through real videos, each in one track."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.animation.pictures import load_still
from model.animation.tracking import FaceTrack, find_faces, find_faces_in_still, track_faces
from model.faces import FaceAnalyser
from model.video import open_video

STILL = "images/i16_man_with_glasses_and_beard_white_background.jpg"


def _frames(path: Path, start: int, stop: int):
    with open_video(path) as video:
        for frame in itertools.islice(video, start, stop):
            yield frame.rgb()


def test_one_person_is_one_track(media: Path, analyser: FaceAnalyser) -> None:
    path = media / "videos/v04_man_selfie_portrait720x1280_noaudio.mp4"
    tracks = track_faces(_frames(path, 0, 60), analyser, min_face_px=40)
    assert [(track.start, track.stop) for track in tracks] == [(0, 60)]
    points = tracks[0].filled()
    assert points.shape == (60, 68, 2)
    steps = np.linalg.norm(np.diff(points.mean(1), axis=0), axis=1)
    assert steps.max() < 0.1 * tracks[0].mean_size_px()


def test_track_ends_where_the_face_does(media: Path, analyser: FaceAnalyser) -> None:
    path = media / "videos/v08_face_then_noface_hevc_vfr.mov"  # the man is gone from frame 72 on
    tracks = track_faces(_frames(path, 40, 110), analyser, min_face_px=40)
    assert tracks[0].start == 0
    assert 30 <= tracks[0].stop <= 34


def test_several_faces_in_a_still(media: Path, analyser: FaceAnalyser) -> None:
    points = find_faces(load_still(media / "images/i11_two_men_in_office.jpg"), analyser, min_face_px=40)
    assert len(points) == 2
    sizes = np.ptp(points, axis=1).max(1)
    assert sizes[0] >= sizes[1] > 60
    assert len(find_faces(load_still(media / "images/i31_cup_of_coffee.png"), analyser, min_face_px=40)) == 0


def test_two_people_are_two_tracks(media: Path, analyser: FaceAnalyser) -> None:
    still = load_still(media / "images/i11_two_men_in_office.jpg")
    frames = [np.ascontiguousarray(np.roll(still, 2 * shift, axis=1)) for shift in range(12)]
    tracks = track_faces(frames, analyser, min_face_px=40)
    assert [(track.start, track.stop) for track in tracks] == [(0, 12), (0, 12)]
    for track in tracks:
        x = track.filled()[:, :, 0].mean(1)
        assert x[-1] - x[0] == pytest.approx(22, abs=4)


def test_short_gaps_are_interpolated() -> None:
    points = np.arange(68 * 2, dtype=np.float32).reshape(68, 2)
    track = FaceTrack(5, [points, None, None, points + 3])
    assert track.stop == 9
    assert np.allclose(track.filled()[1], points + 1)
    assert np.allclose(track.filled()[2], points + 2)


def test_tracks_end_at_cuts(media: Path, analyser: FaceAnalyser) -> None:
    path = media / "videos/v07_stage_4shots_identity_switch_dark.mp4"  # cuts at 20, 82, 211
    tracks = track_faces(_frames(path, 150, 260), analyser, min_face_px=40)
    assert tracks[0].start == 0
    assert tracks[0].stop == 211 - 150


def test_small_faces_of_a_large_still_are_found(media: Path, analyser: FaceAnalyser) -> None:
    face = load_still(media / STILL)  # 165 pixels high
    picture = np.full((2500, 4000, 3), (90, 110, 100), np.uint8)
    corners = [(x, y) for y in (20, 1100, 2300) for x in (30, 1270, 3700)]
    for (x, y), height_px in zip(corners, (42, 50, 60, 70, 80, 90, 100, 110, 120), strict=True):
        small = cv2.resize(face, None, fx=height_px / 165, fy=height_px / 165, interpolation=cv2.INTER_AREA)
        picture[y : y + len(small), x : x + len(small)] = small[: 2500 - y, : 4000 - x]
    assert len(find_faces(picture, analyser, min_face_px=40)) < 6
    found = find_faces_in_still(picture, analyser, min_face_px=40)
    assert np.ptp(found, axis=1).max(1) == pytest.approx([120, 110, 100, 90, 80, 70, 60, 50, 42], rel=0.1)
    for name in (STILL, "images/i23_five_young_people_on_beach.jpg"):  # pictures that are not large: as before
        picture = load_still(media / name)
        found = find_faces_in_still(picture, analyser, min_face_px=40)
        assert np.array_equal(found, find_faces(picture, analyser, min_face_px=40))
    close = cv2.resize(load_still(media / STILL), (2400, 2400), interpolation=cv2.INTER_CUBIC)
    assert len(find_faces_in_still(close, analyser, min_face_px=40)) == 1  # the large face, and none within it
