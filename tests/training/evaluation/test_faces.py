from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data

from model.faces.pose import rotation_from_euler
from model.keypoints import open_ratios_68
from training.evaluation.faces import (
    Face,
    FaceReader,
    asked_absolute,
    asked_relative,
    identity_similarity,
    jitter,
    motion_figures,
    openness_figures,
)


def _points() -> np.ndarray:
    """A face of random landmarks around a real layout: eyes, nose and mouth where they belong, float64 [68, 2]."""
    noise = np.random.default_rng(0)
    points = noise.uniform(0.35, 0.65, (68, 2))
    points[36:48, 1] = noise.uniform(0.38, 0.42, 12)
    points[[36, 39, 42, 45], 0] = (0.36, 0.45, 0.55, 0.64)
    points[48:, 1] = noise.uniform(0.58, 0.66, 20)
    return points


def _face(points68: np.ndarray, pose_deg: tuple[float, float, float] = (0, 0, 0)) -> Face:
    return Face(points68=points68, pose_deg=np.array(pose_deg, np.float64), embedding=None)


@pytest.fixture(scope="module")
def portrait_face(analyser) -> Face:
    face = FaceReader(analyser).read(skimage.data.astronaut()[:300, 80:380])
    assert face is not None
    return face


def test_face_of_a_photograph(portrait_face: Face) -> None:
    eyes, mouth = portrait_face.points68[36:48].mean(0), portrait_face.points68[48:].mean(0)
    np.testing.assert_allclose(eyes, [(224 - 80) / 300, 110 / 300], atol=0.05)  # where they are in the photograph
    assert mouth[1] > eyes[1] + 0.1
    assert np.linalg.norm(portrait_face.embedding) == pytest.approx(1, abs=1e-5)
    assert np.abs(portrait_face.expression[:10, 1]).max() < 0.6  # brows, in distances between the eye corners
    assert portrait_face.expression[18:, 1].mean() == pytest.approx(0.85, abs=0.2)  # the mouth is below the nose


def test_small_pictures_show_the_same_face(analyser, portrait_face: Face) -> None:
    import cv2

    small = cv2.resize(skimage.data.astronaut()[:300, 80:380], (128, 128), interpolation=cv2.INTER_AREA)
    face = FaceReader(analyser).read(small)
    np.testing.assert_allclose(face.points68, portrait_face.points68, atol=0.02)
    assert identity_similarity(face, portrait_face) > 0.7


def test_no_face_in_a_cup(analyser) -> None:
    assert FaceReader(analyser).read(skimage.data.coffee()[:400, :400]) is None


def test_equal_faces_are_perfect(portrait_face: Face) -> None:
    figures = motion_figures(portrait_face, asked_absolute(portrait_face))
    assert figures == pytest.approx({"aed": 0, "apd": 0, "pose_angle": 0}, abs=1e-5)
    assert openness_figures(portrait_face, portrait_face) == {"eye_error": 0, "lip_error": 0}
    assert identity_similarity(portrait_face, portrait_face) == pytest.approx(1, abs=1e-6)


def test_expression_does_not_depend_on_place_size_and_turn() -> None:
    points = _points()
    angle = math.radians(25)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = _face(0.6 * points @ turn.T + [0.1, -0.05], pose_deg=(0, 0, 25))
    figures = motion_figures(moved, asked_absolute(_face(points)))
    assert figures["aed"] == pytest.approx(0, abs=1e-9)
    assert figures["apd"] == pytest.approx(25 / 3, abs=1e-4)
    assert figures["pose_angle"] == pytest.approx(25, abs=1e-4)


def test_expression_distance_of_a_moved_brow() -> None:
    points = _points()
    moved = points.copy()
    moved[19] += (0.0, -0.01)
    rigid = np.array([27, 31, 33, 35, 36, 39, 42, 45])
    frontal = np.array(
        [[0, -0.024], [-0.158, 0.491], [0, 0.534], [0.158, 0.491], [-0.5, 0], [-0.209, 0.008], [0.209, 0.008], [0.5, 0]]
    )
    affine = np.linalg.pinv(np.column_stack([points[rigid], np.ones(8)])) @ frontal
    expected = 100 * np.linalg.norm([0.0, -0.01] @ affine[:2]) / 38  # one of 38 points moves
    assert motion_figures(_face(moved), asked_absolute(_face(points)))["aed"] == pytest.approx(expected, rel=1e-6)


def test_relative_motion_asks_for_the_change() -> None:
    source, first = _face(_points(), (20, 0, 0)), _face(_points()[:, ::-1] * 0.5 + 0.2, (-10, 5, 0))
    asked = asked_relative(source, first, first)
    assert motion_figures(source, asked) == pytest.approx({"aed": 0, "apd": 0, "pose_angle": 0}, abs=1e-4)
    turned = _face(first.points68, (5, 5, 0))
    asked = asked_relative(_face(_points()), _face(first.points68, (-10, 5, 0)), turned)
    expected = rotation_from_euler(-10, 5, 0).T @ rotation_from_euler(5, 5, 0)
    np.testing.assert_allclose(asked.rotation, expected, atol=1e-12)
    assert motion_figures(_face(_points()), asked)["pose_angle"] == pytest.approx(15, abs=0.01)


def test_openness_is_that_of_stage_2_and_of_the_animation() -> None:
    """Of the lips the gap in the middle alone, not the mean of three."""
    points = _points()
    points[[48, 54]] = ((0.4, 0.6), (0.6, 0.6))
    points[[61, 62, 63, 67, 66, 65], 0] = (0.45, 0.5, 0.55, 0.45, 0.5, 0.55)
    points[[61, 62, 63, 67, 66, 65], 1] = (0.6, 0.58, 0.6, 0.6, 0.62, 0.6)
    assert _face(points).openness[2] == pytest.approx(0.04 / 0.2, rel=1e-4)
    eyes, lips = open_ratios_68(points[None])
    np.testing.assert_allclose(_face(points).openness, [*eyes[0].tolist(), lips.item()])


def test_errors_of_openness_by_hand() -> None:
    points = _points()
    points[[48, 54], 0], points[[48, 54], 1] = (0.4, 0.6), 0.6
    points[[62, 66], 0], points[[62, 66], 1] = 0.5, (0.58, 0.62)
    wider, narrower = points.copy(), points.copy()
    wider[62, 1], narrower[62, 1] = 0.56, 0.6
    for other in (wider, narrower):
        figures = openness_figures(_face(other), _face(points))
        assert figures == pytest.approx({"eye_error": 0.0, "lip_error": 0.02 / 0.2}, abs=1e-4)


def test_angles_differ_by_the_shorter_way() -> None:
    one, other = _face(_points(), (0, 0, 179)), _face(_points(), (0, 0, -179))
    assert motion_figures(one, asked_absolute(other))["apd"] == pytest.approx(2 / 3, abs=1e-4)


def test_jitter_of_shaking_and_of_smooth_movement() -> None:
    points = _points()
    eyes = np.linalg.norm(points[36:42].mean(0) - points[42:48].mean(0))
    shaking = [_face(points + np.array([0.01 * (k % 2), 0])) for k in range(9)]
    smooth = [_face(points + np.array([0.01 * k, 0])) for k in range(9)]
    assert jitter(shaking) == pytest.approx(100 * 0.02 / eyes, rel=1e-6)
    assert jitter(smooth) == pytest.approx(0, abs=1e-9)
    assert jitter([*smooth[:4], None, *smooth[:4]]) == pytest.approx(0, abs=1e-9)  # no jump over the gap
    assert math.isnan(jitter([shaking[0], shaking[1], None, shaking[2]]))
