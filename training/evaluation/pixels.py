"""Figures of pairs of pictures, on the whole picture and inside the face."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

MAX_PSNR_DB = 100.0
"""What identical pictures get: infinity can be neither averaged nor written as JSON."""
SSIM_BORDER_PX = 5
"""Half of SSIM's window of 11 pixels."""


def to_size(images: np.ndarray, size_px: int) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] brought to [N, size, size, 3]: by area if they get smaller."""
    if images.shape[1:3] == (size_px, size_px):
        return images
    method = cv2.INTER_AREA if images.shape[1] > size_px else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (size_px, size_px), interpolation=method) for image in images])


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float().div_(255)


def face_masks(points68: np.ndarray, size_px: int) -> np.ndarray:
    """Convex hulls of landmarks: bool [N, size, size].

    points68: float [N, 68, 2], as fractions of the picture's side.
    """
    masks = np.zeros((len(points68), size_px, size_px), np.uint8)
    for mask, points in zip(masks, points68, strict=True):
        hull = cv2.convexHull(np.round(points * size_px - 0.5).astype(np.int32))
        cv2.fillConvexPoly(mask, hull, 1)
    return masks.astype(bool)


def pixel_figures(
    result: Tensor, target: Tensor, face: Tensor, groups: tuple[str, ...] = ("l1", "psnr", "ssim")
) -> dict[str, np.ndarray]:
    """L1, PSNR and SSIM of each frame, whole and inside the face: figure -> float64 [N]; NaN where there is no face.

    result, target: float [N, 3, H, W] in [0, 1]. face: bool [N, H, W].
    """
    weight = face[:, None].double()
    difference = result.double() - target.double()
    figures: dict[str, Tensor] = {}
    if "l1" in groups:
        figures["l1"] = difference.abs().mean((1, 2, 3))
        figures["face_l1"] = _masked_mean(difference.abs(), weight)
    if "psnr" in groups:
        figures["psnr"] = _psnr(difference.square().mean((1, 2, 3)))
        figures["face_psnr"] = _psnr(_masked_mean(difference.square(), weight))
    if "ssim" in groups:
        _, ssim_map = structural_similarity_index_measure(  # in float32: its windows are slow in float64 on a CPU
            result, target, data_range=1.0, reduction="none", return_full_image=True
        )
        # Windows that reach over the border are left out, as in the definition of SSIM (torchmetrics mirrors pictures).
        inner = slice(SSIM_BORDER_PX, -SSIM_BORDER_PX)
        figures["ssim"] = ssim_map[..., inner, inner].double().mean((1, 2, 3))
        figures["face_ssim"] = _masked_mean(ssim_map.double(), weight)
    return {name: value.cpu().numpy() for name, value in figures.items()}


def masked_l1(result: Tensor, target: Tensor, weight: Tensor) -> np.ndarray:
    """Mean absolute difference of each frame [N, 3, H, W] where a soft mask [N, 1, H, W] is: float64 [N]."""
    return _masked_mean((result.double() - target.double()).abs(), weight.double()).cpu().numpy()


def _masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of [N, C, H, W] weighted by [N, 1, H, W]: [N]; NaN where the weights are all zero."""
    total = weight.sum((1, 2, 3)) * values.shape[1]
    return torch.where(total > 0, (values * weight).sum((1, 2, 3)) / total, torch.nan)


def _psnr(mean_square: Tensor) -> Tensor:
    return (-10 * torch.log10(mean_square)).clamp(max=MAX_PSNR_DB)
