"""`animate()`: the whole way from source and driving files to a written video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from model.animation.driving import Driving, driving_rate, expected_frames, load_driving
from model.animation.pasting import paste_crops
from model.animation.pictures import (
    DEFAULT_FPS,
    check_output,
    in_batches,
    names_a_still,
    open_clip,
    resize_transform,
    save_still,
    scaled_within,
)
from model.animation.progress import Report, counted, ignore
from model.animation.source import Source, SourceFace, load_source
from model.animation.templates import check_template_destination, save_template
from model.faces import FaceAnalyser
from model.keypoints import AnimationOptions, KeypointAnimator
from model.video import VideoWriter, check_destination, check_writable

if TYPE_CHECKING:
    from model.inference import InferenceEngine

MAX_GIF_FPS = Fraction(50)
"""GIFs count hundredths of a second, and viewers slow down pictures of less than two."""

MAX_STILL_PX = 1280
"""Longer side of the video that a still becomes: few players show videos of the size of photographs."""
MAX_S = 1_000_000
"""Eleven days: more is a slip of the keyboard."""


@dataclass(frozen=True, kw_only=True)
class AnimateOptions:
    """What is read, how faces are framed, and what is written."""

    motion: AnimationOptions = field(default_factory=AnimationOptions)
    """How the driving motion is carried over."""
    faces_in_source: str = "largest"
    """Faces that move: largest, all, or the number of one (0 is the largest)."""
    crop_driving: bool = True
    """Frame the face in the driving picture; otherwise its middle square, for a face that is framed already."""
    paste_back: bool = True
    """Put the face back into its picture; otherwise the largest face's crop, as the networks make it, is written."""
    side_by_side: bool = False
    """Show driving, source and result beside each other."""
    audio: Literal["driving", "source", "none"] = "driving"
    """Whose sound is kept; the other one's if that file has none."""
    fps: float | None = None
    """Frame rate; that of the driving video or template if not given, of the source video where a still drives."""
    max_s: float | None = None
    """Stop after this many seconds."""
    max_size_px: int | None = None
    """Longer side of the result; larger sources are scaled down. Without it 1280 for stills that become a video, as
    published, while videos, and stills that become a still, keep their size; 0 keeps any size."""
    batch_size: int = 4
    """Frames that go through the networks at once."""

    def check(self) -> None:
        """ValueError for numbers that make no sense."""
        self.motion.check()
        if self.max_s is not None and not 0 < self.max_s <= MAX_S:
            raise ValueError(f"max_s is {self.max_s}: expected a positive number of seconds, at most {MAX_S}")
        if self.fps is not None and not 0.01 <= self.fps <= 1000:
            raise ValueError(f"fps is {self.fps:g}: expected 0.01 to 1000")
        if self.max_size_px is not None and self.max_size_px != 0 and self.max_size_px < 16:
            raise ValueError(f"max_size_px is {self.max_size_px}: expected 16 or more, or 0 to keep any size")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class AnimateResult:
    """What was written."""

    num_frames: int
    num_faces: int
    """Faces that move in it."""
    fps: Fraction
    width: int
    height: int
    notes: tuple[str, ...] = ()
    """What users should know about this result."""


