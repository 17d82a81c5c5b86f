"""crop: cut the candidate clips of one span out of their source and measure every frame. One decode of their range.

A clip becomes a small tar under staging/ that `pack` joins to shards, a row of `clips`, and its rows of `frames`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg

from curation import measures
from curation.fingerprints import FaceHasher
from curation.places import SourceGone, opened_source
from curation.quality import load_quality_model
from curation.recipe import CropOptions, Recipe
from curation.samples import SampleWriter, encode_label, sample_key
from curation.scan import Still
from curation.units import UnitResult, plain
from manifests.storage import NewFile, Place, make_folder
from model.faces import Detections, FaceAnalyser, Landmarks, eye_openness, lip_openness, load_analyser
from model.framing import FixedCrop, crop_transform, outside_fraction, transform_points, warp
from model.stills import read_still
from model.video import Frame, VideoError, open_video, require_decoder

_JOIN_GAP_S = 2.0  # decoding this much more costs less than another seek


class CropStage:
    """Makes staged clips and rows of `clips` and `frames` of the candidates of one span."""

    def __init__(self, recipe: Recipe, folder: Place) -> None:
        require_decoder(recipe.decoder)
        self._recipe = recipe
        self._folder = folder
        self._analyser = load_analyser(recipe.faces)
        self._quality = load_quality_model(recipe.crop)

    def process(self, unit: dict[str, Any]) -> UnitResult:
        """Crop `unit["candidates"]` of its source; only those named in `unit["only"]`, if it is there."""
        result = UnitResult(rows={"clips": [], "frames": []})
        wanted = [c for c in unit["candidates"] if unit.get("only") is None or c["clip_id"] in unit["only"]]
        folder = self._folder / unit["name"]
        clips: list[_Clip] = []
        try:
            with opened_source(unit, result) as path:
                make_folder(folder)
                clips += [_Clip(c, unit, self._recipe.crop, self._analyser, self._quality, folder) for c in wanted]
                try:
                    self._read(path, unit, clips, result)
                except VideoError as error:
                    result.fail("crop", unit, error.reason, str(error))
        except SourceGone as error:
            result.fail("crop", unit, "source_gone", str(error))
            return result
        finally:
            for clip in clips:
                clip.close()
        for clip in clips:
            if clip.frames:
                result.rows["clips"].append(clip.row(unit))
                result.rows["frames"] += clip.frames
            else:
                result.fail("crop", unit, "no_frames", f"clip {clip.clip_id}: none of its frames could be decoded")
        result.num_frames = len(result.rows["frames"])
        result.video_s = sum(c["duration_s"] for c in result.rows["clips"])
        return result

    def _read(self, path: str, unit: dict[str, Any], clips: list[_Clip], result: UnitResult) -> None:
        if unit["kind"] == "still":
            picture = Still(read_still(path))
            for clip in clips:
                clip.add(picture)
                clip.finish()
            return
        with open_video(path, self._recipe.decoder) as video:
            for group in _group_by_time(clips):
                frames = video.frames(
                    start_pts=min(c.start_pts for c in group),
                    end_pts=max(c.end_pts for c in group),
                    first_index=min(c.start_frame for c in group),
                )
                for frame in frames:
                    for clip in group:
                        clip.offer(frame)
                for clip in group:
                    clip.finish()
                if video.stopped_early:
                    result.fail("crop", unit, "stopped_early", video.stopped_early)
                if video.left_out:
                    result.fail("crop", unit, "frames_left_out", video.left_out)


def _group_by_time(clips: list[_Clip]) -> Iterator[list[_Clip]]:
    """Clips whose time ranges overlap or nearly touch, so that each stretch of video is decoded once."""
    group: list[_Clip] = []
    for clip in sorted(clips, key=lambda c: (c.start_pts, c.clip_id)):
        if group and clip.start_s > max(c.end_s for c in group) + _JOIN_GAP_S:
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


class _Clip:
    """One clip while it is being cropped."""

    def __init__(
        self,
        candidate: dict[str, Any],
        unit: dict[str, Any],
        options: CropOptions,
        analyser: FaceAnalyser,
        quality: Any,
        folder: Place,
    ) -> None:
        self._candidate, self._options, self._analyser, self._quality = candidate, options, analyser, quality
        self.clip_id: str = candidate["clip_id"]
        self.start_pts, self.end_pts = candidate["start_pts"], candidate["end_pts"]
        self.start_s, self.end_s = candidate["start_s"], candidate["end_s"]
        self.start_frame = candidate["start_frame"]
        self._is_still = unit["kind"] == "still"
        self._picture_size = (unit["width_px"], unit["height_px"])
        self._crop = FixedCrop(
            center_x_px=candidate["crop_center_x_px"],
            center_y_px=candidate["crop_center_y_px"],
            size_px=candidate["crop_size_px"],
            output_size_px=options.size_px,
        )
        first = np.asarray(candidate["first_landmarks"], np.float64).reshape(68, 2)
        self._last_landmarks = transform_points(first, self._crop.matrix)
        self._tick = 0
        self._next_look = 0  # the tick from which on the detector may look for a face in doubt
        self._num_ticks = max(1, math.ceil((self.end_s - self.start_s) * options.fps - 1e-6))
        self._pending: Frame | None = None
        self._landmarks: list[np.ndarray] = []
        self._hasher = FaceHasher(None if self._is_still else options.fps)
        self.frames: list[dict[str, Any]] = []
        self._path = folder / f"{self.clip_id}.tar"
        self._new: NewFile | None = None
        self._file: Any = None

    def offer(self, frame: Frame) -> None:
        """The next decoded frame: what was on show until now fills the ticks before it."""
        if not self.start_pts <= frame.pts < self.end_pts:
            return
        self._fill(frame.pts_s)
        self._pending = frame

    def finish(self) -> None:
        """Fill the last ticks and put the staged tar in its place."""
        self._fill(self.end_s)
        self._pending = None
        if self._file is not None:
            self._staged_bytes = self._writer.finish()
            self._file.close()
            self._file = None
            self._new.commit()

    def close(self) -> None:
        """Remove what an error left unfinished."""
        if self._file is not None:
            self._file.close()
            self.frames = []
        if self._new is not None:
            self._new.discard()

    def _fill(self, until_s: float) -> None:
        if self._pending is None:
            return
        is_repeat = False
        while self._tick < self._num_ticks and self.start_s + self._tick / self._options.fps < until_s - 1e-6:
            if is_repeat:
                self._repeat()
            else:
                self.add(self._pending)
            is_repeat = True

    def add(self, frame: Frame | Still) -> None:
        """Crop, measure and encode one source frame for the next tick."""
        picture = frame.rgb()
        crop = warp(picture, self._crop.matrix, self._options.size_px)
        face = self._find_landmarks(crop)
        landmarks, outside = face.points68[0], self._candidate["outside_fraction"]
        upscale = self._crop.upscaling
        if self._options.framing == "aligned":
            in_source = transform_points(landmarks, self._crop.inverse)
            matrix = crop_transform(
                in_source, size_px=self._options.size_px, scale=self._options.scale, vy_ratio=self._options.vy_ratio
            )
            crop = warp(picture, matrix, self._options.size_px)
            landmarks = transform_points(in_source, matrix)
            width, height = self._picture_size
            outside = outside_fraction(matrix, size_px=self._options.size_px, width_px=width, height_px=height)
            upscale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        patch = measures.face_patch(gray, landmarks)
        light, dark, bright = measures.exposure(patch)
        eyes = eye_openness(landmarks[None])[0]
        yaw, pitch, roll = (float(angle) for angle in face.pose_deg[0])
        row = {
            "clip_id": self.clip_id,
            "frame": self._tick,
            "source_frame": frame.index,
            "pts": frame.pts,
            "time_s": frame.pts_s,
            "is_repeat": False,
            "is_corrupt": bool(frame.is_corrupt),
            "presence": float(face.presence[0]),
            "yaw_deg": yaw,
            "pitch_deg": pitch,
            "roll_deg": 0.0 if self._options.framing == "aligned" else roll,
            "eye_openness_right": float(eyes[0]),
            "eye_openness_left": float(eyes[1]),
            "lip_openness": float(lip_openness(landmarks[None])[0]),
            "face_height_px": float(np.ptp(landmarks[:, 1])),
            "sharpness": measures.sharpness(patch),
            "exposure": light,
            "dark_fraction": dark,
            "bright_fraction": bright,
            "motion": measures.movement(landmarks, self._landmarks[-1]) if self._landmarks else 0.0,
            "outside_fraction": outside,
            "upscale_factor": upscale,
            "quality": self._score(crop, landmarks),
        }
        self._landmarks.append(landmarks)
        self._hasher.add(gray, landmarks)
        jpeg = simplejpeg.encode_jpeg(
            crop, quality=self._options.jpeg_quality, colorspace="RGB", colorsubsampling=self._options.jpeg_subsampling
        )
        self._append(plain(row), jpeg)

    def _repeat(self) -> None:
        row = self.frames[-1] | {"frame": self._tick, "is_repeat": True, "motion": 0.0}
        self._landmarks.append(self._landmarks[-1])
        self._hasher.repeat()
        self._append(row, self._last_jpeg)

    def _append(self, row: dict[str, Any], jpeg: bytes) -> None:
        if self._file is None:
            self._new = NewFile(self._path)
            self._file = open(self._new.temporary, "wb")  # noqa: SIM115  (closed by finish or close)
            self._writer = SampleWriter(self._file)
        label = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        label["landmarks"] = np.round(self._landmarks[-1], 2).tolist()
        key = sample_key(self.clip_id, self._tick)
        self._writer.add(f"{key}.jpg", jpeg)
        self._writer.add(f"{key}.json", encode_label(label))
        self._last_jpeg = jpeg
        self.frames.append(row)
        self._tick += 1

    def _find_landmarks(self, crop: np.ndarray) -> Landmarks:
        """Landmarks from where they were on the frame before; where that is in doubt, the detector looks again: at
        once, and then at intervals for as long as the doubt stays."""
        face = self._analyser.landmarks(crop, Detections.from_points68(self._last_landmarks[None]))
        is_known = not math.isnan(face.presence[0])
        if not face.presence[0] >= 0.5 and self._tick >= self._next_look:
            found = self._analyser.detect([crop])[0]
            if len(found.boxes):
                centers = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
                nearest = np.argmin(np.linalg.norm(centers - self._last_landmarks.mean(0), axis=1))
                again = self._analyser.landmarks(crop, found[nearest])
                if not is_known or again.presence[0] > face.presence[0]:
                    face = again
            if not face.presence[0] >= 0.5:
                self._next_look = self._tick + self._options.redetect_every_frames
        if not face.presence[0] < 0.5:
            self._last_landmarks = face.points68[0].astype(np.float64)
        return face

    def _score(self, crop: np.ndarray, landmarks: np.ndarray) -> float | None:
        if self._quality is None or self._tick % self._options.quality_every_frames:
            return None
        left, top = np.clip(landmarks.min(0).astype(int), 0, crop.shape[0] - 2)
        right, bottom = np.clip(landmarks.max(0).astype(int), (left + 2, top + 2), crop.shape[0])
        return self._quality(crop[top:bottom, left:right])

    def _jitter(self) -> float:
        is_new = [not f["is_repeat"] for f in self.frames]
        times = np.array([f["time_s"] for f in self.frames]) * self._options.fps
        return measures.jitter(np.stack(self._landmarks)[is_new], times[is_new])

    def row(self, unit: dict[str, Any]) -> dict[str, Any]:
        """The clip's row of `clips`: the candidate's place and the frames' figures put together."""
        take = self._candidate
        columns = {name: np.array([f[name] for f in self.frames], np.float64) for name in _SUMMARISED}
        eyes = (columns["eye_openness_right"] + columns["eye_openness_left"]) / 2
        lips = columns["lip_openness"]
        duration_s = 0.0 if self._is_still else self._tick / self._options.fps
        places = ("clip_id", "start_frame", "end_frame", "start_pts", "end_pts", "start_s", "end_s", "crop_center_x_px",
                  "crop_center_y_px", "crop_size_px", "face_height_px", "face_height_median_px", "detection_score",
                  "identity_similarity", "embedding")  # fmt: skip
        presence = columns["presence"]
        scores = columns["quality"][~np.isnan(columns["quality"])]
        return {name: take[name] for name in places} | {
            "track_id": take["track_id"],
            "source_id": unit["source_id"],
            "unit": unit["name"],
            "kind": unit["kind"],
            "duration_s": duration_s,
            "num_frames": self._tick,
            "num_repeats": sum(f["is_repeat"] for f in self.frames),
            "num_corrupt": sum(f["is_corrupt"] for f in self.frames),
            "crop_fps": None if self._is_still else self._options.fps,
            "upscale_factor": columns["upscale_factor"].max(),
            "outside_fraction": columns["outside_fraction"].max(),
            "presence_mean": presence.mean(),
            "presence_p10": np.percentile(presence, 10),
            **{f"{angle}_deg": columns[f"{angle}_deg"].mean() for angle in ("yaw", "pitch", "roll")},
            **{
                f"{angle}_abs_p95_deg": np.percentile(np.abs(columns[f"{angle}_deg"]), 95)
                for angle in ("yaw", "pitch", "roll")
            },
            "eye_openness": eyes.mean(),
            "lip_openness": lips.mean(),
            "eye_openness_range": np.percentile(eyes, 95) - np.percentile(eyes, 5),
            "lip_openness_range": np.percentile(lips, 95) - np.percentile(lips, 5),
            "sharpness": np.median(columns["sharpness"]),
            "exposure": columns["exposure"].mean(),
            "dark_fraction": columns["dark_fraction"].mean(),
            "bright_fraction": columns["bright_fraction"].mean(),
            "motion": columns["motion"].sum() / duration_s if duration_s else None,
            "landmark_jitter": self._jitter() if duration_s else None,
            "quality": scores.mean() if len(scores) else None,
            "face_hashes": self._hasher.words(),
            "staged_bytes": self._staged_bytes,
            "analyser": self._analyser.info.name,
            "licence": unit["licence"],
            "attribution": unit["attribution"],
            "consent": unit["consent"],
            "provenance": unit["provenance"],
        }


_SUMMARISED = (
    *("presence", "yaw_deg", "pitch_deg", "roll_deg", "eye_openness_right", "eye_openness_left", "lip_openness"),
    *("sharpness", "exposure", "dark_fraction", "bright_fraction", "motion", "outside_fraction", "upscale_factor"),
    "quality",
)
