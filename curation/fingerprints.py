"""Hashes of a clip's face at regular times, by which copies of footage find each other (`curation.duplicates`).

The face is brought into one position by its landmarks, so scale, borders and the cut of the picture do not matter.
A clip is divided into steps of a fifth of a second, and each step has two words of 64 bits, the signs of the lowest
frequencies of a 32 x 32 picture:

- look: of the mean picture of the step. It tells people and scenes apart.
- change: of the difference to the mean picture two steps before, both moved by the same mean landmarks. It tells
  moments apart: what stays (the person, the light, a fixed background) is not in it, while head and face leave a
  pattern in time that no other moment repeats. It is 0 where nothing changed at all.

A still has one step; its second word goes on where the first ends. Mirroring a picture turns the signs of the odd
horizontal frequencies around: a mirrored copy has the hash XOR `MIRROR`.
"""

from __future__ import annotations

import cv2
import numpy as np

from model.faces.alignment import ARCFACE_POINTS, ARCFACE_SIZE_PX, similarity_transform
from model.faces.schemes import points5_from_points68

STEPS_PER_S = 5
CHANGE_STEPS = 2
"""The first so many steps of a clip have no change: their second word is 0."""

_SIDE_PX = 32
_PICTURE_PX = 128
_BITS = 64


def _frequencies() -> np.ndarray:
    """int [128, 2]: row and column of the lowest frequencies but the mean, in diagonals."""
    pairs = [(v, u) for v in range(_SIDE_PX) for u in range(_SIDE_PX) if u + v > 0]
    return np.array(sorted(pairs, key=lambda p: (p[0] + p[1], p[0]))[: 2 * _BITS])


_FREQUENCIES = _frequencies()


def _position() -> np.ndarray:
    """float [5, 2]: where the face's points go: where ArcFace puts them, but the same for a mirrored face."""
    points = (ARCFACE_POINTS + 0.5) * (_SIDE_PX / ARCFACE_SIZE_PX) - 0.5
    mirrored = points[[1, 0, 2, 4, 3]] * (-1, 1) + (_SIDE_PX - 1, 0)
    return (points + mirrored) / 2


_POSITION = _position()


def _words(bits: np.ndarray) -> np.ndarray:
    """uint64 [2] of bool [128]."""
    return np.packbits(bits, bitorder="little").view("<u8")


MIRROR = _words(_FREQUENCIES[:, 1] % 2 == 1)
"""uint64 [2]: which bits of a step's look (and of a still's second word) a mirrored picture turns around."""
MIRROR_CHANGE = MIRROR[0]


class FaceHasher:
    """Takes the pictures of a clip one after the other and makes its hashes."""

    def __init__(self, fps: float | None) -> None:
        """fps: pictures a second; None for a still."""
        self._fps = fps
        self._num = 0
        self._sum = np.zeros((_PICTURE_PX, _PICTURE_PX), np.float32)
        self._points: list[np.ndarray] = []
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []
        self._hashes: list[np.ndarray] = []
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, gray: np.ndarray, landmarks: np.ndarray) -> None:
        """The next picture: uint8 [S, S], and its landmarks: float [68, 2]."""
        scale = _PICTURE_PX / gray.shape[0]
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(gray, (_PICTURE_PX, _PICTURE_PX), interpolation=method).astype(np.float32)
        points = points5_from_points68(landmarks[None].astype(np.float32))[0].astype(np.float64)
        self._last = small, (points + 0.5) * scale - 0.5
        self.repeat()

    def repeat(self) -> None:
        """The picture before once more."""
        assert self._last is not None
        self._sum += self._last[0]
        self._points.append(self._last[1])
        self._num += 1
        if self._fps is None or self._num >= round((len(self._steps) + 1) * self._fps / STEPS_PER_S):
            self._finish_step()

    def _finish_step(self) -> None:
        picture = self._sum / len(self._points)
        self._steps.append((picture, np.mean(self._points, axis=0)))
        points = np.mean([points for _, points in self._steps[-CHANGE_STEPS - 1 :]], axis=0)
        look = _signs(picture, points)
        if self._fps is None:
            words = _words(look)
        elif len(self._steps) > CHANGE_STEPS:
            change = _signs(picture - self._steps[-CHANGE_STEPS - 1][0], points)
            words = _words(np.concatenate([look[:_BITS], change[:_BITS]]))
        else:
            words = _words(np.concatenate([look[:_BITS], np.zeros(_BITS, bool)]))
        self._hashes.append(words)
        self._sum[:] = 0
        self._points = []
        if len(self._steps) > CHANGE_STEPS:
            self._steps[-CHANGE_STEPS - 1] = (np.empty(0), self._steps[-CHANGE_STEPS - 1][1])  # not needed any more

    def words(self) -> np.ndarray:
        """uint64 [2 * steps]: both words of every full step."""
        return np.concatenate(self._hashes) if self._hashes else np.zeros(0, np.uint64)


def _signs(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """bool [128]: signs of the frequencies of a picture (float32 [128, 128]) of a face with these 5 points."""
    matrix = similarity_transform(points, _POSITION)[:2]
    zoom = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    smooth = cv2.GaussianBlur(picture, (0, 0), min(max(0.3, 0.45 / zoom), 8.0))
    moved = cv2.warpAffine(
        smooth, matrix, (_SIDE_PX, _SIDE_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return cv2.dct(moved)[_FREQUENCIES[:, 0], _FREQUENCIES[:, 1]] > 0