def animate(
    source: str | Path,
    driving: str | Path,
    output: str | Path,
    *,
    engine: InferenceEngine,
    analyser: FaceAnalyser,
    options: AnimateOptions | None = None,
    template_output: str | Path | None = None,
    report: Report = ignore,
) -> AnimateResult:
    """Animate the faces of `source` (still or video) with the motion of `driving` (video, still or template).

    output: .mp4, .mov, .webm, .gif, or a name without suffix for a folder of PNG files; where the result has one frame,
    as that of a still with the motion of a still, also .png, .jpg or .webp. Written when complete.
    template_output: where to save the driving motion.
    Memory stays bounded whatever the length: only motion is kept, pictures stream. ValueError with one line.
    """
    options = options or AnimateOptions()
    options.check()
    check_output(output, source, driving)
    becomes_still = names_a_still(output)
    (check_writable if becomes_still else check_destination)(output)
    if template_output is not None:
        check_output(template_output, source, driving, output)
        check_template_destination(template_output)
    asked, rate_notes = _asked_rate(options.fps, source, driving, output)
    if becomes_still:
        clips = [open_clip(path, fps=asked, max_s=options.max_s) for path in (source, driving)]
        lengths = [expected_frames(clip) for clip in clips if clip is not None]
        if lengths and all(lengths):  # told before minutes go into a video
            _check_single(min(lengths), output)
        if options.max_size_px is None:
            options = replace(options, max_size_px=0)
    origin = None
    is_still = open_clip(source) is None
    options.motion.check_keypoints(engine.config.num_keypoints, source_is_video=not is_still)
    if is_still:  # one without a face is told before minutes go into the driving video
        origin = load_source(source, engine, analyser, which=options.faces_in_source)
    driven = load_driving(
        driving,
        engine,
        analyser,
        crop=options.crop_driving,
        fps=asked,
        max_s=options.max_s,
        report=report,
    )
    if template_output is not None:
        save_template(driven.template(), template_output)
    fps = asked or driven.fps or _own_rate(source)
    max_s = float(len(driven.motion) / fps) if driven.is_video else options.max_s  # the result is no longer than either
    origin = origin or load_source(
        source, engine, analyser, which=options.faces_in_source, fps=fps, max_s=max_s, report=report
    )
    if not options.paste_back:
        origin = replace(origin, faces=origin.faces[:1])
    num_frames = _num_frames(origin, driven)
    frames = counted(animated_frames(origin, driven, engine, options), "rendering", num_frames, report)
    sound_notes: tuple[str, ...] = ()
    if becomes_still:
        _check_single(num_frames, output)
        (frame,) = frames
        save_still(frame, output)
        height, width = frame.shape[:2]
    else:
        sound_from, sound_start_s = _sound(options.audio, origin, driven) or (None, 0.0)
        with VideoWriter(output, fps, audio_from=sound_from, audio_start_s=sound_start_s) as writer:
            for frame in frames:
                writer.write(frame)
        num_frames, (width, height) = writer.num_frames, writer.size_px
        if writer.sound_stopped_early:
            sound_notes = (f"sound: {writer.sound_stopped_early}; the rest is silent",)
    return AnimateResult(
        num_frames=num_frames,
        num_faces=len(origin.faces),
        fps=fps,
        width=width,
        height=height,
        notes=(*rate_notes, *_notes(origin, driven, num_frames), *_size_notes(origin, options), *sound_notes),
    )


def animated_frames(
    source: Source, driving: Driving, engine: InferenceEngine, options: AnimateOptions
) -> Iterator[np.ndarray]:
    """The output frames, uint8 [H, W, 3], one after the other."""
    num_frames = _num_frames(source, driving)
    faces = [_AnimatedFace(face, source.is_video, driving, num_frames, engine, options.motion) for face in source.faces]
    driving_pictures = _repeat_last(driving.pictures()) if options.side_by_side and driving.pictures else None
    index = 0
    max_size_px = _max_size_px(source, options)
    pictures = ((picture, scaled_within(picture, max_size_px)) for picture in source.frames())
    numbered = zip(range(num_frames), pictures if source.is_video else _repeat_last(pictures), strict=False)
    for batch in in_batches(numbered, options.batch_size):
        originals, shown = ([pair[i] for _, pair in batch] for i in (0, 1))
        if options.paste_back:
            results = [picture.copy() for picture in shown]
        else:
            results = [
                _letterbox(picture, engine.config.output_size) for picture in originals
            ]  # until the face is there
        placed: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in batch]
        for face in faces:
            for position, crop in face.render(originals, index):
                if options.paste_back:
                    scaling = resize_transform(shown[position], originals[position])
                    placed[position].append((crop, face.matrix(index + position, crop.shape[0]) @ scaling))
                elif face is faces[0]:
                    results[position] = crop
        for before, result, crops in zip(shown, results, placed, strict=True):
            paste_crops(result, crops)
            if options.side_by_side:
                driver = next(driving_pictures) if driving_pictures is not None else None
                result = side_by_side([driver, before, result])
            yield result
        index += len(batch)


class _AnimatedFace:
    """One source face with its key points in motion and, for a still, its appearance computed once."""

    def __init__(
        self,
        face: SourceFace,
        is_video: bool,
        driving: Driving,
        num_frames: int,
        engine: InferenceEngine,
        options: AnimationOptions,
    ) -> None:
        self.face = face
        self._is_video = is_video
        self._engine = engine
        self._start, self._stop = (face.start, min(face.stop, num_frames)) if is_video else (0, num_frames)
        length = max(0, self._stop - self._start)
        if driving.is_video:
            self._driving = driving.motion[self._start : self._start + length]
        else:
            self._driving = driving.motion[0].expand(length)
        self._animator = None
        if length:
            self._animator = KeypointAnimator(
                face.motion[:length] if is_video else face.motion,
                networks=engine.portrait,
                options=options,
                source_is_video=is_video,
                driving_is_video=driving.is_video,
                driving=self._driving if is_video else None,
                first_driving=driving.motion[0],  # of the video, wherever the face's own frames begin
            )
        self._volume = None

    def matrix(self, index: int, size_px: int) -> np.ndarray:
        """Pixels of the source's picture of output frame `index` to those of a crop of side `size_px`: [3, 3]."""
        return self.face.matrix(index if self._is_video else 0, size_px=size_px)

    def render(self, originals: list[np.ndarray], index: int) -> Iterator[tuple[int, np.ndarray]]:
        """(position in the batch, animated crop) of the frames where the face is; the batch begins at frame `index`."""
        start, stop = max(index, self._start), min(index + len(originals), self._stop)
        if start >= stop:
            return
        x_s, x_d = self._animator.step(self._driving[start - self._start : stop - self._start])
        if self._is_video:
            crops = [self.face.crop(originals[i - index], i) for i in range(start, stop)]
            volume = self._engine.extract_appearance(np.stack(crops))
        else:
            if self._volume is None:
                self._volume = self._engine.extract_appearance(self.face.crop(originals[0], 0)[None])
            volume = self._volume
        rendered = self._engine.render(volume, x_s, x_d)
        yield from zip(range(start - index, stop - index), rendered, strict=True)


