"""Schemes, openness, pose, alignment and suppression: values that can be worked out."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from model.faces import Detections, eye_openness, lip_openness
from model.faces.alignment import (
    ARCFACE_POINTS,
    arcface_crop,
    letterbox,
    roll_deg,
    similarity_transform,
    upright_square,
)
from model.faces.nms import keep_best
from model.faces.pose import (
    MESH_RIGID_SHAPE,
    MESH_RIGID_VERTICES,
    mesh_pose_deg,
    points68_pose_deg,
    rotation_from_euler,
)
from model.faces.schemes import points68_from_mesh, points68_from_points106
from model.framing import eye_and_mouth_centers, transform_points

# iBUG index -> index of the same point in the mirror image
MIRROR = np.array(
    [
        *(*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65),
    ]
)


def test_68_points_of_the_mesh_are_mirror_symmetric(open_analyser, astronaut):
    """Each point of the mirror image is the mirrored point of the other side: no side has a wrong vertex."""
    faces = open_analyser.detect([astronaut])[0]
    height = faces.boxes[0, 3] - faces.boxes[0, 1]
    points = open_analyser.landmarks(astronaut, faces).points68[0]
    mirrored_image = np.ascontiguousarray(astronaut[:, ::-1])
    mirrored = open_analyser.landmarks(mirrored_image, open_analyser.detect([mirrored_image])[0]).points68[0]
    back = mirrored[MIRROR] * (-1, 1) + (astronaut.shape[1] - 1, 0)
    assert np.linalg.norm(back - points, axis=1).max() < 0.05 * height


def test_68_points_of_the_mesh_are_in_anatomical_order(open_analyser, astronaut):
    points = open_analyser.landmarks(astronaut, open_analyser.detect([astronaut])[0]).points68[0]
    x, y = points.T
    assert (np.diff(x[:17]) > -2).all()  # jaw from ear to ear
    assert y[8] == y.max()  # the chin is lowest
    assert (np.diff(x[17:27]) > 0).all()  # brows
    assert (np.diff(y[27:31]) > 0).all()  # bridge of the nose, downwards
    assert (np.diff(x[31:36]) > 0).all()
    for eye in (36, 42):
        assert x[eye] < x[eye + 1] < x[eye + 2] < x[eye + 3]
        assert (y[[eye + 1, eye + 2]] < y[[eye + 5, eye + 4]]).all()
    assert (np.diff(x[48:55]) > 0).all()  # upper lip to the image's right
    assert (np.diff(x[54:60]) < 0).all()  # lower lip back
    assert (np.diff(x[60:65]) > 0).all()
    assert (y[[50, 51, 52]] < y[[61, 62, 63]]).all()
    assert (y[[61, 62, 63]] <= y[[67, 66, 65]] + 1).all()
    assert (y[[67, 66, 65]] < y[[58, 57, 56]]).all()


def test_106_points_agree_with_the_published_eyes_and_mouth():
    """The published crop reads eye and mouth points of the 106 scheme by its own indices; both must be one anatomy."""
    points106 = np.stack([np.arange(106.0), np.zeros(106)], axis=1)
    points68 = points68_from_points106(points106)[:, 0].astype(int)
    assert len(set(points68)) == 68
    assert points68[[36, 39, 42, 45]].tolist() == [35, 39, 89, 93]  # eye corners
    assert points68[[48, 54]].tolist() == [52, 61]  # mouth corners
    assert points68[[0, 8, 16]].tolist() == [1, 0, 17]  # ears and chin
    assert points68[30] == 86  # tip of the nose


def test_openness_of_drawn_eyes_and_lips():
    points = np.zeros((68, 2))
    points[36:42] = [(0, 0), (3, -2), (7, -2), (10, 0), (7, 2), (3, 2)]  # 4 high, 10 wide
    points[42:48] = [(20, 0), (23, -0.5), (27, -0.5), (30, 0), (27, 0.5), (23, 0.5)]  # 1 high
    points[48], points[54] = (5, 30), (25, 30)
    points[[61, 62, 63]] = [(10, 27), (15, 27), (20, 27)]
    points[[67, 66, 65]] = [(10, 33), (15, 35), (20, 33)]
    assert eye_openness(points) == pytest.approx([0.4, 0.1])
    assert lip_openness(points) == pytest.approx(((6 + 8 + 6) / 3) / 20)
    turned = transform_points(points, [[0, -3, 100], [3, 0, 50]])  # neither size nor angle matters
    assert eye_openness(np.stack([points, turned]))[1] == pytest.approx([0.4, 0.1])
    assert lip_openness(turned) == pytest.approx(lip_openness(points))


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, -12, 20), (-55, 25, -70), (5, 40, 150)])
def test_pose_of_a_turned_shape(angles):
    """A rigid head turned by known angles, seen from far away, in pixels with y down and z away from the camera."""
    mesh = np.full((468, 3), np.nan)
    mesh[MESH_RIGID_VERTICES] = MESH_RIGID_SHAPE @ rotation_from_euler(*angles).T * (1, -1, -1) * 17 + (300, 200, 5)
    assert mesh_pose_deg(mesh) == pytest.approx(angles, abs=1e-3)
    points68 = points68_from_mesh(np.nan_to_num(mesh))[:, :2]
    # the nostril wings are not among the mesh's rigid vertices
    wings = np.array([(-1.41, -1.71, 5.24), (1.41, -1.71, 5.24)]) @ rotation_from_euler(*angles).T
    points68[[31, 35]] = wings[:, :2] * (1, -1) * 17 + (300, 200)
    assert points68_pose_deg(points68) == pytest.approx(angles, abs=0.2)


def test_similarity_is_exact_and_never_a_reflection():
    matrix = np.array([[0.8, 0.6, 5], [-0.6, 0.8, -7], [0, 0, 1]]) * [[3], [3], [1]]
    found = similarity_transform(ARCFACE_POINTS, transform_points(ARCFACE_POINTS, matrix))
    np.testing.assert_allclose(found, matrix, atol=1e-9)
    mirrored = similarity_transform(ARCFACE_POINTS, ARCFACE_POINTS * (-1, 1))
    assert np.linalg.det(mirrored[:2, :2]) > 0
    rng = np.random.default_rng(0)
    noisy = transform_points(ARCFACE_POINTS, matrix) + rng.normal(0, 5, (5, 2))
    expected, _ = cv2.estimateAffinePartial2D(
        ARCFACE_POINTS.astype(np.float32), noisy.astype(np.float32), method=cv2.LMEDS, refineIters=0
    )
    residual = np.square(transform_points(ARCFACE_POINTS, similarity_transform(ARCFACE_POINTS, noisy)) - noisy).sum()
    assert residual <= np.square(transform_points(ARCFACE_POINTS, expected) - noisy).sum() + 1e-9


def test_aligned_crop_puts_the_eyes_where_the_network_expects_them():
    image = np.zeros((300, 300, 3), np.uint8)
    points = transform_points(ARCFACE_POINTS, [[1.2, -0.5, 120], [0.5, 1.2, 60]])
    cv2.circle(image, tuple(round(value) for value in points[0]), 3, (255, 255, 255), -1)
    crop = arcface_crop(image, points)
    row, column = np.unravel_index(crop[..., 0].argmax(), crop.shape[:2])
    assert (column, row) == pytest.approx(ARCFACE_POINTS[0], abs=3)
    crop = arcface_crop(image, points, 224)
    row, column = np.unravel_index(crop[..., 0].argmax(), crop.shape[:2])
    assert (column, row) == pytest.approx(2 * ARCFACE_POINTS[0], abs=6)


def test_roll_is_clockwise():
    upright = np.array([[-1, -1], [1, -1], [0, 0], [-0.5, 1], [0.5, 1]])
    clockwise = np.array([[0, -1], [1, 0]])
    assert roll_deg(upright) == pytest.approx(0)
    assert roll_deg(upright @ clockwise.T) == pytest.approx(90)


def test_a_square_around_a_face_is_turned_upright():
    angle = np.radians(30)
    clockwise = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.array([[-10, -10], [10, -10], [0, 0], [-5, 10], [5, 10]]) @ clockwise.T + (200, 100)
    matrix = upright_square(np.array([160, 70, 240, 130]), points, scale=1.5, size_px=192)
    eyes, mouth = eye_and_mouth_centers(transform_points(points, matrix))
    assert mouth - eyes == pytest.approx([0, 20 * 192 / (1.5 * 80)])
    assert transform_points([200, 100], matrix) == pytest.approx([95.5, 95.5])


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (480, 908), (100, 100), (37, 1000)])
def test_letterbox_keeps_the_picture_whole_with_its_border(width, height):
    matrix, canvas_width, canvas_height = letterbox(width, height, size_px=512, border=0.1)
    assert canvas_width % 32 == canvas_height % 32 == 0
    assert max(canvas_width, canvas_height) == 512
    corners = transform_points([[0, 0], [width - 1, height - 1]], matrix)
    border = 0.1 * 512 / 1.2
    assert corners.min() >= border - 1
    assert (corners[1] <= (canvas_width - border, canvas_height - border)).all()
    assert corners.mean(0) == pytest.approx([(canvas_width - 1) / 2, (canvas_height - 1) / 2])


def test_suppression_keeps_the_best_of_overlapping_boxes():
    # overlaps with the second: 81 / 119 = 0.68, 0, 45 / 155 = 0.29
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [30, 0, 40, 10], [6, 0, 16, 10]], np.float32)
    scores = np.array([0.8, 0.9, 0.7, 0.75], np.float32)
    assert keep_best(boxes, scores, 0.28).tolist() == [1, 2]
    assert keep_best(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert keep_best(boxes, scores, 0.7).tolist() == [1, 0, 3, 2]
    assert keep_best(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.3).tolist() == []


def test_faces_are_picked_by_mask_slice_and_number():
    faces = Detections(
        np.arange(12, dtype=np.float32).reshape(3, 4), np.array([0.9, 0.8, 0.7], np.float32), np.zeros((3, 5, 2))
    )
    assert faces[faces.scores > 0.75].boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(faces[2]) == 1
    assert faces[2].boxes.tolist() == [[8, 9, 10, 11]]
    assert len(faces[1:]) == 2
    assert len(Detections.empty()) == len(Detections.from_points68(np.zeros((0, 68, 2)))) == 0


def test_following_box_holds_the_face(open_analyser, astronaut):
    faces = open_analyser.detect([astronaut])[0]
    followed = Detections.from_points68(open_analyser.landmarks(astronaut, faces).points68)
    size = faces.boxes[0, 3] - faces.boxes[0, 1]
    assert np.abs(followed.boxes[0] - faces.boxes[0]).max() < 0.15 * size
    eyes, mouth = eye_and_mouth_centers(followed.points[0])
    assert eyes[1] < mouth[1]
