"""What is measured on a cropped face: sharpness, exposure, movement."""

from __future__ import annotations

import cv2
import numpy as np

_SHARPNESS_SIDE_PX = 256
_DARK, _BRIGHT = 16, 250
_LEVELS = np.arange(256) / 255.0


def face_patch(gray: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The part of a grey picture (uint8 [H, W]) inside the box of the landmarks (float [68, 2]); at least 2 x 2."""
    height, width = gray.shape
    left, top = np.clip(np.floor(landmarks.min(0)).astype(int), 0, (width - 2, height - 2))
    right, bottom = np.clip(np.ceil(landmarks.max(0)).astype(int), (left + 2, top + 2), (width, height))
    return np.ascontiguousarray(gray[top:bottom, left:right])


def sharpness(patch: np.ndarray) -> float:
    """Standard deviation of the Laplacian of a grey face (uint8 [h, w]) brought to 256 px, over that of the face.

    The size is fixed so that near and far faces compare; the ratio keeps dim faces from counting as blurred.
    """
    scale = _SHARPNESS_SIDE_PX / max(patch.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = (max(2, round(patch.shape[1] * scale)), max(2, round(patch.shape[0] * scale)))
    resized = cv2.resize(patch, size, interpolation=method)
    detail = cv2.meanStdDev(cv2.Laplacian(resized, cv2.CV_16S))[1]
    contrast = cv2.meanStdDev(resized)[1]
    return float(detail[0, 0]) / max(float(contrast[0, 0]), 1.0)


def exposure(patch: np.ndarray) -> tuple[float, float, float]:
    """Mean luma 0..1, share of dark and share of bright pixels of a grey face (uint8 [h, w])."""
    counts = cv2.calcHist([patch], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    return (
        float(counts @ _LEVELS) / patch.size,
        float(counts[:_DARK].sum()) / patch.size,
        float(counts[_BRIGHT + 1 :].sum()) / patch.size,
    )


def eye_distance(landmarks: np.ndarray) -> float:
    """Distance between the eyes' centres (float [68, 2] iBUG), pixels; at least 1."""
    return max(1.0, float(np.linalg.norm(landmarks[36:42].mean(0) - landmarks[42:48].mean(0))))


def movement(landmarks: np.ndarray, before: np.ndarray) -> float:
    """Mean movement of the landmarks (float [68, 2]) since the frame before, in distances between the eyes."""
    return float(np.linalg.norm(landmarks - before, axis=1).mean()) / eye_distance(landmarks)


def jitter(landmarks: np.ndarray) -> float:
    """Median size of the landmarks' second difference in time, in distances between the eyes: float [T, 68, 2].

    Small for any smooth movement, large for landmarks that jump; 0 below three frames.
    """
    if len(landmarks) < 3:
        return 0.0
    second = landmarks[2:] - 2 * landmarks[1:-1] + landmarks[:-2]
    distance = np.median([eye_distance(frame) for frame in landmarks])
    return float(np.median(np.linalg.norm(second, axis=2).mean(1)) / distance)
