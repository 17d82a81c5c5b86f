"""The driving side: motion of a video, a still, or a template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.animation.pictures import Clip, in_batches, load_still, open_clip
from model.animation.progress import Report, counted, ignore
from model.animation.templates import TEMPLATE_SUFFIXES, MotionTemplate, load_template
from model.animation.tracking import FaceTrack, find_faces_in_still, track_faces
from model.faces import FaceAnalyser
from model.framing import box_transform, driving_box, driving_framing, mean_box, warp
from model.keypoints import Motion, open_ratios_68

if TYPE_CHECKING:
    from model.inference import InferenceEngine

BATCH_SIZE = 8
MIN_FACE_PX = 24


@dataclass(frozen=True, kw_only=True)
class Driving:
    """Motion to carry over, with what is needed to show and hear where it came from."""

    motion: Motion
    is_video: bool
    fps: Fraction | None
    """None for a still."""
    sound: tuple[Path, float] | None = None
    """File with the sound, and the time on its clock at which the first frame is shown."""
    pictures: Callable[[], Iterator[np.ndarray]] | None = None
    """Cropped driving frames, uint8 [S, S, 3], read again from the start; None for a template."""

    notes: tuple[str, ...] = ()
    """What users should know, such as that only a part of the video shows the face."""

    def template(self) -> MotionTemplate:
        """The motion as a template; ValueError for a still."""
        if self.fps is None:
            raise ValueError("a motion template is made from a driving video; a still has no motion")
        return MotionTemplate(motion=self.motion, fps=self.fps)


def load_driving(
    path: str | Path,
    engine: InferenceEngine,
    analyser: FaceAnalyser,
    *,
    crop: bool = True,
    fps: Fraction | None = None,
    max_s: float | None = None,
    report: Report = ignore,
) -> Driving:
    """Motion of a driving file of any kind. Videos are read twice and never held in memory.

    crop: frame the biggest face (a video: the mean of its boxes, never turned); otherwise the middle square of the
    picture is taken.
    Raises ValueError with one line.
    """
    path = Path(path)
    if path.suffix.lower() in TEMPLATE_SUFFIXES:
        template = load_template(path)
        num_keypoints = template.motion.kp.shape[1]
        if num_keypoints != engine.config.num_keypoints:
            raise ValueError(f"{path} has {num_keypoints} key points, the networks {engine.config.num_keypoints}")
        if fps is not None and len(template.motion) > 1:
            template = template.resampled(fps)
        motion = template.motion if max_s is None else template.motion[: max(1, round(max_s * template.fps))]
        return Driving(motion=motion, is_video=len(motion) > 1, fps=template.fps)
    clip = open_clip(path, fps=fps, max_s=max_s)
    if clip is None:
        return _still_driving(path, engine, analyser, crop)
    return _video_driving(clip, engine, analyser, crop, report)


def driving_rate(path: str | Path) -> Fraction | None:
    """Frame rate of a driving file of any kind; None for a still."""
    if Path(path).suffix.lower() in TEMPLATE_SUFFIXES:
        return load_template(path).fps
    clip = open_clip(path)
    return None if clip is None else clip.fps


def _still_driving(path: Path, engine: InferenceEngine, analyser: FaceAnalyser, crop: bool) -> Driving:
    picture = load_still(path)
    points68 = find_faces_in_still(picture, analyser, min_face_px=MIN_FACE_PX)
    if len(points68) == 0:
        raise ValueError(f"{path}: no face found in the driving picture")
    cut = warp(picture, _crop_matrix(points68[:1], engine), 512) if crop else _center_square(picture)
    return Driving(
        motion=with_openness(engine.extract_motion(cut[None]), points68[:1]),
        is_video=False,
        fps=None,
        pictures=lambda: iter([cut]),
    )


def _video_driving(clip: Clip, engine: InferenceEngine, analyser: FaceAnalyser, crop: bool, report: Report) -> Driving:
    frames = CountedFrames(clip, "driving faces", report)
    tracks = track_faces(frames, analyser, min_face_px=MIN_FACE_PX)
    if not tracks:
        raise ValueError(f"{clip.path}: no face found in the driving video")
    track = tracks[0]
    points68 = track.filled()
    matrix = _crop_matrix(points68, engine) if crop else None

    def pictures() -> Iterator[np.ndarray]:
        for index, frame in enumerate(clip.frames()):
            if index >= track.stop:
                return
            if index >= track.start:
                yield _center_square(frame) if matrix is None else warp(frame, matrix, 512)

    crops = counted(pictures(), "driving motion", len(points68), report)
    motion = Motion.cat(
        [engine.extract_motion(np.stack(batch)) for batch in in_batches(_resized(crops, engine), BATCH_SIZE)]
    )
    start_s = clip.info.start_s + float(track.start / clip.fps)
    return Driving(
        motion=with_openness(motion, points68[: len(motion)]),
        is_video=True,
        fps=clip.fps,
        sound=(clip.path, start_s) if clip.info.has_audio else None,
        pictures=pictures,
        notes=(*damage_notes(clip, "driving"), *_coverage_notes("driving", track, frames.num_frames)),
    )


def _crop_matrix(points68: np.ndarray, engine: InferenceEngine) -> np.ndarray:
    """One crop for all frames, float [N, 68, 2], in proportion to those of the networks' training data."""
    framing = driving_framing(engine.config.crop_scale, engine.config.crop_vy_ratio)
    return box_transform(mean_box(driving_box(points, **framing) for points in points68))


def with_openness(motion: Motion, points68: np.ndarray) -> Motion:
    """The motion with how far eyes and lips are open, from landmarks float [N, 68, 2]."""
    eye_open, lip_open = open_ratios_68(points68)
    return motion.replace(eye_open=eye_open, lip_open=lip_open)


class CountedFrames:
    """Frames of a clip, reported as they pass; afterwards `num_frames` tells how many there were."""

    def __init__(self, clip: Clip, stage: str, report: Report) -> None:
        self.num_frames = 0
        self._frames = counted(clip.frames(), stage, expected_frames(clip), report)

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            self.num_frames += 1
            yield frame


def damage_notes(clip: Clip, side: str) -> Iterator[str]:
    """A line for users where a clip that was read has a hole, and one where it could not be read to its end."""
    if clip.left_out:
        yield f"{side} video: {clip.left_out}; the frame before them stands still"
    if clip.stopped_early:
        yield f"{side} video: {clip.stopped_early}; the rest is not used"


def _coverage_notes(side: str, track: FaceTrack, num_frames: int) -> Iterator[str]:
    """A line for users where a face was followed through a part of its video only."""
    if (track.start, track.stop) != (0, num_frames):
        frames = f"from frame {track.start} to {track.stop} of {num_frames}"
        yield f"the {side} face was followed {frames}; the rest is not used"


def expected_frames(clip: Clip) -> int | None:
    """How many frames a clip will give, for progress lines; None if the file does not tell."""
    if clip.info.duration_s is None:
        return clip.max_frames
    num_frames = round(clip.info.duration_s * clip.fps)
    return num_frames if clip.max_frames is None else min(num_frames, clip.max_frames)


def _resized(crops: Iterable[np.ndarray], engine: InferenceEngine) -> Iterator[np.ndarray]:
    """Batches hold pictures of one size; the networks look at them in this one anyway."""
    import cv2

    size = engine.config.image_size
    for crop in crops:
        yield crop if crop.shape[0] == 512 else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def _center_square(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(picture[top : top + side, left : left + side])
