"""Landmark schemes: everything becomes the 68 iBUG points.

iBUG order, right and left as the subject has them: 0-16 jaw from the right ear over the chin (8) to the left ear,
17-21 right brow, 22-26 left brow, 27-30 bridge of the nose, 31-35 under the nose, 36-41 right eye, 42-47 left eye (each
from its image-left corner over the upper lid), 48-59 outer lips from the right corner over the upper lip, 60-67 inner
lips likewise.
"""

from __future__ import annotations

import numpy as np

from model.faces import Detections
from model.framing import averaging

# One or two FaceMesh vertices for each iBUG point; two are averaged where none lies on the point.
_MESH_VERTICES: tuple[tuple[int, ...], ...] = (
    # jaw
    *((127,), (234,), (93,), (132,), (58,), (172,), (136,), (150, 149), (152,)),
    *((379, 378), (365,), (397,), (288,), (361,), (323,), (454,), (356,)),
    # brows
    *((70,), (63,), (105,), (66,), (107,)),
    *((336,), (296,), (334,), (293,), (300,)),
    # nose
    *((168, 6), (197,), (5,), (4,)),
    *((98,), (97,), (2,), (326,), (327,)),
    # eyes
    *((33,), (160,), (158,), (133,), (153,), (144,)),
    *((362,), (385,), (387,), (263,), (373,), (380,)),
    # outer lips
    *((61,), (39,), (37,), (0,), (267,), (269,), (291,), (405,), (314,), (17,), (84,), (181,)),
    # inner lips
    *((78,), (81,), (13,), (311,), (308,), (402,), (14,), (178,)),
)
_MESH_FIRST = np.array([vertices[0] for vertices in _MESH_VERTICES])
_MESH_SECOND = np.array([vertices[-1] for vertices in _MESH_VERTICES])

# The point of the 106-point scheme (JD, as 2d106det gives them) for each iBUG point; all 68 have one.
_POINTS106 = np.array(
    [
        *(1, 10, 12, 14, 16, 3, 5, 7, 0, 23, 21, 19, 32, 30, 28, 26, 17),  # jaw
        *(43, 48, 49, 51, 50, 102, 103, 104, 105, 101),  # brows
        *(72, 73, 74, 86, 78, 79, 80, 85, 84),  # nose
        *(35, 41, 42, 39, 37, 36, 89, 95, 96, 93, 91, 90),  # eyes
        *(52, 64, 63, 71, 67, 68, 61, 58, 59, 53, 56, 55),  # outer lips
        *(65, 66, 62, 70, 69, 57, 60, 54),  # inner lips
    ]
)


_POINTS5 = averaging(68, [36, 37, 38, 39, 40, 41], [42, 43, 44, 45, 46, 47], [30], [48], [54])
# Detectors draw a box up to the hairline: above the brows by about 0.3 of the brow-to-chin height.
_HAIRLINE = np.full(68, 1 / 68) + 1.6 * (_POINTS5[:2].mean(0) - _POINTS5[3:].mean(0))


def points68_from_points106(points106: np.ndarray) -> np.ndarray:
    """iBUG points of the 106-point scheme. points106: float [..., 106, C]. Returns [..., 68, C]."""
    return points106[..., _POINTS106, :]


def points68_from_mesh(mesh: np.ndarray) -> np.ndarray:
    """iBUG points of a FaceMesh. mesh: float [..., 468, C]. Returns [..., 68, C]."""
    return (mesh[..., _MESH_FIRST, :] + mesh[..., _MESH_SECOND, :]) / 2


def points5_from_points68(points68: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners of [..., 68, 2]: float32 [..., 5, 2], ordered as `Detections.points`."""
    return (_POINTS5 @ np.asarray(points68, np.float64)).astype(np.float32)


def detections_from_points68(points68: np.ndarray) -> Detections:
    """See `Detections.from_points68`."""
    points = np.asarray(points68, np.float64).reshape(-1, 68, 2)
    hairline = _HAIRLINE @ points
    low, high = np.minimum(points.min(1), hairline), np.maximum(points.max(1), hairline)
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    return Detections(boxes, np.ones(len(points), np.float32), points5_from_points68(points))
