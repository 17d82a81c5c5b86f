"""Faces brought into the position that a network expects."""

from __future__ import annotations

import numpy as np

from model import framing

ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where ArcFace, and SFace after it, expect the 5 points in a crop of 112 x 112 pixels."""
ARCFACE_SIZE_PX = 112
_CANVAS_MULTIPLE_PX = 32  # the coarsest stride of the detectors


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation, uniform scale and shift that bring source to target with the least squared error, no reflection.

    source, target: float [N, 2]. Returns float64 [3, 3].
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    # In the complex plane rotation and scale are one factor, and least squares has a closed form.
    from_mean = (source - source_mean) @ (1, 1j)
    to_mean = (target - target_mean) @ (1, 1j)
    factor = np.vdot(from_mean, to_mean) / max(np.vdot(from_mean, from_mean).real, 1e-12)
    matrix = np.eye(3)
    matrix[:2, :2] = [[factor.real, -factor.imag], [factor.imag, factor.real]]
    matrix[:2, 2] = target_mean - matrix[:2, :2] @ source_mean
    return matrix


def arcface_crop(image: np.ndarray, points: np.ndarray, size_px: int = ARCFACE_SIZE_PX) -> np.ndarray:
    """The aligned face that embedding networks see. points: float [5, 2]. Returns uint8 [size_px, size_px, 3]."""
    matrix = similarity_transform(points, ARCFACE_POINTS * (size_px / ARCFACE_SIZE_PX))
    return framing.warp(image, matrix, size_px)


def roll_deg(points: np.ndarray) -> float:
    """In-plane rotation of the line from the eyes to the mouth; clockwise is positive. points: float [5, 2]."""
    eyes, mouth = framing.eye_and_mouth_centers(points)
    return float(np.degrees(np.arctan2(eyes[0] - mouth[0], mouth[1] - eyes[1])))


def upright_square(box: np.ndarray, points: np.ndarray, *, scale: float, size_px: int) -> np.ndarray:
    """Transform of a square around a detected face, `scale` times its box, turned upright.

    box: float [4]. points: float [5, 2]. Returns float64 [3, 3], image pixels to square pixels.
    """
    box = np.asarray(box, np.float64)
    side = max(box[2] - box[0], box[3] - box[1], 1e-3) * scale
    zoom = size_px / side
    angle = np.radians(roll_deg(points))
    matrix = np.eye(3)
    matrix[:2, :2] = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix[:2, 2] = (size_px - 1) / 2 - matrix[:2, :2] @ ((box[:2] + box[2:]) / 2)
    return matrix


def letterbox(width_px: int, height_px: int, *, size_px: int, border: float) -> tuple[np.ndarray, int, int]:
    """Fit a picture and a border of `border` times its longer side around it into a canvas.

    The longer side of picture and border becomes `size_px`, the canvas is rounded up to a multiple of 32. The zoom
    across and down may differ by what makes the border whole pixels.
    Returns the float64 [3, 3] transform from picture to canvas, and the canvas' width and height.
    """
    longer = max(width_px, height_px)
    zoom = size_px / (longer * (1 + 2 * border))
    canvas = [
        int(np.ceil(side * zoom / _CANVAS_MULTIPLE_PX - 1e-9)) * _CANVAS_MULTIPLE_PX
        for side in (width_px + 2 * border * longer, height_px + 2 * border * longer)
    ]
    matrix = np.eye(3)
    for axis, side in enumerate((width_px, height_px)):
        # As many whole pixels of border on both sides as come nearest to the zoom: then the warp is a resize.
        shown = side + 2 * round((canvas[axis] / zoom - side) / 2)
        matrix[axis, axis] = canvas[axis] / shown
        matrix[axis, 2] = (canvas[axis] - 1) / 2 - matrix[axis, axis] * (side - 1) / 2
    return matrix, canvas[0], canvas[1]
