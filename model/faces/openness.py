"""How far eyes and lips are open, from 68 landmarks, for the labels of frames.

The mean of the gaps along lids and lips, so that no single point decides. What the retargeting networks are asked is
the published measure, the gap in the middle alone (`model.keypoints.openness`).
"""

from __future__ import annotations

import numpy as np

_EYE_PAIRS = np.array([[(37, 41), (38, 40), (36, 39)], [(43, 47), (44, 46), (42, 45)]])
_LIP_PAIRS = np.array([(61, 67), (62, 66), (63, 65), (48, 54)])


def eye_openness(points68: np.ndarray) -> np.ndarray:
    """Distance between the lids over the width of the eye: 0.25 to 0.4 open; closed 0.1 to 0.15 by FaceMesh.

    points68: float [..., 68, 2]. Returns float32 [..., 2]: the subject's right eye (left in the image), left eye.
    """
    return _opening(points68, _EYE_PAIRS)


def lip_openness(points68: np.ndarray) -> np.ndarray:
    """Gap between the inner lips over the width of the mouth: about 0 closed, 0.5 and more wide open.

    points68: float [..., 68, 2]. Returns float32 [...].
    """
    return _opening(points68, _LIP_PAIRS)


def _opening(points68: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Mean distance of all pairs of points but the last, over that of the last. pairs: int [..., P, 2]."""
    points = np.asarray(points68, np.float64)
    difference = points[..., pairs[..., 0], :] - points[..., pairs[..., 1], :]
    distance = np.hypot(difference[..., 0], difference[..., 1])
    return (distance[..., :-1].mean(-1) / np.maximum(distance[..., -1], 1e-6)).astype(np.float32)
