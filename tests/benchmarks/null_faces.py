"""A face analyser that costs nothing, for benchmarks of what surrounds it: `--faces.detector tests...:NullFaces`.

It sees one face in the middle of every picture of at least 200 px and none in smaller ones. Who it is stands in the
picture's first pixel, as `paint_person` left it there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.faces import Detections, FacesConfig, Landmarks, WeightInfo

RECIPE_OPTIONS = tuple(
    text
    for part in ("detector", "landmarker", "embedder")
    for text in (f"--faces.{part}", "tests.benchmarks.null_faces:NullFaces")
)
MIN_SIDE_PX = 200
NUM_DIMENSIONS = 128


def paint_person(picture: np.ndarray, person: int) -> None:
    """Write a number below 2^24 into the first pixel of uint8 [H, W, 3]."""
    picture[0, 0] = [person >> 16 & 255, person >> 8 & 255, person & 255]


def _arc(num: int, center: tuple[float, float], radii: tuple[float, float], start_deg: float, end_deg: float):
    angle = np.radians(np.linspace(start_deg, end_deg, num))
    return np.stack([center[0] + radii[0] * np.cos(angle), center[1] + radii[1] * np.sin(angle)], 1)


def _layout() -> np.ndarray:
    """float [68, 2]: an upright face in the iBUG scheme, in a square of side 1."""
    eyes = [_arc(7, (x, 0.38), (0.09, 0.03), 180, 540)[:6] for x in (0.3, 0.7)]
    brows = [_arc(5, (x, 0.3), (0.13, 0.06), 180, 360) for x in (0.3, 0.7)]
    nose = [np.stack([np.full(4, 0.5), np.linspace(0.38, 0.56, 4)], 1), _arc(5, (0.5, 0.6), (0.09, 0.03), 180, 0)]
    mouth = [_arc(13, (0.5, 0.78), (0.17, 0.07), 180, 540)[:12], _arc(9, (0.5, 0.78), (0.13, 0.02), 180, 540)[:8]]
    return np.concatenate([_arc(17, (0.5, 0.4), (0.5, 0.6), 180, 0), *brows, *nose, *eyes, *mouth])


_LAYOUT = _layout()


class NullFaces:
    """Detector, landmarker and embedder in one."""

    embedding_size = NUM_DIMENSIONS
    same_person_similarity = 0.5
    weights = {"none": WeightInfo("none", "0" * 64, "none")}  # noqa: RUF012  (part of the interface)

    def __init__(self, config: FacesConfig) -> None:
        pass

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return [self._middle(*image.shape[:2]) for image in images]

    def _middle(self, height: int, width: int) -> Detections:
        side = min(height, width)
        if side < MIN_SIDE_PX:
            return Detections.empty()
        points68 = (_LAYOUT - 0.5) * 0.5 * side + np.array([width, height]) / 2
        return Detections.from_points68(points68[None].astype(np.float32))

    def landmarks(self, image: np.ndarray, faces: Detections) -> Landmarks:
        boxes = faces.boxes
        size = (boxes[:, 2] - boxes[:, 0])[:, None, None]
        center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        points68 = ((_LAYOUT - 0.5) * size + center).astype(np.float32)
        return Landmarks(points68, np.ones(len(faces), np.float32), np.zeros((len(faces), 3), np.float32))

    def embed(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The person's own direction, and a little of the picture's."""
        red, green, blue = (int(value) for value in image[0, 0])
        person, picture = red << 16 | green << 8 | blue, int(image[::16, ::16].sum(dtype=np.int64))
        vector = sum(
            share * np.random.default_rng(seed).standard_normal(NUM_DIMENSIONS)
            for share, seed in ((1.0, [0, person]), (0.5, [1, picture]))
        )
        return np.repeat((vector / np.linalg.norm(vector))[None].astype(np.float32), len(points), 0)
