"""How far eyes and lips are open, from 68 landmarks."""

from __future__ import annotations

import numpy as np


def eye_openness(points68: np.ndarray) -> np.ndarray:
    """Distance between the lids over the width of the eye: 0.25 to 0.4 open; closed 0.1 to 0.15 by FaceMesh.

    points68: float [..., 68, 2]. Returns float32 [..., 2]: the subject's right eye (left in the image), left eye.
    """
    return np.stack([_opening(points68, 36), _opening(points68, 42)], axis=-1).astype(np.float32)


def lip_openness(points68: np.ndarray) -> np.ndarray:
    """Gap between the inner lips over the width of the mouth: about 0 closed, 0.5 and more wide open.

    points68: float [..., 68, 2]. Returns float32 [...].
    """
    points = np.asarray(points68, np.float64)
    gap = np.linalg.norm(points[..., [61, 62, 63], :] - points[..., [67, 66, 65], :], axis=-1).mean(-1)
    width = np.linalg.norm(points[..., 48, :] - points[..., 54, :], axis=-1)
    return (gap / np.maximum(width, 1e-6)).astype(np.float32)


def _opening(points68: np.ndarray, first: int) -> np.ndarray:
    """Mean of the two lid distances over the corner distance; points run round the eye from its right corner."""
    eye = np.asarray(points68, np.float64)[..., first : first + 6, :]
    gap = np.linalg.norm(eye[..., [1, 2], :] - eye[..., [5, 4], :], axis=-1).mean(-1)
    width = np.linalg.norm(eye[..., 0, :] - eye[..., 3, :], axis=-1)
    return gap / np.maximum(width, 1e-6)
