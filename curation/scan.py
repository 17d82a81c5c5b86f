"""scan: find shots, faces and tracks in one span of a source, and the candidate clips in them. One decode of the span.

A candidate is a piece of a track inside one shot that fits one fixed crop with nobody else in it. Nothing is judged
here except what would make such a piece impossible; thresholds are `select`'s.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from curation.cuts import PICTURE_SIDE_PX, CutFinder
from curation.places import SourceGone, opened_source
from curation.recipe import Recipe
from curation.tombstones import Refusals, strip_tracks
from curation.tracks import Sample, Segment, Track, Tracker, divide, longest_gap_s
from curation.units import UnitResult
from model.faces import Detections, FaceAnalyser, has_direction, load_analyser
from model.stills import read_still
from model.video import Frame, VideoError, open_video, require_decoder

_CUT_OUT_SIDES = 2.5  # sides of the landmarks' box: all that an aligned face shows, also of a head that lies askew


class Still:
    """A picture with the interface of a video frame."""

    index, pts, pts_s, is_corrupt = 0, 0, 0.0, False

    def __init__(self, picture: np.ndarray) -> None:
        self._picture = picture

    def rgb(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return self._picture


class ScanStage:
    """Makes rows of `tracks`, with their candidates, of one span of a source."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._recipe = recipe
        self._options = recipe.scan
        require_decoder(recipe.decoder)
        self._analyser: FaceAnalyser = load_analyser(recipe.faces)

    def process(self, unit: dict[str, Any]) -> UnitResult:
        """Scan `unit`: a source's places, content, source_id, kind, fps, width_px, height_px and its span."""
        result = UnitResult()
        try:
            with opened_source(unit, result) as path:
                if unit["kind"] == "still":
                    follower = self._scan_still(path, result)
                    tracks = follower.tracks()
                else:
                    follower = self._scan_video(path, unit, result)
                    tracks = follower.tracks()
        except SourceGone as error:
            result.fail("scan", unit, "source_gone", str(error))
            return result
        rows = [self._track_row(track, follower, unit) for track in tracks]
        _name_candidates(rows, unit["source_id"])
        refusals = Refusals(unit.get("refused", []))
        analyser = self._analyser.info.name
        result.rows["tracks"] = strip_tracks(rows, lambda c: refusals.refuses(c, analyser), refusals.refuses_time)
        if not rows and not result.rows.get("failures"):
            result.fail("scan", unit, "no_face", follower.why_nothing())
        return result

    def _scan_still(self, path: str, result: UnitResult) -> _Follower:
        follower = _Follower(self._recipe, self._analyser)
        follower.look_at(Still(read_still(path)), position=0)
        follower.frames = [(0, 0, 0.0), (1, 1, 0.0)]
        follower.shots = [0, 1]
        result.num_frames = 1
        return follower

    def _scan_video(self, path: str, unit: dict[str, Any], result: UnitResult) -> _Follower:
        span = unit["span"]
        follower = _Follower(self._recipe, self._analyser)
        try:
            with open_video(path, self._recipe.decoder) as video:
                frames = video.frames(
                    start_pts=span["start_pts"], end_pts=span["end_pts"], first_index=span["start_frame"]
                )
                follower.follow(frames, unit["fps"] or 25.0, span["end_pts"])
                stopped, left_out = video.stopped_early, video.left_out
        except VideoError as error:
            result.fail("scan", unit, error.reason, str(error))
            return follower
        if stopped:
            result.fail(
                "scan", unit, "stopped_early", f"{stopped}; {len(follower.frames) - 1} frames before it were used"
            )
        if left_out:
            result.fail("scan", unit, "frames_left_out", left_out)
        result.num_frames = len(follower.frames) - 1
        if follower.frames:
            result.video_s = follower.frames[-1][2] - follower.frames[0][2]
        return follower

    def _track_row(self, track: Track, follower: _Follower, unit: dict[str, Any]) -> dict[str, Any]:
        samples = track.samples
        segments, reasons = divide(
            track,
            self._options,
            width_px=unit["width_px"],
            height_px=unit["height_px"],
            scale=self._recipe.crop.scale,
            vy_ratio=self._recipe.crop.vy_ratio,
        )
        why = {r for r in reasons if r is not None}
        candidates = []
        for segment in segments:
            for piece in follower.pieces(track, segment, reasons):
                if unit["kind"] == "video" and piece.end_s - piece.start_s < self._options.min_clip_s - 1e-6:
                    why.add("too_short")
                else:
                    candidates.append(self._candidate(track, segment, piece))
        _, similarity = _mean_embedding(track.embeddings)
        start, end = follower.shots[track.shot], follower.shots[track.shot + 1]
        first, last = follower.frames[follower.position(samples[0].frame)], follower.end_of(samples[-1].frame)
        info = self._analyser.info
        return {
            "source_id": unit["source_id"],
            "unit": unit["name"],
            "shot": track.shot,
            "shot_start_frame": follower.frames[start][0],
            "shot_end_frame": follower.frames[end][0],
            "start_frame": first[0],
            "end_frame": last[0],
            "start_pts": first[1],
            "end_pts": last[1],
            "start_s": first[2],
            "end_s": last[2],
            "num_samples": len(samples),
            "face_height_px": float(np.median([s.height_px for s in samples])),
            "detection_score": float(np.median([s.score for s in samples])),
            "presence": float(np.median([s.presence for s in samples])),
            **dict(
                zip(("yaw_deg", "pitch_deg", "roll_deg"), np.median([s.pose_deg for s in samples], axis=0), strict=True)
            ),
            "identity_similarity": similarity,
            "num_identity_samples": len(track.embeddings),
            "reasons": sorted(why),
            "candidates": candidates,
            "analyser": info.name,
            "analyser_weights": {part: f"{w.name} sha256:{w.sha256}" for part, w in sorted(info.weights.items())},
            "analyser_licence": info.licence,
        }

    def _candidate(self, track: Track, segment: Segment, piece: _Piece) -> dict[str, Any]:
        around = track.samples[segment.first : segment.last + 1]
        samples = [s for s in around if piece.start_frame <= s.frame < piece.end_frame]
        if not samples:  # the piece is shorter than from one sampled frame to the next
            samples = [min(around, key=lambda s: abs(s.frame - piece.start_frame))]
        assert segment.crop is not None
        heights = [s.height_px for s in samples]
        embedded = [s.embedding for s in samples if s.embedding is not None]
        mean, similarity = _mean_embedding(np.stack(embedded) if embedded else track.embeddings)
        return {
            "start_frame": piece.start_frame,
            "end_frame": piece.end_frame,
            "start_pts": piece.start_pts,
            "end_pts": piece.end_pts,
            "start_s": piece.start_s,
            "end_s": piece.end_s,
            "crop_center_x_px": segment.crop.center_x_px,
            "crop_center_y_px": segment.crop.center_y_px,
            "crop_size_px": segment.crop.size_px,
            "outside_fraction": segment.crop.outside_fraction,
            "face_height_px": float(np.percentile(heights, 5)),
            "face_height_median_px": float(np.median(heights)),
            "detection_score": float(np.median([s.score for s in samples])),
            "identity_similarity": similarity,
            "embedding": None if mean is None else mean,
            "first_landmarks": samples[0].landmarks.astype(np.float32).ravel(),
        }


