"""What is measured on a cropped face: sharpness, exposure, movement."""

from __future__ import annotations

import cv2
import numpy as np

_SHARPNESS_SIDE_PX = 256
_DARK, _BRIGHT = 16, 250
_MIN_STEP = 0.5
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


def jitter(landmarks: np.ndarray, times: np.ndarray) -> float:
    """Median size of the landmarks' second difference in time, in distances between the eyes: float [T, 68, 2].

    times: float [T], when they were seen, in frames of the clip; repeats are left out, for they make jumps of any
    movement. Of frames that are not 1 apart it is twice the way from the line between the neighbours, over the step
    where that is larger than 1.
    Small for any smooth movement, large for landmarks that jump; 0 below three frames.
    """
    if len(landmarks) < 3:
        return 0.0
    # Rounded for weights of exactly 1 where frames are 1 apart; none are closer than about half.
    steps = np.maximum(np.round(np.diff(times), 6), _MIN_STEP).astype(landmarks.dtype)
    step = (steps[:-1] + steps[1:]) / 2
    before, after = (part[:, None, None] / step[:, None, None] for part in (steps[:-1], steps[1:]))
    second = landmarks[2:] * before - 2 * landmarks[1:-1] + landmarks[:-2] * after
    distance = np.median([eye_distance(frame) for frame in landmarks])
    return float(np.median(np.linalg.norm(second, axis=2).mean(1) / np.maximum(step, 1)) / distance)
