"""Editing a face by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import ModelConfig
from model.keypoints import FaceEdit, Motion, edit_keypoints, rotation_matrix
from model.networks import LivePortrait


@pytest.fixture(scope="module")
def networks() -> LivePortrait:
    torch.manual_seed(0)
    return LivePortrait(ModelConfig.tiny()).eval()  # the small networks correct something here


@pytest.fixture
def source() -> Motion:
    generator = torch.Generator().manual_seed(1)
    return Motion(
        pitch=torch.tensor([[3.0]]),
        yaw=torch.tensor([[-8.0]]),
        roll=torch.tensor([[1.0]]),
        t=torch.tensor([[0.02, -0.05, 0.4]]),
        exp=torch.randn(1, 21, 3, generator=generator) * 0.01,
        scale=torch.tensor([[1.2]]),
        kp=torch.randn(1, 21, 3, generator=generator) * 0.3,
        eye_open=torch.tensor([[0.3, 0.28]]),
        lip_open=torch.tensor([[0.05]]),
    )


def test_no_edit_changes_nothing(source, networks) -> None:
    x_s, x_d = edit_keypoints(source, FaceEdit(), networks=networks, stitching=False)
    assert torch.equal(x_s, source.keypoints())
    assert torch.equal(x_d, x_s)


def test_head_rotation_is_added_to_the_angles(source, networks) -> None:
    _, x_d = edit_keypoints(source, FaceEdit(yaw=15, pitch=-5, roll=9), networks=networks, stitching=False)
    rotation = rotation_matrix(torch.tensor([-2.0]), torch.tensor([7.0]), torch.tensor([10.0]))
    expected = 1.2 * (source.kp @ rotation + source.exp) + torch.tensor([0.02, -0.05, 0.0])
    torch.testing.assert_close(x_d, expected)


def test_smile_moves_the_corners_of_the_mouth_and_no_head_pose(source, networks) -> None:
    x_s, x_d = edit_keypoints(source, FaceEdit(smile=1.0), networks=networks, stitching=False)
    moved = (x_d - x_s)[0].abs().sum(dim=1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [3, 7, 13, 14, 16, 17, 20]
    torch.testing.assert_close((x_d - x_s)[0, 14, 1].item(), -0.02 * 1.2, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (FaceEdit(smile=0.5), {(20, 1): -0.005, (14, 1): -0.01}),
        (FaceEdit(wink=10), {(11, 1): 0.01, (13, 1): -0.003}),
        (FaceEdit(eyebrow=10), {(1, 1): 0.01, (2, 1): -0.01}),
        (FaceEdit(eyebrow=-10), {(1, 0): 0.01, (2, 0): -0.01}),
        (FaceEdit(pupil_x=10), {(11, 0): 0.007, (15, 0): 0.01}),
        (FaceEdit(pupil_x=-10), {(11, 0): -0.01, (15, 0): -0.007}),
        (FaceEdit(pupil_y=10), {(11, 1): -0.005, (15, 1): -0.005}),
        (FaceEdit(pout=0.05), {(19, 0): 0.05}),
        (FaceEdit(move_x=0.1, move_y=0.1), {(5, 0): -0.1, (5, 1): 0.1}),
    ],
)
def test_published_changes_of_the_expression(edit, expected, source, networks) -> None:
    """Each is added to the offsets, which the scale multiplies."""
    x_s, x_d = edit_keypoints(source, edit, networks=networks, stitching=False)
    for (keypoint, axis), change in expected.items():
        assert (x_d - x_s)[0, keypoint, axis].item() == pytest.approx(1.2 * change, abs=1e-6)


def test_zoom_is_a_factor_on_the_scale(source, networks) -> None:
    _, x_d = edit_keypoints(source, FaceEdit(zoom=1.1), networks=networks, stitching=False)
    torch.testing.assert_close(x_d, source.replace(scale=1.1 * source.scale).keypoints())


def test_eyes_and_lips_are_opened_as_far_as_was_asked(source, networks) -> None:
    x_s, x_d = edit_keypoints(source, FaceEdit(eyes=0.5, lip=0.2), networks=networks, stitching=False)
    flat = x_s.flatten(1)
    offsets = networks.retarget_eye(torch.cat([flat, source.eye_open, torch.tensor([[0.5]])], dim=1))
    offsets = offsets + networks.retarget_lip(torch.cat([flat, source.lip_open, torch.tensor([[0.2]])], dim=1))
    torch.testing.assert_close(x_d, x_s + offsets.unflatten(1, (21, 3)))


def test_stitching_is_applied_last(source, networks) -> None:
    _, plain = edit_keypoints(source, FaceEdit(smile=0.6), networks=networks, stitching=False)
    x_s, stitched = edit_keypoints(source, FaceEdit(smile=0.6), networks=networks)
    delta = networks.stitching(torch.cat([x_s.flatten(1), plain.flatten(1)], dim=1))[0]
    expected = plain + delta[:63].view(21, 3)
    expected[..., :2] += delta[63:]
    torch.testing.assert_close(stitched, expected)


def test_numbers_that_make_no_sense_are_named(source, networks) -> None:
    for edit, words in ((FaceEdit(yaw=float("nan")), "yaw is nan"), (FaceEdit(lip=float("inf")), "lip is inf")):
        with pytest.raises(ValueError, match=words):
            edit_keypoints(source, edit, networks=networks)


def test_eyes_without_landmarks_is_an_error(source, networks) -> None:
    with pytest.raises(ValueError, match="landmarks"):
        edit_keypoints(source.replace(eye_open=None), FaceEdit(eyes=0.3), networks=networks)


def test_the_expression_of_other_key_points_than_the_released_ones_is_not_edited(source) -> None:
    networks = LivePortrait.untrained(config=replace(ModelConfig.tiny(), num_keypoints=15))
    source = source.replace(exp=source.exp[:, :15], kp=source.kp[:, :15])
    _, x_d = edit_keypoints(source, FaceEdit(yaw=10, eyes=0.3), networks=networks)
    assert x_d.shape == (1, 15, 3)
    with pytest.raises(ValueError, match=r"^editing the expression needs .* 21 key points, these have 15: change yaw"):
        edit_keypoints(source, FaceEdit(smile=0.5), networks=networks)