class _Piece:
    """A frame range of a candidate."""

    def __init__(self, start: tuple[int, int, float], end: tuple[int, int, float]) -> None:
        self.start_frame, self.start_pts, self.start_s = start
        self.end_frame, self.end_pts, self.end_s = end


class _Follower:
    """The state of one scan: which frames were seen, where the cuts are, and the tracks."""

    def __init__(self, recipe: Recipe, analyser: FaceAnalyser) -> None:
        self._options = recipe.scan
        self._analyser = analyser
        self._detection_side_px = recipe.faces.detection_size_px
        self._tracker = Tracker(recipe.scan, analyser.info.same_person_similarity)
        self._sampled: list[int] = []  # positions in `frames`
        self._largest_px = 0.0
        self._usual_step: tuple[float, float] = (1.0, longest_gap_s(recipe.scan))  # ticks and seconds of a frame
        self.frames: list[tuple[int, int, float]] = []
        """(index, pts, seconds) of every frame, and one entry for the end."""
        self.shots: list[int] = [0]
        """Positions in `frames` where the shots start, and the end."""

    def follow(self, frames: Iterator[Frame], fps: float, end_pts: int | None) -> None:
        """Look at all frames for cuts, and at `sample_fps` of them for faces. end_pts: where the next span starts."""
        finder = CutFinder(self._options, fps)
        waiting: deque[tuple[int, Frame]] = deque()
        next_sample = 0
        for position, frame in enumerate(frames):
            assert frame.index is not None
            self.frames.append((frame.index, frame.pts, frame.pts_s))
            finder.add(frame.sketch(PICTURE_SIDE_PX))
            tick = int(np.floor((frame.pts_s - self.frames[0][2]) * self._options.sample_fps + 1e-6))
            if tick >= next_sample:
                next_sample = tick + 1
                waiting.append((position, frame))
            while waiting and waiting[0][0] < finder.settled:
                self._look(*waiting.popleft(), finder)
        finder.finish()
        for position, frame in waiting:
            self._look(position, frame, finder)
        if self.frames:
            self._close(finder, fps, end_pts)

    def _close(self, finder: CutFinder, fps: float, end_pts: int | None) -> None:
        """Say where the last frame ends: at the next span, or after the usual time."""
        index, pts, seconds = self.frames[-1]
        steps = np.diff([frame[1:] for frame in self.frames], axis=0)
        if len(steps):
            self._usual_step = tuple(np.median(steps, axis=0).tolist())
        average = (pts - self.frames[0][1]) / max(len(steps), 1), 1.0 / fps
        # Where frames are missing for long, the averages fit no frame.
        ticks, step_s = (
            mean if mean <= 2 * usual else usual for mean, usual in zip(average, self._usual_step, strict=True)
        )
        end = pts + max(1, round(ticks)) if end_pts is None else end_pts
        self.frames.append((index + 1, end, seconds + step_s))
        self.shots = [0, *finder.cuts, len(self.frames) - 1]

    def _look(self, position: int, frame: Frame, finder: CutFinder) -> None:
        shot = int(np.searchsorted(finder.cuts, position, side="right"))
        self._tracker.start_shot(shot) if shot != self._tracker.shot else None
        self.look_at(frame, position)

    def look_at(self, frame: Frame | Still, position: int) -> None:
        """Detect the faces of a sampled frame and continue their tracks."""
        picture = frame.rgb()
        found = self._detect(frame, picture)
        self._sampled.append(position)
        heights = found.boxes[:, 3] - found.boxes[:, 1]
        self._largest_px = max(self._largest_px, float(heights.max(initial=0.0)))
        wanted = heights >= self._options.min_track_face_px
        large = found[wanted]
        if not len(large):
            return
        faces = self._analyser.landmarks(picture, large)
        is_face = ~(faces.presence < self._options.min_presence)  # unknown (NaN) passes
        matches = self._tracker.match(large.boxes[is_face], frame.pts_s)
        for k, track in zip(np.flatnonzero(is_face), matches, strict=True):
            sample = Sample(
                frame=frame.index,
                pts=frame.pts,
                time_s=frame.pts_s,
                box=large.boxes[k],
                score=float(large.scores[k]),
                landmarks=faces.points68[k],
                presence=float(faces.presence[k]),
                pose_deg=faces.pose_deg[k],
                others=np.delete(found.boxes, np.flatnonzero(wanted)[k], axis=0),
                is_corrupt=bool(frame.is_corrupt),
            )
            if self._tracker.wants_embedding(track, frame.pts_s):
                embedding = self._analyser.embed(picture, faces.points5[k : k + 1])[0]
                sample.embedding = embedding if has_direction(embedding) else None
            else:
                sample.identify = partial(self._analyser.embed, *_cut_out(picture, faces.points68[k], faces.points5[k]))
            self._tracker.add(sample, track)

    def _detect(self, frame: Frame | Still, picture: np.ndarray) -> Detections:
        """Faces in displayed source pixels, found on a smaller picture."""
        long_side = max(picture.shape[:2])
        scale = min(1.0, self._detection_side_px / long_side)
        if scale == 1.0 or isinstance(frame, Still):
            return self._analyser.detect([picture])[0]
        found = self._analyser.detect([frame.small(self._detection_side_px)])[0]
        return Detections(boxes=found.boxes / scale, scores=found.scores, points=found.points / scale)

    def tracks(self) -> list[Track]:
        """All tracks, ordered by time and place."""
        self._tracker.start_shot(-1)
        return sorted(self._tracker.finished, key=lambda t: (t.samples[0].frame, t.samples[0].box[0]))

    def position(self, frame: int) -> int:
        """Where a frame index stands in `frames`."""
        return frame - self.frames[0][0]

    def end_of(self, frame: int) -> tuple[int, int, float]:
        """(index, pts, seconds) of the end of a frame: where the next one starts; before a gap in time after the usual
        time, for no clip may fill the gap with this one picture."""
        index, pts, seconds = self.frames[self.position(frame)]
        following = self.frames[self.position(frame) + 1]
        if following[2] - seconds <= longest_gap_s(self._options):
            return following
        ticks, step_s = self._usual_step
        return min(following, (index + 1, pts + max(1, round(ticks)), seconds + step_s))

    def pieces(self, track: Track, segment: Segment, reasons: list[str | None]) -> Iterator[_Piece]:
        """The frame ranges of a segment: at most max_clip_s, inside the shot; even, or full ones and a short rest where
        even ones would be shorter than min_clip_s.

        A segment reaches back to the start of the shot, or on to its end or to the next good sample, when nothing was
        sampled in between.
        """
        samples = track.samples
        first, last = self.position(samples[segment.first].frame), self.position(samples[segment.last].frame) + 1
        shot_start, shot_end = self.shots[track.shot], self.shots[track.shot + 1]
        if segment.first == 0 and self._is_unsampled(shot_start, first):
            first = shot_start
        if segment.last == len(samples) - 1:
            if self._is_unsampled(last, shot_end):
                last = shot_end
        elif reasons[segment.last + 1] is None:
            following = self.position(samples[segment.last + 1].frame)
            if self._is_unsampled(last, following):
                last = following
        end = self.end_of(self.frames[last - 1][0])
        length, longest = end[2] - self.frames[first][2], self._options.max_clip_s
        count, end_of_even = max(1, int(np.ceil(length / longest - 1e-6))), last
        shortest = length * ((last - first) // count) / (last - first)
        if count > 1 and shortest < self._options.min_clip_s - 1e-6:
            count -= 1
            limit = self.frames[first][2] + count * longest + 1e-6
            end_of_even = bisect_right(self.frames, limit, first, last, key=lambda frame: frame[2]) - 1
        edges = np.round(np.linspace(first, end_of_even, count + 1)).astype(int).tolist()
        places = [self.frames[edge] if edge < last else end for edge in edges]
        for piece in pairwise([*places, end] if end_of_even < last else places):
            yield _Piece(*piece)

    def _is_unsampled(self, start: int, end: int) -> bool:
        """Whether nothing was sampled at the positions [start, end), and no sample could have been missing there."""
        is_unseen = bisect_left(self._sampled, start) == bisect_left(self._sampled, end)
        return is_unseen and self.frames[end][2] - self.frames[start][2] < 1.5 / self._options.sample_fps

    def why_nothing(self) -> str:
        """Plain words for a span without a single track."""
        if not self._sampled:
            return "no frame could be decoded"
        frames = f"{len(self._sampled)} sampled frame{'s' if len(self._sampled) > 1 else ''}"
        if self._largest_px == 0:
            return f"no face was found on {frames}"
        if self._largest_px < self._options.min_track_face_px:
            return (
                f"the largest face on {frames} is {self._largest_px:.0f} px high, less than"
                f" scan.min_track_face_px {self._options.min_track_face_px:.0f}"
            )
        return f"what the detector found on {frames} is no face to the landmark network (scan.min_presence)"


def _cut_out(picture: np.ndarray, points68: np.ndarray, points5: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a picture with a face, which costs less to keep, and the 5 points float32 [1, 5, 2] in it."""
    low, high = points68.min(0), points68.max(0)
    center, reach = (low + high) / 2, _CUT_OUT_SIDES / 2 * float((high - low).max())
    left, top = np.clip(center - reach, 0, (picture.shape[1] - 1, picture.shape[0] - 1)).astype(int)
    right, bottom = np.maximum(center + reach, (left, top)).astype(int) + 1
    return picture[top:bottom, left:right].copy(), (points5 - (left, top))[None].astype(np.float32)


def _mean_embedding(embeddings: np.ndarray) -> tuple[np.ndarray | None, float | None]:
    """The unit-length mean of some embeddings, and their smallest cosine to it."""
    if not embeddings.size:
        return None, None
    mean = embeddings.mean(0)
    mean = mean / max(float(np.linalg.norm(mean)), 1e-9)
    return mean.astype(np.float32), float((embeddings @ mean).min())


def _name_candidates(rows: list[dict[str, Any]], source_id: str) -> None:
    """Ids from content and place: SOURCE_FRAME_K, K tells apart faces that start on the same frame."""
    taken: dict[str, int] = {}

    def name(prefix: str, frame: int) -> str:
        stem = f"{source_id}_{prefix}{frame:07d}"
        taken[stem] = taken.get(stem, -1) + 1
        return f"{stem}_{taken[stem]}"

    for row in rows:
        row["track_id"] = name("t", row["start_frame"])
        for candidate in row["candidates"]:
            candidate["clip_id"] = name("", candidate["start_frame"])
        row["num_clips"] = len(row["candidates"])
