"""Crops and masks lie where the face is: against ramps, hand-made faces and real ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.losses import cascade, crop_regions, eye_mask, lip_mask, shoulder_mask
from training.losses.regions import region_box


def ramp(size: int) -> torch.Tensor:
    """A picture whose red is x and whose green is y of the pixel's centre in [-1, 1]."""
    centers = (2 * torch.arange(size) + 1) / size - 1
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)])[None]


def value_at(mask: torch.Tensor, x: float, y: float) -> float:
    """A mask's value at a place in [-1, 1]."""
    height, width = mask.shape[-2:]
    return mask[0, 0, min(int((y + 1) / 2 * height), height - 1), min(int((x + 1) / 2 * width), width - 1)].item()


@pytest.mark.parametrize(
    ("region", "first", "last", "scale", "shift"),
    [("face", 0, 68, 1.4, -0.1), ("lip", 48, 68, 1.5, 0), ("eyes", 36, 48, 1.3, 0)],
)
def test_crop_samples_the_square_around_its_landmarks(face_landmarks, region, first, last, scale, shift):
    points = face_landmarks[0, first:last].numpy()
    low, high = points.min(0), points.max(0)
    longer = (high - low).max()
    center, half = (low + high) / 2 + [0, shift * longer], longer * scale / 2
    size = 24
    crop = crop_regions(ramp(256), face_landmarks, regions=(region,), sizes={region: size})[region][0]
    for row in range(0, size, 5):
        for column in range(0, size, 5):
            expected = center + half * ((2 * np.array([column, row]) + 1) / size - 1)
            np.testing.assert_allclose(crop[:2, row, column], expected, atol=1e-5)


def test_crops_follow_a_moving_face_of_each_sample(face_landmarks):
    noise = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    shifted = torch.roll(noise, shifts=(10, -20), dims=(2, 3))
    moved = face_landmarks * 0.5 + torch.tensor([-20.0, 10.0]) * 2 / 160
    crops = crop_regions(torch.cat([noise, shifted]), torch.cat([face_landmarks * 0.5, moved]))
    for region in ("face", "lip"):
        torch.testing.assert_close(crops[region][0], crops[region][1], atol=1e-4, rtol=0)


def test_default_sizes_are_shares_of_the_picture(face_landmarks):
    image = torch.rand(1, 3, 128, 128)
    views = cascade(image, face_landmarks)
    assert {name: tuple(view.shape[-2:]) for name, view in views.items()} == {
        "global": (128, 128),
        "face": (64, 64),
        "lip": (32, 32),
    }
    assert views["global"] is image


def test_gradient_of_a_crop_reaches_only_its_pixels(face_landmarks):
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    landmarks = face_landmarks.clone().requires_grad_()
    crop_regions(image, landmarks, regions=("lip",))["lip"].square().sum().backward()
    center, half = region_box(landmarks, "lip")
    touched = image.grad[0].abs().sum(0) > 0
    inside = (ramp(64)[0, :2] - center[0].view(2, 1, 1)).abs().amax(0) < half + 2 / 64
    assert touched.sum() > 50
    assert not (touched & ~inside).any()
    assert landmarks.grad is None


def test_unknown_landmarks_give_the_whole_picture_and_empty_masks():
    image = torch.rand(1, 3, 32, 32)
    unknown = torch.full((1, 68, 2), math.nan)
    crop = crop_regions(image, unknown, regions=("face",), sizes={"face": 32})["face"]
    torch.testing.assert_close(crop, image)
    for mask in (shoulder_mask, eye_mask, lip_mask):
        assert mask(unknown, (32, 32)).abs().max() == 0


def test_landmarks_on_one_point_give_a_small_square():
    center, half_side = region_box(torch.full((1, 68, 2), 0.3), "lip")
    torch.testing.assert_close(center, torch.full((1, 2), 0.3))
    assert half_side.item() == pytest.approx(0.02)


def test_an_unknown_region_names_those_that_exist(face_landmarks):
    with pytest.raises(ValueError, match="face, lip, eyes; got 'nose'"):
        crop_regions(torch.rand(1, 3, 8, 8), face_landmarks, regions=("nose",))


def test_crops_are_float32_under_autocast(face_landmarks):
    image = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        low = crop_regions(image, face_landmarks)["face"]
    assert low.dtype == torch.float32
    assert torch.equal(low, crop_regions(image, face_landmarks)["face"])


def test_shoulder_mask_begins_below_the_chin_and_beside_it(face_landmarks):
    mask = shoulder_mask(face_landmarks, (200, 200))
    bottom, height = 0.5, 0.8  # of the hand-made face
    for x in (-0.9, 0.0, 0.9):
        assert value_at(mask, x, bottom - 0.01) == 0
        assert value_at(mask, x, bottom + 0.18 * height + 0.02) == 1
    below_chin = bottom + 0.1 * height
    assert value_at(mask, 0.0, below_chin) == 0
    assert value_at(mask, 0.9, below_chin) == 1


def test_eye_mask_holds_both_eyes_and_not_brows_or_nose(face_landmarks):
    mask = eye_mask(face_landmarks, (400, 400))
    for index in range(36, 48):
        assert value_at(mask, *face_landmarks[0, index].tolist()) > 0.99
    for index in [*range(17, 36), *range(48, 68)]:
        assert value_at(mask, *face_landmarks[0, index].tolist()) == 0
    # Half axes 0.8 and 0.6 of the width 0.16, a third more at the end of the soft edge.
    area = mask.sum().item() * (2 / 400) ** 2
    inner = 2 * math.pi * 0.8 * 0.6 * 0.16**2
    assert inner < area < inner * (4 / 3) ** 2


def test_masks_turn_with_the_head(face_landmarks):
    angle = math.radians(30)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = face_landmarks @ turn  # row vectors; clockwise in the picture
    for make_mask, inside in ((eye_mask, (0.2, -0.17)), (lip_mask, (0.0, 0.55))):
        upright, tilted = make_mask(face_landmarks, (300, 300)), make_mask(turned, (300, 300))
        place = (torch.tensor(inside) @ turn).tolist()
        assert value_at(upright, *inside) > 0.5
        assert value_at(tilted, *place) == pytest.approx(value_at(upright, *inside), abs=0.05)
        assert tilted.sum() == pytest.approx(upright.sum().item(), rel=0.01)


def test_lip_mask_reaches_a_chin_that_drops_and_leaves_the_eyes(face_landmarks):
    mask = lip_mask(face_landmarks, (400, 400))
    width = 0.3
    assert value_at(mask, 0, 0.3 + 0.35 * width) == 1
    assert value_at(mask, 0, 0.3 + 0.9 * width) == 1  # a lower lip at openness 0.8
    assert all(value_at(mask, *face_landmarks[0, index].tolist()) == 0 for index in range(36, 48))


def test_masks_of_real_faces_divide_the_picture(real_faces):
    for face in real_faces:
        points = face.landmarks
        shoulders, eyes, lips = (make(points, (512, 512)) for make in (shoulder_mask, eye_mask, lip_mask))
        assert (shoulders * eyes).max() == 0
        assert (eyes * lips).max() == 0
        for index in range(36, 48):
            assert value_at(eyes, *points[0, index].tolist()) > 0.99
        for index in range(48, 68):
            assert value_at(lips, *points[0, index].tolist()) > 0.9
        # Published crops show shoulders in the bottom fifth.
        assert 0.03 < shoulders.mean() < 0.2
