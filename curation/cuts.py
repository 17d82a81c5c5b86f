"""Cuts between shots, on every frame, exact to the frame."""

from __future__ import annotations

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from curation.recipe import ScanOptions

PICTURE_SIDE_PX = 256
"""Longer side of the pictures that cuts are looked for on."""


class _ScoringDetector(AdaptiveDetector):
    """The adaptive detector, with the scores that it compared."""

    def __init__(self, **options: float) -> None:
        super().__init__(**options)
        self.scores: list[float] = []
        self._last_planes: tuple[np.ndarray, ...] = ()

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: np.ndarray) -> float:
        """Mean change of hue, saturation and brightness: the own number of the detector in a third of the time."""
        planes = cv2.split(cv2.cvtColor(frame_img, cv2.COLOR_RGB2HSV))
        last, self._last_planes = self._last_planes or planes, planes
        pixels = float(planes[0].size)
        return sum(cv2.norm(*pair, cv2.NORM_L1) / pixels for pair in zip(planes, last, strict=True)) / 3.0

    def process_frame(self, timecode: FrameTimecode, frame_img: np.ndarray) -> list[FrameTimecode]:
        found = super().process_frame(timecode, frame_img)
        self.scores.append(self._frame_score or 0.0)
        return found


class CutFinder:
    """PySceneDetect's adaptive detector over the frames of a span, fed one by one.

    A cut is known `options.cut_window_frames` frames after it happened: `settled` says up to where all are known. Where
    the picture changes as abruptly on a frame close by (a black frame between two shots), that frame starts a shot of
    its own, so that no shot shows any part of the change. The detector wants frames on both sides of a cut; the first
    and last frames are compared with those on one side. `finish` when there are no more frames.
    """

    def __init__(self, options: ScanOptions, fps: float) -> None:
        self._fps = max(fps, 1.0)
        self._options = options
        self._detector = _ScoringDetector(
            adaptive_threshold=options.cut_ratio,
            min_scene_len=max(1, round(options.min_shot_s * self._fps)),
            window_width=options.cut_window_frames,
            min_content_val=options.min_cut_change,
        )
        self.cuts: list[int] = []
        """Positions (frames since the start of the span) of the first frames of new shots, ascending."""

    def add(self, picture: np.ndarray) -> None:
        """Look at the next frame. picture: uint8 [h, w, 3], RGB, all of one size: `Frame.sketch(PICTURE_SIDE_PX)`.

        Pixels are picked, not averaged: for differences between frames that serves as well and costs little.
        """
        timecode = FrameTimecode(len(self._detector.scores), self._fps)
        found = self._detector.process_frame(timecode, picture)
        window = self._options.cut_window_frames
        for cut in found:
            around = self._abrupt_changes(
                cut.frame_num - window, cut.frame_num + window + 1, cut.frame_num - 2 * window
            )
            self.cuts = sorted({*self.cuts, cut.frame_num, *around})
        if len(self._detector.scores) == 2 * window + 1:
            self.cuts = sorted({*self.cuts, *self._abrupt_changes(1, window, 1)})

    def finish(self) -> None:
        """Find the cuts on the last frames."""
        window, num_frames = self._options.cut_window_frames, len(self._detector.scores)
        first = 1 if num_frames <= 2 * window else num_frames - window
        self.cuts = sorted({*self.cuts, *self._abrupt_changes(first, num_frames, num_frames - 2 * window - 1)})

    def _abrupt_changes(self, start: int, end: int, compare_from: int) -> list[int]:
        """Frames [start, end) that change much more than is usual from `compare_from` to the last frame seen."""
        scores = self._detector.scores
        usual = float(np.median(scores[max(1, compare_from) :] or [0.0]))
        limit = max(self._options.min_cut_change, self._options.cut_ratio * usual)
        return [k for k in range(max(1, start), min(end, len(scores))) if scores[k] >= limit]

    @property
    def settled(self) -> int:
        """Cuts before this position are all known."""
        return len(self._detector.scores) - 2 * self._options.cut_window_frames
