"""Faces followed through the frames of a video: landmarks of every face on every frame where it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np

from model.faces import Detections, FaceAnalyser
from model.faces.nms import keep_best

DETECT_EVERY = 5
"""Frames between detections; landmarks follow the faces in between."""
MIN_PRESENCE = 0.4
MIN_OVERLAP = 0.25
MAX_GAP_FRAMES = 12
"""Frames that a face may be hidden and still be the same track."""
CUT_DIFFERENCE = 20.0
"""Mean change of a thumbnail's pixels, 0 to 255, that is a cut: tracks end. People's motion stays below 15, cuts lie
above 27."""
_THUMBNAIL_PX = 48
PART_PX = 1333
"""Side of the parts in which small faces of large stills are looked for; faces of 40 pixels are found in it."""
MAX_UNCONFIRMED_FRAMES = 15
"""Frames that landmarks alone may carry a track; what they say after the last detection is then dropped."""


@dataclass
class FaceTrack:
    """One face over the frames [start, stop)."""

    start: int
    points: list[np.ndarray | None] = field(default_factory=list)
    """float32 [68, 2] of every frame from `start`; None where the face was not seen."""
    num_confirmed: int = 1
    """Frames up to and including the last one on which a detector saw the face."""
    is_over: bool = False

    @property
    def stop(self) -> int:
        return self.start + len(self.points)

    @property
    def last_seen(self) -> np.ndarray:
        return next(points for points in reversed(self.points) if points is not None)

    @property
    def num_missing(self) -> int:
        """Frames since the face was last seen."""
        return next(i for i, points in enumerate(reversed(self.points)) if points is not None)

    def mean_size_px(self) -> float:
        """Mean of the longer side of the landmarks' box."""
        return float(np.mean([np.ptp(points, axis=0).max() for points in self.points if points is not None]))

    def filled(self) -> np.ndarray:
        """float32 [stop - start, 68, 2], frames without the face interpolated between those with it."""
        seen = np.array([i for i, points in enumerate(self.points) if points is not None])
        values = np.stack([self.points[i] for i in seen]).reshape(len(seen), -1)
        frames = np.arange(len(self.points))
        return (
            np.stack([np.interp(frames, seen, column) for column in values.T], 1).reshape(-1, 68, 2).astype(np.float32)
        )


