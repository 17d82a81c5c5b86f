from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from training.evaluation.pixels import MAX_PSNR_DB, face_masks, masked_l1, pixel_figures, to_size, to_tensor


def _pictures() -> tuple[np.ndarray, np.ndarray]:
    """Two pairs of pictures uint8 [2, 96, 96, 3]: slightly and strongly blurred."""
    target = np.stack([skimage.data.astronaut()[40:136, 170:266], skimage.data.coffee()[100:196, 200:296]])
    return np.stack([cv2.GaussianBlur(target[0], (0, 0), 1), cv2.GaussianBlur(target[1], (0, 0), 4)]), target


def _face() -> np.ndarray:
    mask = np.zeros((2, 96, 96), bool)
    mask[0, 30:60, 20:80] = mask[1, 20:50, 50:70] = True
    return mask


def test_figures_equal_those_of_numpy_and_scikit_image() -> None:
    result, target = _pictures()
    face = _face()
    figures = pixel_figures(to_tensor(result), to_tensor(target), torch.from_numpy(face))
    for k in range(2):
        a, b = (pictures[k].astype(np.float64) / 255 for pictures in (result, target))
        ssim, ssim_map = structural_similarity(
            a, b, channel_axis=2, data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True
        )
        assert figures["l1"][k] == pytest.approx(np.abs(a - b).mean(), rel=1e-6)
        assert figures["face_l1"][k] == pytest.approx(np.abs(a - b)[face[k]].mean(), rel=1e-6)
        assert figures["psnr"][k] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-4)
        assert figures["face_psnr"][k] == pytest.approx(-10 * np.log10(((a - b) ** 2)[face[k]].mean()), abs=1e-4)
        assert figures["ssim"][k] == pytest.approx(ssim, abs=2e-5)
        assert figures["face_ssim"][k] == pytest.approx(ssim_map[face[k]].mean(), abs=2e-5)
    assert figures["ssim"][0] > figures["ssim"][1] + 0.05


def test_equal_pictures_are_perfect() -> None:
    _, target = _pictures()
    figures = pixel_figures(to_tensor(target), to_tensor(target), torch.from_numpy(_face()))
    for name, best in (("l1", 0.0), ("face_l1", 0.0), ("psnr", MAX_PSNR_DB), ("face_psnr", MAX_PSNR_DB)):
        assert (figures[name] == best).all()
    for name in ("ssim", "face_ssim"):
        np.testing.assert_allclose(figures[name], 1.0, atol=1e-6)


def test_no_face_gives_no_number() -> None:
    result, target = _pictures()
    nowhere = torch.zeros(2, 96, 96, dtype=torch.bool)
    figures = pixel_figures(to_tensor(result), to_tensor(target), nowhere, ("l1",))
    assert set(figures) == {"l1", "face_l1"}
    assert np.isnan(figures["face_l1"]).all()
    assert np.isfinite(figures["l1"]).all()


def test_soft_mask_weighs_the_difference() -> None:
    result, target = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    result[0, :, 0, 0], result[0, :, 1, 1] = 0.4, 1.0
    weight = torch.tensor([[[[1.0, 0.0], [0.0, 0.5]]]])
    assert masked_l1(result, target, weight) == pytest.approx((0.4 * 1 + 1.0 * 0.5) / 1.5)


def test_face_mask_is_the_hull_of_the_landmarks() -> None:
    points = np.full((1, 68, 2), 0.5)
    points[0, :4] = np.array([[16, 16], [48, 16], [48, 48], [16, 48]]) / 64 + 0.5 / 64  # centres of pixels
    mask = face_masks(points, 64)[0]
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 48, 16, 48)
    assert mask[16:49, 16:49].all()


def test_sizes_change_by_area() -> None:
    checks = np.zeros((1, 4, 4, 3), np.uint8)
    checks[:, ::2, ::2] = 100
    assert (to_size(checks, 2) == 25).all()
    assert to_size(checks, 4) is checks
    dot = np.zeros((1, 9, 9, 3), np.uint8)
    dot[:, 0, 0] = 90
    assert to_size(dot, 3)[0, :, :, 0].tolist() == [[10, 0, 0], [0, 0, 0], [0, 0, 0]]
