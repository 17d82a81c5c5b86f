"""Eyes and lips opened by hand: by how much, what stays, and what W is told of it."""

from __future__ import annotations

import pytest
import torch

from model.keypoints import open_ratios_68
from training.edits import EYES, LIPS, edit_landmarks, keypoint_offsets
from training.losses import GUIDANCE_LANDMARKS, RELEASED_SLOTS


@pytest.fixture
def face(make_face68) -> torch.Tensor:
    """An upright face and the same one turned by 40 degrees: [2, 68, 2]."""
    upright = torch.from_numpy(make_face68((256.0, 250.0), 160.0)).float() / 256 - 1
    cos, sin = torch.tensor(40.0).deg2rad().cos(), torch.tensor(40.0).deg2rad().sin()
    return torch.stack([upright, upright @ torch.tensor([[cos, sin], [-sin, cos]])])


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
def test_openness_is_as_drawn_on_faces_at_any_angle(face: torch.Tensor, drawn: float) -> None:
    eyes, lip = open_ratios_68(face)
    opened_eyes, opened_lip = open_ratios_68(edit_landmarks(face, torch.full((2, 2), drawn)))
    torch.testing.assert_close(opened_eyes, eyes * (EYES[0] + drawn * (EYES[1] - EYES[0])), rtol=1e-4, atol=1e-4)
    # The lower lip moves straight away from the mouth's line, or up until it meets the upper one.
    expected = (lip + LIPS[0] + drawn * (LIPS[1] - LIPS[0])).clamp(min=0)
    torch.testing.assert_close(opened_lip, expected, rtol=2e-2, atol=2e-3)


def test_only_upper_lids_and_lower_lip_move_and_their_key_points_with_them(face: torch.Tensor) -> None:
    edited = edit_landmarks(face, torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    moved = (edited != face).any(dim=-1)
    points = [37, 38, 43, 44, 55, 56, 57, 58, 59, 65, 66, 67]
    assert moved[:, points].all()
    assert moved.sum() == 2 * len(points)
    offsets = keypoint_offsets(face, edited, RELEASED_SLOTS, 21)
    assert offsets.shape == (2, 21, 3)
    for landmark, slot in zip(GUIDANCE_LANDMARKS, RELEASED_SLOTS, strict=True):
        assert torch.equal(offsets[:, slot, :2], (edited - face)[:, landmark])
    assert offsets.any(dim=-1).sum() == 2 * 3  # both upper lids and the lower lip


def test_eyes_and_lips_are_drawn_apart(face: torch.Tensor) -> None:
    (eyes, lip), (edited_eyes, edited_lip) = (
        open_ratios_68(points) for points in (face, edit_landmarks(face, torch.tensor([[0.0, 1.0], [0.0, 1.0]])))
    )
    torch.testing.assert_close(edited_eyes, EYES[0] * eyes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edited_lip, lip + LIPS[1], rtol=2e-2, atol=2e-3)


def test_unknown_landmarks_move_nothing(face: torch.Tensor) -> None:
    face[1] = torch.nan
    edited = edit_landmarks(face, torch.ones(2, 2))
    assert edited[1].isnan().all()
    assert not keypoint_offsets(face, edited, RELEASED_SLOTS, 21)[1].any()