def track_faces(frames: Iterable[np.ndarray], analyser: FaceAnalyser, *, min_face_px: float) -> list[FaceTrack]:
    """Follow every face of a video; those that are big and long in the picture come first.

    frames: uint8 [H, W, 3], RGB, taken one by one. Tracks of one or two frames are noise of the detector and left out,
    unless there is nothing else.
    """
    tracks: list[FaceTrack] = []
    active: list[FaceTrack] = []
    before = None
    for index, frame in enumerate(frames):
        thumbnail = cv2.resize(frame, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
        if before is not None and np.abs(thumbnail - before).mean() > CUT_DIFFERENCE:
            active = []
        before = thumbnail
        lost = _follow(frame, analyser, active)
        if lost or not active or index % DETECT_EVERY == 0:
            points68 = find_faces(frame, analyser, min_face_px=min_face_px)
            new = _assign(points68, active, index)
            tracks += new
            active += new
        active = [track for track in active if track.num_missing <= MAX_GAP_FRAMES and not track.is_over]
    for track in tracks:
        del track.points[len(track.points) - track.num_missing :]
    long_enough = [track for track in tracks if len(track.points) >= 3]
    return sorted(long_enough or tracks, key=lambda track: -track.mean_size_px() * len(track.points))


def find_faces(frame: np.ndarray, analyser: FaceAnalyser, *, min_face_px: float) -> np.ndarray:
    """Landmarks of the faces of one picture, the biggest first: float32 [n, 68, 2]."""
    return _measured(frame, analyser.detect([frame])[0], analyser, min_face_px)


def find_faces_in_still(picture: np.ndarray, analyser: FaceAnalyser, *, min_face_px: float) -> np.ndarray:
    """`find_faces` that does not overlook the small ones of a large picture: those are looked for in its parts."""
    found = analyser.detect([picture])[0]
    if max(picture.shape[:2]) > PART_PX:
        more = _detect_in_parts(picture, analyser)
        centers = more.points.mean(1)[:, None]
        is_known = ((centers >= found.boxes[:, :2]) & (centers <= found.boxes[:, 2:])).all(2).any(1)
        found = _joined([found, more[~is_known]])
    return _measured(picture, found, analyser, min_face_px)


def _detect_in_parts(picture: np.ndarray, analyser: FaceAnalyser) -> Detections:
    """Faces of the overlapping parts of a picture, each once."""
    parts = [Detections.empty()]
    for top in _part_starts(picture.shape[0]):
        for left in _part_starts(picture.shape[1]):
            part = np.ascontiguousarray(picture[top : top + PART_PX, left : left + PART_PX])
            faces, shift = analyser.detect([part])[0], np.array([left, top], np.float32)
            parts.append(Detections(faces.boxes + np.tile(shift, 2), faces.scores, faces.points + shift))
    faces = _joined(parts)
    return faces[keep_best(faces.boxes, faces.scores, 0.3)]


def _part_starts(size_px: int) -> list[int]:
    """Where parts begin along a side: even steps, each part sharing a third or more with the next."""
    rest = max(0, size_px - PART_PX)
    num_parts = 1 + math.ceil(rest / (PART_PX * 2 // 3))
    return [rest * i // max(1, num_parts - 1) for i in range(num_parts)]


def _joined(parts: list[Detections]) -> Detections:
    names = ("boxes", "scores", "points")
    return Detections(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _measured(frame: np.ndarray, detections: Detections, analyser: FaceAnalyser, min_face_px: float) -> np.ndarray:
    if len(detections) == 0:
        return np.zeros((0, 68, 2), np.float32)
    landmarks = analyser.landmarks(frame, detections)
    sizes = np.ptp(landmarks.points68, axis=1).max(1)
    keep = (sizes >= min_face_px) & ~(landmarks.presence < MIN_PRESENCE)  # an unknown presence (NaN) counts
    order = np.argsort(-sizes[keep], kind="stable")
    return landmarks.points68[keep][order]


def _follow(frame: np.ndarray, analyser: FaceAnalyser, active: list[FaceTrack]) -> bool:
    """Add this frame's landmarks to the tracks, looked for where the faces were last; True if one was not found."""
    if not active:
        return False
    before = np.stack([track.last_seen for track in active])
    landmarks = analyser.landmarks(frame, Detections.from_points68(before))
    found = ~(landmarks.presence < MIN_PRESENCE)
    for track, points, was, is_found in zip(active, landmarks.points68, before, found, strict=True):
        is_here = is_found and track.num_missing == 0 and _overlap(points, was) >= MIN_OVERLAP
        track.points.append(points if is_here else None)
    return any(track.points[-1] is None for track in active)


def _assign(points68: np.ndarray, active: list[FaceTrack], index: int) -> list[FaceTrack]:
    """Give detected faces to the tracks that they overlap most; the rest start tracks."""
    pairs = [
        (_overlap(points, track.last_seen), i, j) for i, points in enumerate(points68) for j, track in enumerate(active)
    ]
    taken_faces: set[int] = set()
    taken_tracks: set[int] = set()
    for overlap, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if overlap >= MIN_OVERLAP and i not in taken_faces and j not in taken_tracks:
            active[j].points[-1] = points68[i]
            active[j].num_confirmed = len(active[j].points)
            taken_faces.add(i)
            taken_tracks.add(j)
    for j, track in enumerate(active):
        if j in taken_tracks:
            continue
        # Landmarks slide onto another face, or cling to something after a cut: such a track ends where a detector last
        # saw its face.
        is_double = any(_overlap(track.last_seen, active[k].last_seen) > 0.5 for k in taken_tracks)
        if is_double or len(track.points) - track.num_confirmed >= MAX_UNCONFIRMED_FRAMES:
            del track.points[track.num_confirmed :]
            track.is_over = True
    return [FaceTrack(index, [points]) for i, points in enumerate(points68) if i not in taken_faces]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of the boxes of two sets of landmarks."""
    low, high = np.maximum(a.min(0), b.min(0)), np.minimum(a.max(0), b.max(0))
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / float(np.prod(np.ptp(a, axis=0)) + np.prod(np.ptp(b, axis=0)) - shared + 1e-9)
