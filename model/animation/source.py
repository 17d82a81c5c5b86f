"""The source side: the faces of a still or a video, where their crops are, and their motion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.animation.driving import BATCH_SIZE, CountedFrames, damage_notes, with_openness
from model.animation.pictures import in_batches, load_still, open_clip
from model.animation.progress import Report, counted, ignore
from model.animation.tracking import FaceTrack, find_faces_in_still, track_faces
from model.config import ModelConfig
from model.faces import FaceAnalyser
from model.framing import crop_transform, warp
from model.keypoints import Motion

if TYPE_CHECKING:
    from model.inference import InferenceEngine

CROP_PX = 512
MIN_FACE_PX = 40
"""Smaller faces are left alone; the networks have nothing to work with there."""


@dataclass(frozen=True, kw_only=True)
class SourceFace:
    """One face over the frames [start, stop) of the source (a still: [0, 1))."""

    start: int
    matrices: np.ndarray
    """float64 [stop - start, 3, 3]: frame pixels to crop pixels."""
    motion: Motion

    @property
    def stop(self) -> int:
        return self.start + len(self.matrices)

    def matrix(self, index: int, *, size_px: int = CROP_PX) -> np.ndarray:
        """Pixels of frame `index` to those of a crop of side `size_px`, float64 [3, 3]."""
        scale = size_px / CROP_PX
        shift = (scale - 1) / 2  # integer coordinates are pixel centres
        return np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]]) @ self.matrices[index - self.start]

    def crop(self, frame: np.ndarray, index: int) -> np.ndarray:
        """The face cut out of frame `index` of the source: uint8 [512, 512, 3]."""
        return warp(frame, self.matrix(index), CROP_PX)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A still or a video with the faces that will move."""

    faces: list[SourceFace]
    is_video: bool
    num_frames: int
    frames: Callable[[], Iterator[np.ndarray]]
    """Whole pictures, uint8 [H, W, 3], read again from the start."""
    sound: tuple[Path, float] | None = None
    notes: tuple[str, ...] = ()
    """What users should know, such as that only a part of the video can be read."""


def load_source(
    path: str | Path,
    engine: InferenceEngine,
    analyser: FaceAnalyser,
    *,
    which: str = "largest",
    fps: Fraction | None = None,
    max_s: float | None = None,
    report: Report = ignore,
) -> Source:
    """The faces of a source file: the largest, all, or the n-th largest ("0", "1", ...). ValueError with one line.

    fps: rate at which a video is read; its own if None. max_s: how much of it is read, and thus where faces are chosen.
    """
    clip = open_clip(path, fps=fps, max_s=max_s)
    if clip is None:
        return still_source(load_still(path), engine, analyser, which=which, name=str(path))
    frames = CountedFrames(clip, "source faces", report)
    tracks = track_faces(frames, analyser, min_face_px=MIN_FACE_PX)
    if not tracks:
        remedy = "a larger `--faces.detection-size-px` shows smaller ones of large pictures"
        part = "" if max_s is None else f"the first {max_s:.4g} s of "
        raise ValueError(f"{path}: no face found in {part}the source video; {remedy}")
    chosen = [tracks[i] for i in choose_faces(len(tracks), which, str(path))]
    num_face_frames = max(track.stop for track in chosen)
    landmarks = [track.filled() for track in chosen]
    matrices = [np.stack([_crop_matrix(points, engine.config) for points in of_face]) for of_face in landmarks]
    motions = _motions(counted(clip.frames(), "source motion", num_face_frames, report), chosen, matrices, engine)
    faces = [
        SourceFace(start=track.start, matrices=of_face, motion=with_openness(motion, points))
        for track, of_face, motion, points in zip(chosen, matrices, motions, landmarks, strict=True)
    ]
    sound = (clip.path, clip.info.start_s) if clip.info.has_audio else None
    return Source(
        faces=faces,
        is_video=True,
        num_frames=frames.num_frames,
        frames=clip.frames,
        sound=sound,
        notes=tuple(damage_notes(clip, "source")),
    )


def still_source(
    picture: np.ndarray,
    engine: InferenceEngine,
    analyser: FaceAnalyser,
    *,
    which: str = "largest",
    name: str = "picture",
) -> Source:
    """The faces of a picture, uint8 [H, W, 3]."""
    points68 = find_faces_in_still(picture, analyser, min_face_px=MIN_FACE_PX)
    faces = []
    for i in choose_faces(len(points68), which, name):
        matrix = _crop_matrix(points68[i], engine.config)
        motion = engine.extract_motion(warp(picture, matrix, CROP_PX)[None])
        faces.append(SourceFace(start=0, matrices=matrix[None], motion=with_openness(motion, points68[i : i + 1])))
    return Source(faces=faces, is_video=False, num_frames=1, frames=lambda: iter([picture]))


def choose_faces(num_faces: int, which: str, name: str) -> list[int]:
    """Positions in a list that is sorted by size, of the faces that `which` means. ValueError if there is none."""
    if num_faces == 0:
        raise ValueError(f"{name}: no face of at least {MIN_FACE_PX} pixels found in the source")
    if which == "all":
        return list(range(num_faces))
    if which == "largest":
        return [0]
    if not which.isdecimal():
        raise ValueError(f"faces in source: expected largest, all or a number from 0, got {which!r}")
    if int(which) >= num_faces:
        there = "1 face (0)" if num_faces == 1 else f"{num_faces} faces (0 to {num_faces - 1}, the largest first)"
        raise ValueError(f"{name} has {there}, got {which}")
    return [int(which)]


def _crop_matrix(points68: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The crop of one frame as the networks' training data had it: source pixels to crop pixels, float64 [3, 3]."""
    return crop_transform(points68, scale=config.crop_scale, vy_ratio=config.crop_vy_ratio)


def _motions(
    frames: Iterator[np.ndarray], tracks: list[FaceTrack], matrices: list[np.ndarray], engine: InferenceEngine
) -> list[Motion]:
    """Motion of every face on every frame of its track, in one pass over the video."""
    parts: list[list[Motion]] = [[] for _ in tracks]
    last = max(track.stop for track in tracks)
    numbered = ((index, frame) for index, frame in zip(range(last), frames, strict=False))
    for batch in in_batches(numbered, BATCH_SIZE):
        for track, of_face, motions in zip(tracks, matrices, parts, strict=True):
            crops = [
                warp(frame, of_face[index - track.start], CROP_PX)
                for index, frame in batch
                if track.start <= index < track.stop
            ]
            if crops:
                motions.append(engine.extract_motion(np.stack(crops)))
    return [Motion.cat(motions) for motions in parts]
