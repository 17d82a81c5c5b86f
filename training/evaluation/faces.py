"""What an analyser sees in a frame, and figures of pairs of faces: identity, expression, pose, openness, jitter."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from model.faces import FaceAnalyser
from model.faces.pose import euler_deg, rotation_from_euler
from model.keypoints import open_ratios_68

ANALYSED_SIZE_PX = 512
"""Every picture is looked at in this size, so that small results are not found worse for their size alone."""
MIN_PRESENCE = 0.5

# Nose and eye corners of a frontal face, by iBUG point: x to the right, y down, in distances between the outer eye
# corners. From MediaPipe's canonical face model (Apache-2.0); points that stick out of the face's plane are left out.
_FRONTAL = {
    27: (0.000, -0.024),
    31: (-0.158, 0.491),
    33: (0.000, 0.534),
    35: (0.158, 0.491),
    36: (-0.500, 0.000),
    39: (-0.209, 0.008),
    42: (0.209, 0.008),
    45: (0.500, 0.000),
}
_RIGID_INDICES, _RIGID = np.array(list(_FRONTAL)), np.array(list(_FRONTAL.values()))
_EXPRESSIVE = np.array([*range(17, 27), 37, 38, 40, 41, 43, 44, 46, 47, *range(48, 68)])  # brows, lids, mouth


@dataclass(frozen=True, kw_only=True)
class Face:
    """The face of one frame."""

    points68: np.ndarray
    """float64 [68, 2]: fractions of the picture's side."""
    pose_deg: np.ndarray
    """float64 [3]: yaw, pitch, roll."""
    embedding: np.ndarray | None
    """float32 [D] of unit length; None where it was not asked for."""

    @property
    def rotation(self) -> np.ndarray:
        """[3, 3], for column vectors."""
        return rotation_from_euler(*self.pose_deg)

    @property
    def expression(self) -> np.ndarray:
        """Brow, eyelid and mouth landmarks on a frontal face: float64 [38, 2], in distances between the eye corners."""
        rigid = np.column_stack([self.points68[_RIGID_INDICES], np.ones(len(_RIGID))])
        affine = np.linalg.lstsq(rigid, _RIGID, rcond=None)[0]
        return np.column_stack([self.points68[_EXPRESSIVE], np.ones(len(_EXPRESSIVE))]) @ affine

    @property
    def openness(self) -> np.ndarray:
        """float64 [3]: right eye, left eye, lips, as stage II and the animation measure them."""
        eyes, lips = open_ratios_68(self.points68[None])
        return np.array([*eyes[0].tolist(), lips.item()], np.float64)


class FaceReader:
    """Finds the largest face of cropped frames, each frame alone."""

    def __init__(self, analyser: FaceAnalyser, *, embed: bool = True) -> None:
        self.analyser = analyser
        self._embed = embed

    def read(self, image: np.ndarray) -> Face | None:
        """The largest face of a square picture uint8 [S, S, 3]; None if there is none."""
        if image.shape[0] != ANALYSED_SIZE_PX:
            method = cv2.INTER_AREA if image.shape[0] > ANALYSED_SIZE_PX else cv2.INTER_CUBIC
            image = cv2.resize(image, (ANALYSED_SIZE_PX, ANALYSED_SIZE_PX), interpolation=method)
        image = np.ascontiguousarray(image)
        found = self.analyser.detect([image])[0]
        if not len(found):
            return None
        found = found[int(np.argmax(found.boxes[:, 2] - found.boxes[:, 0]))]
        seen = self.analyser.landmarks(image, found)
        if seen.presence[0] < MIN_PRESENCE:  # False for NaN: an analyser that does not say is believed
            return None
        return Face(
            points68=(seen.points68[0].astype(np.float64) + 0.5) / ANALYSED_SIZE_PX,
            pose_deg=seen.pose_deg[0].astype(np.float64),
            embedding=self.analyser.embed(image, seen.points5)[0] if self._embed else None,
        )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the face of a result frame should look like."""

    expression: np.ndarray
    """[38, 2] to compare with the result's expression minus `expression_origin`."""
    expression_origin: np.ndarray | float
    rotation: np.ndarray
    """[3, 3], for column vectors."""


def asked_absolute(driving: Face) -> Asked:
    """The driving frame's own expression and pose."""
    return Asked(expression=driving.expression, expression_origin=0.0, rotation=driving.rotation)


def asked_relative(source: Face, first_driving: Face, driving: Face) -> Asked:
    """The driving clip's change since its first frame, added to the source, composed as the animation does."""
    return Asked(
        expression=driving.expression - first_driving.expression,
        expression_origin=source.expression,
        rotation=source.rotation @ first_driving.rotation.T @ driving.rotation,
    )


def motion_figures(result: Face, asked: Asked) -> dict[str, float]:
    """AED (% of the distance between the outer eye corners), APD and angle of the head (degrees)."""
    expression = result.expression - asked.expression_origin - asked.expression
    turn = result.rotation @ asked.rotation.T
    angles = euler_deg(result.rotation).astype(np.float64) - euler_deg(asked.rotation)
    return {
        "aed": 100 * float(np.linalg.norm(expression, axis=1).mean()),
        "apd": float(np.abs((angles + 180) % 360 - 180).mean()),
        "pose_angle": float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))),
    }


def openness_figures(result: Face, driving: Face) -> dict[str, float]:
    """Errors of the openness of eyes and lips."""
    difference = np.abs(result.openness - driving.openness)
    return {"eye_error": float(difference[:2].mean()), "lip_error": float(difference[2])}


def identity_similarity(result: Face, reference: Face) -> float:
    """Cosine of two embeddings."""
    return float(result.embedding @ reference.embedding)


def jitter(faces: list[Face | None]) -> float:
    """Median over time of the landmarks' mean second difference, in percent of the distance between the eyes.

    Frames without a face break the sequence. NaN with no three frames in a row.
    """
    sizes = []
    for before, now, after in zip(faces, faces[1:], faces[2:], strict=False):
        if before is not None and now is not None and after is not None:
            second = after.points68 - 2 * now.points68 + before.points68
            eyes = np.linalg.norm(now.points68[36:42].mean(0) - now.points68[42:48].mean(0))
            sizes.append(np.linalg.norm(second, axis=1).mean() / max(eyes, 1e-6))
    return 100 * float(np.median(sizes)) if sizes else float("nan")
