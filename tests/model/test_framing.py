"""Crops, boxes and warps: the published numbers, and properties that hold for any face."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from model import framing
from model.config import ModelConfig


@pytest.fixture(scope="module")
def golden(reference):
    with np.load(reference / "golden_geometry.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def cases(reference):
    return json.loads((reference / "golden_geometry_cases.json").read_text())


def face_68(center=(300.0, 200.0), size=100.0, angle_deg=0.0):
    """68 points of a plausible frontal face."""
    rng = np.random.default_rng(3)
    points = rng.uniform(-0.4, 0.4, (68, 2))
    points[36], points[39], points[42], points[45] = (-0.3, -0.15), (-0.1, -0.15), (0.1, -0.15), (0.3, -0.15)
    points[48], points[54] = (-0.15, 0.25), (0.15, 0.25)
    points[0], points[16], points[8] = (-0.5, -0.1), (0.5, -0.1), (0.0, 0.5)
    angle = np.deg2rad(angle_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ rotation.T * size + center


def test_crop_transforms_equal_the_published_ones(golden, cases):
    assert len(cases) == 16
    for case in cases:
        landmarks = golden[f"{case['id']}/landmarks"]
        shape = {"scale": case["scale"], "vy_ratio": case["vy_ratio"]}
        if case["rotate"]:
            matrix = framing.crop_transform(landmarks, size_px=case["dsize"], **shape)
        else:
            matrix = framing.box_transform(framing.driving_box(landmarks, **shape), size_px=case["dsize"])
        expected = golden[f"{case['id']}/M_o2c"]
        np.testing.assert_allclose(matrix, expected, rtol=2e-6, atol=2e-4, err_msg=case["id"])
        np.testing.assert_allclose(
            framing.invert(matrix), golden[f"{case['id']}/M_c2o"], rtol=2e-6, atol=5e-4, err_msg=case["id"]
        )
        np.testing.assert_allclose(
            framing.transform_points(landmarks, matrix), golden[f"{case['id']}/landmarks_in_crop"], atol=1e-3
        )


def test_driving_boxes_equal_the_published_ones(golden):
    boxes = [framing.driving_box(golden[f"driving_crop/landmarks_{index}"]) for index in range(4)]
    for index, box in enumerate(boxes):
        np.testing.assert_allclose(box, golden[f"driving_crop/bbox_{index}"], rtol=1e-6, atol=2e-4)
    mean = framing.mean_box(boxes)
    np.testing.assert_allclose(mean, golden["driving_crop/average_bbox"], rtol=1e-6, atol=2e-4)
    np.testing.assert_allclose(
        framing.box_transform(mean, size_px=512), golden["driving_crop/M_o2c"], rtol=1e-6, atol=2e-4
    )


def test_defaults_are_the_published_ones(golden):
    matrix = framing.crop_transform(golden["crop_203_0/landmarks"])
    np.testing.assert_allclose(matrix, golden["crop_203_0/M_o2c"], rtol=2e-6, atol=2e-4)


def test_networks_that_tell_nothing_else_get_the_published_crops():
    config = ModelConfig()
    assert (config.crop_scale, config.crop_vy_ratio) == (framing.SOURCE_SCALE, framing.SOURCE_VY_RATIO)
    published = {"scale": framing.DRIVING_SCALE, "vy_ratio": framing.DRIVING_VY_RATIO}
    assert framing.driving_framing(config.crop_scale, config.crop_vy_ratio) == published
    assert framing.driving_framing(1.15, -0.225) == pytest.approx({"scale": 1.1, "vy_ratio": -0.2})


def test_rotated_crop_turns_the_face_upright():
    for angle_deg in (-170.0, -40.0, 15.0, 90.0):
        points = face_68(angle_deg=angle_deg)
        assert framing.face_rect(points, scale=2.3).angle_rad == pytest.approx(np.deg2rad(angle_deg))
        eyes, mouth = framing.eye_and_mouth_centers(
            framing.transform_points(points, framing.crop_transform(points)).astype(np.float32)
        )
        assert mouth[0] - eyes[0] == pytest.approx(0, abs=1e-3)
        assert mouth[1] > eyes[1]


def test_unknown_landmark_scheme_is_refused():
    with pytest.raises(ValueError, match="5, 68, 106, 203"):
        framing.crop_transform(np.zeros((98, 2)))


def test_fixed_crop_is_the_mean_square_at_the_source_scale():
    frames = np.stack([face_68((300, 200)), face_68((320, 210), angle_deg=10), face_68((280, 190), size=120)])
    crop = framing.fixed_crop(frames, width_px=640, height_px=360)
    expected = framing.mean_box(framing.driving_box(frame, scale=2.3, vy_ratio=-0.125) for frame in frames)
    np.testing.assert_allclose(crop.box, expected, atol=1)  # moved to whole pixels
    assert crop.size_px == round(crop.size_px)
    np.testing.assert_allclose(
        framing.transform_points(crop.box.reshape(2, 2), crop.matrix), [[0, 0], [512, 512]], atol=1e-9
    )
    np.testing.assert_allclose(crop.matrix @ crop.inverse, np.eye(3), atol=1e-9)
    assert crop.matrix[0, 1] == crop.matrix[1, 0] == 0
    assert crop.upscaling == pytest.approx(512 / crop.size_px)


@pytest.mark.parametrize("center", [(300, 200), (60, 40), (600, 330), (-500, 0)])
def test_padding_measures_agree_with_the_pixels(center):
    crop = framing.fixed_crop(face_68(center)[None], width_px=640, height_px=360)
    general = framing.outside_fraction(crop.matrix, size_px=512, width_px=640, height_px=360)
    assert crop.outside_fraction == pytest.approx(general, abs=1e-4)
    white = np.full((360, 640), 255, np.uint8)
    covered = framing.warp(white, crop.matrix, 512).mean() / 255
    assert 1 - covered == pytest.approx(crop.outside_fraction, abs=5e-3)


def test_a_crop_of_the_whole_picture_has_nothing_outside():
    for shift_px, outside in ((0, 0.0), (16, 0.25), (-16, 0.25)):
        matrix = np.array([[1.0, 0, shift_px], [0, 1, 0], [0, 0, 1]])
        fraction = framing.outside_fraction(matrix, size_px=64, width_px=64, height_px=64)
        assert fraction == pytest.approx(outside, abs=1e-9)


def test_outside_fraction_of_a_rotated_crop_agrees_with_the_pixels():
    matrix = framing.crop_transform(face_68((60, 40), angle_deg=30))
    fraction = framing.outside_fraction(matrix, size_px=512, width_px=640, height_px=360)
    covered = framing.warp(np.full((360, 640), 255, np.uint8), matrix, 512).mean() / 255
    assert 0.2 < fraction < 0.9
    assert 1 - covered == pytest.approx(fraction, abs=5e-3)


def test_reach_says_when_the_face_leaves_the_crop():
    crop = framing.fixed_crop(face_68()[None], width_px=640, height_px=360)
    step = np.array([crop.size_px, 0])
    near, far = framing.reach(crop, np.stack([face_68(), face_68() + step]))
    assert near < 0.7
    assert far > 1
    corner = np.array([[crop.box[0], crop.center_y_px]])
    assert framing.reach(crop, corner) == pytest.approx(1), "on the crop's border"


@pytest.mark.parametrize("border", ["black", "replicate"])
@pytest.mark.parametrize("center", [(320, 180), (100, 60), (600, 330)])  # inside, and beyond two edges
def test_a_crop_on_whole_pixels_is_resized_to_what_the_general_warp_gives(center, border):
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (360, 640, 3), np.uint8), (0, 0), 4)
    crop = framing.fixed_crop(face_68(center)[None], width_px=640, height_px=360)
    turned = crop.matrix + np.array([[0, 1e-9, 0], [0, 0, 0], [0, 0, 0]])
    resized, general = (framing.warp(picture, matrix, 512, border=border) for matrix in (crop.matrix, turned))
    difference = cv2.absdiff(resized, general)[2:-2, 2:-2]  # the outermost pixels mix with what is around the crop
    assert difference.mean() < 0.6
    assert np.percentile(difference, 99) <= 2
    part = framing._whole_pixels(picture, crop.matrix[:2], (512, 512), border)
    assert part.shape == (crop.size_px, crop.size_px, 3)
    assert framing._whole_pixels(picture, turned[:2], (512, 512), border) is None


@pytest.mark.parametrize("side", [200, 400, 1400, 1999])
def test_warp_keeps_positions_at_every_scale(side):
    """A blob lands where the matrix says, with and without the averaging, also in a corner of the picture."""
    height, width, center = 2000, 3000, np.array([2990.0 - side / 2, 1996.0 - side / 2])
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    image = np.exp(-((xx - center[0]) ** 2 + (yy - center[1]) ** 2) / (2 * (side / 16) ** 2))
    box = np.concatenate([center - side / 2, center + side / 2]) + side * 0.07
    matrix = framing.box_transform(box, size_px=256)
    out = framing.warp(image, matrix, 256)
    rows, columns = np.mgrid[:256, :256]
    found = np.array([(out * columns).sum(), (out * rows).sum()]) / out.sum()
    np.testing.assert_allclose(found, framing.transform_points(center, matrix), atol=0.05)


def test_warp_does_not_alias_when_it_shrinks():
    stripes = np.zeros((2048, 2048, 3), np.uint8)
    stripes[:, ::2] = 255  # one-pixel stripes: any picture at a quarter of the size is plain grey
    matrix = framing.box_transform([10, 10, 2010, 2010], size_px=500)
    smooth = framing.warp(stripes, matrix, 500)
    plain = cv2.warpAffine(stripes, matrix[:2], (500, 500), flags=cv2.INTER_LINEAR)
    error, plain_error = (np.abs(crop[5:-5, 5:-5].astype(int) - 127).mean() for crop in (smooth, plain))
    assert error < 0.25 * plain_error
    assert smooth.dtype == np.uint8
    assert smooth.shape == (500, 500, 3)


def test_warp_and_its_inverse_give_the_picture_back():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (360, 640, 3), np.uint8), (0, 0), 6)
    matrix = framing.crop_transform(face_68(angle_deg=15))
    crop = framing.warp(image, matrix, 512)
    back = framing.warp(crop, framing.invert(matrix), (640, 360))
    mask = framing.warp(np.full((512, 512), 255, np.uint8), framing.invert(matrix), (640, 360)) == 255
    mask = cv2.erode(mask.astype(np.uint8), np.ones((9, 9)), borderValue=0) > 0
    assert mask.mean() > 0.15
    assert np.abs(back[mask].astype(int) - image[mask]).max() <= 2


def test_border_can_repeat_the_edge():
    white = np.full((100, 100, 3), 200, np.uint8)
    matrix = framing.box_transform([-50, -50, 50, 50], size_px=64)
    assert framing.warp(white, matrix, 64)[0, 0].tolist() == [0, 0, 0]
    assert framing.warp(white, matrix, 64, border="replicate")[0, 0].tolist() == [200, 200, 200]
