"""What is measured on a face, against values found by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data

from curation.measures import exposure, eye_distance, face_patch, jitter, movement, sharpness


def test_patch_is_the_box_of_the_landmarks(make_face68):
    gray = np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8)
    points = make_face68((260.4, 90.3), 60.0)
    patch = face_patch(gray, points)
    left, top = np.floor(points.min(0)).astype(int)
    right, bottom = np.ceil(points.max(0)).astype(int)
    np.testing.assert_array_equal(patch, gray[top:bottom, left:right])


@pytest.mark.parametrize("center", [(-400.0, 50.0), (50.0, -400.0), (900.0, 900.0), (0.0, 199.0)])
def test_patch_of_a_face_beyond_the_picture_is_not_empty(make_face68, center):
    patch = face_patch(np.zeros((200, 200), np.uint8), make_face68(center, 60.0))
    assert min(patch.shape) >= 2


def test_exposure_counts_dark_and_bright_pixels():
    patch = np.array([[0, 15, 16, 100], [200, 250, 251, 255]], np.uint8)
    light, dark, bright = exposure(patch)
    assert light == pytest.approx(patch.astype(float).mean() / 255)
    assert (dark, bright) == (2 / 8, 2 / 8)  # below 16, above 250


def test_sharpness_is_that_of_a_known_pattern():
    """Columns of 0 and 100 in turn: the Laplacian is +-200 everywhere, the standard deviation is 50."""
    patch = np.tile(np.array([0, 100], np.uint8), (256, 128))
    assert sharpness(patch) == pytest.approx(200 / 50, rel=0.01)
    assert sharpness(np.full((100, 100), 7, np.uint8)) == 0.0


def test_sharpness_falls_with_blur_and_not_with_light_or_size():
    face = cv2.cvtColor(skimage.data.astronaut()[40:220, 160:290], cv2.COLOR_RGB2GRAY)
    values = [sharpness(cv2.GaussianBlur(face, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 4 * values[-1]
    assert sharpness((face // 3).astype(np.uint8)) == pytest.approx(sharpness(face), rel=0.05)
    twice = cv2.resize(face, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert sharpness(twice) == pytest.approx(sharpness(face), rel=0.25)


def test_movement_is_in_distances_between_the_eyes(make_face68):
    face = make_face68((100, 100), 100.0)
    assert eye_distance(face) == pytest.approx(40.0)
    assert movement(face + np.array([30.0, 40.0]), face) == pytest.approx(50 / 40)
    one_moves = face.copy()
    one_moves[8, 1] += 40.0
    assert movement(one_moves, face) == pytest.approx(1 / 68)
    assert eye_distance(np.zeros((68, 2))) == 1.0


def test_jitter_sees_jumps_and_not_steady_movement(make_face68):
    face = make_face68((100, 100), 100.0)
    steady = np.stack([face + np.array([3.0, 1.0]) * k for k in range(20)])
    assert jitter(steady, np.arange(20)) == pytest.approx(0.0, abs=1e-9)
    jumping = np.stack([face + np.array([(-1.0) ** k, 0.0]) for k in range(20)])
    assert jitter(jumping, np.arange(20)) == pytest.approx(4 / 40)  # x[t+1] - 2 x[t] + x[t-1] = +-4
    assert jitter(steady[:2], np.arange(2)) == 0.0
    one_jumps = np.stack([face] * 20)
    one_jumps[:, 8, 0] += 17 * (-1.0) ** np.arange(20)
    assert jitter(one_jumps, np.arange(20)) == pytest.approx(4 * 17 / 68 / 40), "the mean over the points"
    jumping[-1] *= 3
    assert jitter(jumping, np.arange(20)) == pytest.approx(4 / 40), "one frame three times as large decides nothing"


def test_jitter_goes_by_the_times_of_the_frames(make_face68):
    """Steady movement is none whatever the times; a jump counts by the time that it takes."""
    face = make_face68((100, 100), 100.0)
    times = np.cumsum([0.0, *(0.8, 0.8, 1.6, 0.8) * 5])
    assert jitter(face + np.array([3.0, 1.0]) * times[:, None, None], times) == pytest.approx(0.0, abs=1e-9)
    jumping = np.stack([face + np.array([(-1.0) ** k, 0.0]) for k in range(20)])
    assert jitter(jumping, 2.0 * np.arange(20)) == pytest.approx(2 / 40)
    assert jitter(jumping, np.zeros(20)) == pytest.approx(4 / 40), "times that stand still"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jitter_of_regular_frames_is_the_plain_second_difference(dtype):
    faces = np.random.default_rng(0).uniform(0, 100, (30, 68, 2)).astype(dtype)
    times = (1.234 + np.arange(30) * 0.04) * 25.0
    second = np.linalg.norm(faces[2:] - 2 * faces[1:-1] + faces[:-2], axis=2).mean(1)
    assert jitter(faces, times) == float(np.median(second) / np.median([eye_distance(face) for face in faces]))
