"""Faces followed through a shot, and the pieces of a track that can become a clip with a fixed crop.

Pure functions and small classes over measurements; no pictures and no networks here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from curation.recipe import ScanOptions
from model.framing import FixedCrop, driving_box, fixed_crop


@dataclass(slots=True, eq=False)
class Sample:
    """One face on one sampled frame; positions in displayed source pixels."""

    frame: int
    pts: int
    time_s: float
    box: np.ndarray  # float [4]: left, top, right, bottom
    score: float
    landmarks: np.ndarray  # float [68, 2]
    presence: float  # NaN: the analyser has none
    pose_deg: np.ndarray  # float [3]: yaw, pitch, roll
    others: np.ndarray  # float [n, 4]: boxes of the other faces on this frame
    is_corrupt: bool = False
    may_be_other: bool = False  # not identified, and the next one that was is another person
    embedding: np.ndarray | None = None
    identify: Callable[[], np.ndarray] | None = None  # gives the embedding float [1, D], should the track end with this
    square: np.ndarray = field(init=False)  # float [3]: centre x, centre y, side of the crop made for this sample alone

    @property
    def height_px(self) -> float:
        return float(self.box[3] - self.box[1])

    def make_square(self, scale: float, vy_ratio: float) -> None:
        left, top, right, bottom = driving_box(self.landmarks, scale=scale, vy_ratio=vy_ratio)
        self.square = np.array([(left + right) / 2, (top + bottom) / 2, right - left])


@dataclass(slots=True, eq=False)
class Track:
    """One face inside one shot."""

    shot: int
    samples: list[Sample]

    @property
    def embeddings(self) -> np.ndarray:
        """float [n, D], of the samples that were identified."""
        found = [s.embedding for s in self.samples if s.embedding is not None]
        return np.stack(found) if found else np.zeros((0, 0), np.float32)


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: float [n, 4] x [m, 4] -> [n, m]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def longest_gap_s(options: ScanOptions) -> float:
    """How long a face may be unseen inside a track; never less than from one sampled frame to the next."""
    return max(options.max_gap_s, 1.5 / options.sample_fps)


class Tracker:
    """Joins the faces of successive sampled frames to tracks: by overlap, and by identity where it was asked for."""

    def __init__(self, options: ScanOptions, same_person_similarity: float) -> None:
        self._options = options
        self._same_person = same_person_similarity
        self.shot = 0
        self._active: list[Track] = []
        self.finished: list[Track] = []

    def start_shot(self, shot: int) -> None:
        """End all tracks: a cut."""
        for track in self._active:
            self._end(track)
        self._active, self.shot = [], shot

    def match(self, boxes: np.ndarray, time_s: float) -> list[Track | None]:
        """The track that each box (float [n, 4]) continues, None where it starts a new one."""
        longest_s = longest_gap_s(self._options)
        fresh = [t for t in self._active if time_s - t.samples[-1].time_s <= longest_s]
        for track in self._active:
            if track not in fresh:
                self._end(track)
        self._active = fresh
        matches: list[Track | None] = [None] * len(boxes)
        if not fresh or not len(boxes):
            return matches
        scores = overlap(boxes, np.stack([t.samples[-1].box for t in fresh]))
        while scores.max() >= self._options.min_overlap:
            box, track = np.unravel_index(np.argmax(scores), scores.shape)
            matches[box] = fresh[track]
            scores[box, :] = scores[:, track] = -1
        return matches

    def wants_embedding(self, track: Track | None, time_s: float) -> bool:
        """Whether a face should be identified now: it is new, was away, or its last identification is old."""
        if track is None or time_s - track.samples[-1].time_s > 1.5 / self._options.sample_fps:
            return True
        last = next((s.time_s for s in reversed(track.samples) if s.embedding is not None), -np.inf)
        return time_s - last >= self._options.embed_every_s - 1e-6

    def add(self, sample: Sample, track: Track | None) -> None:
        """Continue `track` with the sample, or start a new track: there is none, or it shows another person.

        Where the person changed is known only to lie between two embeddings: the samples between may be either's.
        """
        if track is not None and sample.embedding is not None and self._is_other(track, sample.embedding):
            _doubt_end(track)
            self._active.remove(track)
            self.finished.append(track)
            track = None
        if track is None:
            self._active.append(Track(self.shot, [sample]))
        else:
            track.samples[-1].identify = None  # and with it the picture goes
            track.samples.append(sample)

    def _end(self, track: Track) -> None:
        """Finish a track, and find out whether its last samples show another person."""
        last = track.samples[-1]
        if last.identify is not None and self._is_other(track, last.identify()[0]):
            _doubt_end(track)
        last.identify = None
        self.finished.append(track)

    def _is_other(self, track: Track, embedding: np.ndarray) -> bool:
        if not len(track.embeddings):
            return False
        mean = track.embeddings.mean(0)
        return float(mean @ embedding) / max(float(np.linalg.norm(mean)), 1e-9) < self._same_person


def _doubt_end(track: Track) -> None:
    """Mark what follows the last embedding."""
    for doubtful in takewhile(lambda s: s.embedding is None, reversed(track.samples)):
        doubtful.may_be_other, doubtful.identify = True, None


@dataclass(slots=True)
class Segment:
    """Samples [first, last] of a track that fit one fixed crop."""

    first: int
    last: int
    crop: FixedCrop | None = None


def divide(
    track: Track, options: ScanOptions, *, width_px: int, height_px: int, scale: float, vy_ratio: float
) -> tuple[list[Segment], list[str | None]]:
    """The segments of a track, and for every sample why it is in none (None: it is in one).

    A sample is left out when it is damaged, when it may show another person, and with its neighbours when another face
    is inside the crop. Segments end where the face leaves the reach of a fixed crop. Lengths are not judged here.
    """
    reasons: list[str | None] = [
        "damaged_frames" if s.is_corrupt else "person_changes" if s.may_be_other else None for s in track.samples
    ]
    for sample in track.samples:
        sample.make_square(scale, vy_ratio)
    while True:
        segments = _grow(track.samples, reasons, options)
        intruded: set[int] = set()
        for segment in segments:
            members = track.samples[segment.first : segment.last + 1]
            segment.crop = fixed_crop(
                np.stack([s.landmarks for s in members]),
                width_px=width_px, height_px=height_px, scale=scale, vy_ratio=vy_ratio,
            )  # fmt: skip
            for position, sample in enumerate(members, segment.first):
                if _shows_another_face(sample, segment.crop, options):
                    intruded.add(position)
        if not intruded:
            return segments, reasons
        # What is on one sample was probably there just before and after it.
        for position in {p + step for p in intruded for step in (-1, 0, 1)} & set(range(len(reasons))):
            reasons[position] = reasons[position] or "other_face_in_crop"


def _grow(samples: list[Sample], reasons: list[str | None], options: ScanOptions) -> list[Segment]:
    segments: list[Segment] = []
    current: Segment | None = None
    for position, sample in enumerate(samples):
        if reasons[position] is not None:
            current = None
            continue
        if current is not None:
            squares = np.stack([s.square for s in samples[current.first : position + 1]])
            gap = sample.time_s - samples[position - 1].time_s
            if gap > longest_gap_s(options) or not _fit_one_crop(squares, options):
                current = None
        if current is None:
            current = Segment(position, position)
            segments.append(current)
        current.last = position
    return segments


def _fit_one_crop(squares: np.ndarray, options: ScanOptions) -> bool:
    """Whether the crops (float [n, 3]: centre x, centre y, side) of some samples are all within reach of their mean."""
    center, size = squares[:, :2].mean(0), squares[:, 2].mean()
    is_near = np.abs(squares[:, :2] - center).max() <= options.reach * size
    ratio = squares[:, 2] / size
    return bool(is_near and ratio.max() <= options.max_size_ratio and ratio.min() >= 1 / options.max_size_ratio)


def _shows_another_face(sample: Sample, crop: FixedCrop, options: ScanOptions) -> bool:
    others = sample.others
    if not len(others):
        return False
    left, top, right, bottom = crop.box
    width = np.clip(np.minimum(others[:, 2], right) - np.maximum(others[:, 0], left), 0, None)
    height = np.clip(np.minimum(others[:, 3], bottom) - np.maximum(others[:, 1], top), 0, None)
    areas = np.maximum(np.prod(others[:, 2:] - others[:, :2], axis=1), 1e-9)
    is_large = others[:, 3] - others[:, 1] >= options.other_face_size * sample.height_px
    return bool(np.any((width * height / areas > options.other_face_share) & is_large))
