"""Self- and cross-reenactment of clips: the model animates a source frame with the motion of a clip.

Self (section 4 of the paper): the clip's first frame is the source, its other frames drive, x_d = s_d (x_c,s R_d +
delta_d) + t_d as in training, and every result is compared with the driving frame. Cross: the first frame of another
person is the source, and the motion is carried over as `model animate` does it, but for its closing of the source's
lips, which the figures would take for an error of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.animation.progress import Report
from model.inference import InferenceEngine
from model.keypoints import AnimationOptions, KeypointAnimator, Motion, open_ratios_68, transform_keypoints
from training.evaluation.faces import Face, asked_absolute, asked_relative, jitter
from training.evaluation.measuring import Column, Distribution, Tools
from training.evaluation.selection import Clip, Selection, pair_with_sources
from training.evaluation.thumbnails import difference, thumbnail

CrossMode = Literal["relative", "absolute"]
NUM_PICTURES = 6


@dataclass(kw_only=True)
class Reenacted:
    """One clip that was reenacted."""

    clip: Clip
    source: Clip
    num_frames: int
    """Compared frames."""
    result: dict[str, float | None]
    copy_source: dict[str, float | None]
    """The same figures, over the same frames, of a model that shows the source whatever drives it."""
    num_measured: dict[str, int]
    """Figure -> frames of the result in which it could be measured."""
    source_picture: bytes
    """JPEG."""
    pictures: list[tuple[int, dict[str, bytes]]] = field(default_factory=list)
    """Frames spread over the clip, with JPEGs: driving, result, and in self-reenactment their difference."""


class Reenactor:
    """Runs a model over the clips of a selection."""

    def __init__(
        self,
        engine: InferenceEngine,
        selection: Selection,
        tools: Tools,
        *,
        batch_size: int,
        max_frames: int | None,
        seed: int,
        report: Report,
    ) -> None:
        self._engine, self._selection, self._tools = engine, selection, tools
        self._batch_size, self._max_frames, self._seed, self._report = batch_size, max_frames, seed, report
        self._seen: dict[tuple[str, int], Face | None] = {}  # driving frames are the same in every section

    def reenact_self(self) -> tuple[list[Reenacted], dict[str, float | None]]:
        """Every clip, and the figures of all together: `fid` and `fid_copy_source`."""
        distributions = {"fid": Distribution(), "fid_copy_source": Distribution()}
        pairs = [(clip, clip) for clip in self._selection.videos]
        clips = self._run(pairs, None, distributions, "self-reenactment")
        return clips, {name: distribution.value() for name, distribution in distributions.items()}

    def reenact_cross(self, mode: CrossMode) -> tuple[list[Reenacted], dict[str, float | None]]:
        """Every clip, which drives another person; an empty list where the split has one identity."""
        distributions = {"fid": Distribution()}
        pairs = pair_with_sources(self._selection.videos, self._selection.clips, self._seed)
        clips = self._run(pairs, mode, distributions, f"cross-reenactment, {mode}")
        return clips, {name: distribution.value() for name, distribution in distributions.items()}

    def _run(
        self, pairs, mode: CrossMode | None, distributions: dict[str, Distribution], stage: str
    ) -> list[Reenacted]:
        frames = [clip.driving_frames(self._max_frames, skip_source=mode is None) for clip, _ in pairs]
        total, done, clips = sum(map(len, frames)), 0, []
        self._report(stage, 0, total)
        for (clip, source), driving in zip(pairs, frames, strict=True):
            run = _ClipRun(self._engine, self._selection, self._tools, clip, source, mode, driving)
            run.distributions, run.seen = distributions, self._seen
            for start in range(0, len(driving), self._batch_size):
                batch = list(driving[start : start + self._batch_size])
                run.add(batch)
                done += len(batch)
                self._report(stage, done, total)
            clips.append(run.finish())
        return clips


class _ClipRun:
    """One clip on its way through the model, a batch of frames at a time."""

    def __init__(
        self,
        engine: InferenceEngine,
        selection: Selection,
        tools: Tools,
        clip: Clip,
        source: Clip,
        mode: CrossMode | None,
        driving: range,
    ) -> None:
        self._selection, self._tools = selection, tools
        self._clip, self._source, self._mode = clip, source, mode
        self.distributions: dict[str, Distribution] = {}
        """Of all clips together, by name."""
        self.seen: dict[tuple[str, int], Face | None] = {}
        """Faces of driving frames that were looked at before, by clip and frame."""
        self._shown = spread(driving.start, driving.stop, NUM_PICTURES)
        frame, points68 = selection.read(source, [0])
        self._source_small = tools.small(frame)
        self._source_face = tools.find_face(frame[0])
        self._carrier = Carrier(engine, frame, points68, mode)
        self._columns = {"result": Column(), "copy_source": Column()}
        self._faces: dict[str, list[Face | None]] = {"result": [], "driving": []}
        self._pictures: list[tuple[int, dict[str, bytes]]] = []
        self._num_frames = 0

    def add(self, indices: list[int]) -> None:
        """Render and measure the frames of one batch."""
        frames, points68 = self._selection.read(self._clip, indices)
        results = self._carrier.render(frames)
        self._num_frames += len(indices)
        driving, small = self._tools.small(frames), self._tools.small(results)
        if self._mode is None:
            copies = np.repeat(self._source_small, len(indices), axis=0)
            for column, pictures in (("result", small), ("copy_source", copies)):
                self._columns[column].add(self._tools.compare_pictures(pictures, driving, points68))
        self._add_features(driving, small)
        for k, frame, result in zip(indices, frames, results, strict=True):
            self._add_faces(k, frame, result)
        for k, frame, result in zip(indices, driving, small, strict=True):
            if k in self._shown:
                shown = {"driving": frame, "result": result}
                if self._mode is None:
                    shown["difference"] = difference(result, frame)
                self._pictures.append((k, {name: thumbnail(picture) for name, picture in shown.items()}))

    def _add_features(self, driving: np.ndarray, small: np.ndarray) -> None:
        if not self._tools.wants("fid"):
            return
        real, fake = (
            self._tools.fid(torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))))
            for frames in (driving, small)
        )
        for name, distribution in self.distributions.items():
            distribution.add(real, real=True)
            if name == "fid":
                distribution.add(fake, real=False)
        if "fid_copy_source" in self.distributions:
            copy = self._tools.fid(torch.from_numpy(np.ascontiguousarray(self._source_small.transpose(0, 3, 1, 2))))
            self.distributions["fid_copy_source"].add(copy.repeat(len(driving), 1), real=False)

    def _add_faces(self, index: int, frame: np.ndarray, result: np.ndarray) -> None:
        if self._tools.faces is None:
            return
        place = (self._clip.clip_id, index)
        if place not in self.seen:
            self.seen[place] = self._tools.find_face(frame)
        seen, made = self.seen[place], self._tools.find_face(result)
        self._faces["driving"].append(seen)
        self._faces["result"].append(made)
        asked = None
        if seen is not None and self._mode != "relative":
            asked = asked_absolute(seen)
        elif seen is not None and self._source_face is not None and self._faces["driving"][0] is not None:
            asked = asked_relative(self._source_face, self._faces["driving"][0], seen)
        is_self = self._mode is None
        figures, copied = (
            self._tools.compare_faces(face, asked=asked, driving=seen if is_self else None, identity=identity)
            for face, identity in (
                (made, seen if is_self else self._source_face),
                (self._source_face, seen if is_self else None),  # a copy's source is itself
            )
        )
        self._columns["result"].add(figures)
        # Means over the same frames: where the result has no face, copying must not be judged either.
        self._columns["copy_source"].add({name: value for name, value in copied.items() if name in figures})

    def finish(self) -> Reenacted:
        result = self._columns["result"].means()
        if self._tools.faces is not None:
            result["jitter"], result["jitter_driving"] = (_number(jitter(f)) for f in self._faces.values())
        return Reenacted(
            clip=self._clip,
            source=self._source,
            num_frames=self._num_frames,
            result=result,
            copy_source=self._columns["copy_source"].means(),
            num_measured={name: self._columns["result"].num_frames(name) for name in self._columns["result"].values},
            source_picture=thumbnail(self._source_small[0]),
            pictures=self._pictures,
        )


class Carrier:
    """Renders a source frame with the motion of driving frames, batch by batch from the first frame on."""

    def __init__(
        self, engine: InferenceEngine, source: np.ndarray, points68: np.ndarray, mode: CrossMode | None = None
    ) -> None:
        """source: uint8 [1, S, S, 3]. points68: its landmarks [1, 68, 2]. mode: None for self-reenactment."""
        self._engine = engine
        self.motion = source_motion(engine, source, points68)
        self.volume = engine.extract_appearance(source)
        self.x_s = self.motion.keypoints()
        self._animator = None
        if mode is not None:
            self._animator = KeypointAnimator(self.motion, networks=engine.portrait, options=animation_options(mode))

    def render(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3] driving frames -> the results in the model's output size."""
        driving = self._engine.extract_motion(frames)
        if self._animator is None:
            return self._engine.render(self.volume, self.x_s, driven_keypoints(self.motion, driving))
        x_s, x_d = self._animator.step(driving)
        return self._engine.render(self.volume, x_s, x_d)


def animation_options(mode: CrossMode) -> AnimationOptions:
    """How motion is carried over. The lips of a source start as they are, since their change is what is compared."""
    return AnimationOptions(relative=mode == "relative", normalize_lip=False)


def source_motion(engine: InferenceEngine, source: np.ndarray, points68: np.ndarray) -> Motion:
    """Motion of a source frame with the openness that its landmarks show."""
    eye_open, lip_open = open_ratios_68(points68)
    return engine.extract_motion(source).replace(eye_open=eye_open, lip_open=lip_open)


def driven_keypoints(source: Motion, driving: Motion) -> Tensor:
    """x_d = s_d (x_c,s R_d + delta_d) + t_d with the canonical key points of the source: [N, K, 3]."""
    kp = source.kp.expand(len(driving), -1, -1)
    return transform_keypoints(kp, driving.rotation, driving.exp, driving.scale, driving.t)


def spread(start: int, stop: int, number: int) -> list[int]:
    """At most `number` whole numbers, evenly over [start, stop)."""
    return sorted({round(k) for k in np.linspace(start, stop - 1, number)}) if stop > start else []


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
