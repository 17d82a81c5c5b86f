"""Paste-back touches only what lies under the crop, and joins without a seam."""

from __future__ import annotations

import numpy as np
import pytest

from model.animation.pasting import paste_crops, soft_mask
from model.framing import warp


def _matrix(scale: float, angle_deg: float, x: float, y: float) -> np.ndarray:
    """Frame to crop."""
    cos, sin = scale * np.cos(np.radians(angle_deg)), scale * np.sin(np.radians(angle_deg))
    return np.array([[cos, sin, x], [-sin, cos, y], [0, 0, 1.0]])


def _smooth_picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 50), (x + y) % 256 * 0 + 80.0], 2).astype(
        np.uint8
    )


def test_mask_is_one_inside_and_fades_to_nothing_at_the_rim() -> None:
    mask = soft_mask(256)[..., 0]
    assert mask.dtype == np.float32
    assert mask[128, 128] == 1.0
    assert (mask[64:192, 64:192] == 1.0).all()
    assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) == 0.0
    assert np.array_equal(mask, mask.T)
    assert np.array_equal(mask, mask[::-1])
    assert np.abs(np.diff(mask, axis=0)).max() < 0.06  # no visible edge
    assert 0.7 < mask.mean() < 0.9


@pytest.mark.parametrize("matrix", [_matrix(1.0, 0, -50, -40), _matrix(0.6, 17, 20, 60), _matrix(2.0, -10, -150, -100)])
def test_unchanged_crop_leaves_the_frame_as_it_was(matrix: np.ndarray) -> None:
    frame = _smooth_picture(300, 400)
    crop = warp(frame, matrix, 256)
    result = frame.copy()
    paste_crops(result, [(crop, matrix)])
    inside = warp(np.ones((300, 400), np.float32), matrix, 256).min() == 1.0
    if inside:
        assert np.abs(result.astype(int) - frame).max() <= 4
    assert np.abs(result.astype(int) - frame).mean() < 0.5


def test_only_the_frame_under_the_crop_changes() -> None:
    frame = np.full((200, 300, 3), 100, np.uint8)
    crop = np.full((64, 64, 3), 200, np.uint8)
    paste_crops(frame, [(crop, _matrix(1.0, 0, -120, -60))])  # covers x 120..183, y 60..123
    assert (frame[60 + 16 : 124 - 16, 120 + 16 : 184 - 16] == 200).all()
    frame[60:124, 120:184] = 100
    assert (frame == 100).all()


def test_crop_beyond_the_picture() -> None:
    frame = np.full((100, 100, 3), 100, np.uint8)
    crop = np.full((64, 64, 3), 200, np.uint8)
    paste_crops(frame, [(crop, _matrix(1.0, 0, 32, 32))])  # the picture's corner is the crop's centre
    assert frame[0, 0, 0] == 200
    assert frame[40, 40, 0] == 100
    outside = frame.copy()
    paste_crops(outside, [(crop, _matrix(1.0, 0, 500, 500))])
    assert np.array_equal(outside, frame)


def test_faces_close_together_leave_each_other_as_they_move() -> None:
    """Crops are 2.3 times as large as their faces, so faces side by side lie in each other's crops."""
    original = _smooth_picture(300, 400)
    matrices = [_matrix(1.0, 0, -40, -30), _matrix(1.0, 0, -40 - 100, -30)]  # of faces of 100 pixels
    unmoved = [warp(original, matrix, 230) for matrix in matrices]
    face = np.hypot(*(np.mgrid[0:230, 0:230] - 114.5)) < 50
    moved = np.where(face[..., None], 255 - unmoved[0], unmoved[0])
    alone = original.copy()
    paste_crops(alone, [(moved, matrices[0])])
    placed = [(moved, matrices[0]), (unmoved[1], matrices[1])]
    for faces in (placed, placed[::-1]):
        result = original.copy()
        paste_crops(result, faces)
        lost = np.abs(result.astype(int) - alone).sum() / np.abs(original.astype(int) - alone).sum()
        assert lost < 0.05