def side_by_side(pictures: list[np.ndarray | None]) -> np.ndarray:
    """Pictures in a row, brought to the height of the last one; None is left out."""
    height = pictures[-1].shape[0]
    row = []
    for picture in pictures:
        if picture is not None:
            width = max(1, round(picture.shape[1] * height / picture.shape[0]))
            method = cv2.INTER_AREA if picture.shape[0] > height else cv2.INTER_LINEAR
            row.append(
                picture if picture.shape[0] == height else cv2.resize(picture, (width, height), interpolation=method)
            )
    return np.concatenate(row, axis=1)


def _num_frames(source: Source, driving: Driving) -> int:
    """Frames of the result."""
    if not source.is_video:
        return len(driving.motion)
    return min(source.num_frames, len(driving.motion)) if driving.is_video else source.num_frames


def _check_single(num_frames: int, output: str | Path) -> None:
    """ValueError where a still cannot hold the result."""
    if num_frames != 1:
        raise ValueError(
            f"cannot write {output}: a still holds one frame, the result has {num_frames}; give a name in .mp4, .mov, "
            ".webm or .gif, or without suffix for a folder of PNG files"
        )


def _asked_rate(
    fps: float | None, source: str | Path, driving: str | Path, output: str | Path
) -> tuple[Fraction | None, tuple[str, ...]]:
    """The rate to read everything at, None for the files' own, and a note if it is not the one asked for."""
    asked = None if fps is None else Fraction(fps).limit_denominator(1001)  # 29.97002997 means 30000/1001
    if Path(output).suffix.lower() != ".gif":
        return asked, ()
    wanted = asked or driving_rate(driving) or _own_rate(source)
    if wanted <= MAX_GIF_FPS:
        return asked, ()
    return MAX_GIF_FPS, (f"a GIF shows at most {MAX_GIF_FPS} frames/s, not {float(wanted):.6g}",)


def _own_rate(source: str | Path) -> Fraction:
    clip = open_clip(source)
    return clip.fps if clip is not None else DEFAULT_FPS


def _notes(source: Source, driving: Driving, num_frames: int) -> Iterator[str]:
    yield from (*source.notes, *driving.notes)
    if source.is_video and not any(face.start == 0 and face.stop >= num_frames for face in source.faces):
        shown = ", ".join(f"{face.start} to {face.stop}" for face in source.faces)
        yield f"source faces were followed over the frames {shown} of {num_frames}; the others are as they were"


def _max_size_px(source: Source, options: AnimateOptions) -> int:
    """Longer side of the pictures that faces are pasted into; 0 is any."""
    if not options.paste_back:
        return 0
    if options.max_size_px is None:
        return 0 if source.is_video else MAX_STILL_PX
    return options.max_size_px


def _size_notes(source: Source, options: AnimateOptions) -> Iterator[str]:
    if max_size_px := _max_size_px(source, options):
        picture = next(source.frames())
        (height, width), (new_height, new_width) = picture.shape[:2], scaled_within(picture, max_size_px).shape[:2]
        if new_width != width:
            new = f"{new_width}x{new_height} pixels"
            yield f"scaled from {width}x{height} to {new}; `animate --max-size-px 0` keeps the size of the source"


def _sound(wanted: str, source: Source, driving: Driving) -> tuple[Path, float] | None:
    if wanted == "none":
        return None
    return (driving.sound or source.sound) if wanted == "driving" else (source.sound or driving.sound)


def _repeat_last(pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The pictures, then the last one for ever."""
    last = None
    for last in pictures:
        yield last
    while last is not None:
        yield last


def _letterbox(picture: np.ndarray, size: int) -> np.ndarray:
    """The whole picture in the middle of a black square."""
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    small = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square
