"""Cuts between shots, on every frame, exact to the frame."""

from __future__ import annotations

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from curation.recipe import ScanOptions

PICTURE_SIDE_PX = 256
"""Longer side of the pictures that cuts are looked for on."""


class CutFinder:
    """PySceneDetect's adaptive detector over the frames of a span, fed one by one.

    A cut is known `options.cut_window_frames` frames after it happened: `settled` says up to where all are known.
    """

    def __init__(self, options: ScanOptions, fps: float) -> None:
        self._fps = max(fps, 1.0)
        self._window = options.cut_window_frames
        self._detector = AdaptiveDetector(
            adaptive_threshold=options.cut_ratio,
            min_scene_len=max(1, round(options.min_shot_s * self._fps)),
            window_width=options.cut_window_frames,
            min_content_val=options.min_cut_change,
        )
        self._num_frames = 0
        self.cuts: list[int] = []
        """Positions (frames since the start of the span) of the first frames of new shots, ascending."""

    def add(self, picture: np.ndarray) -> None:
        """Look at the next frame. picture: uint8 [h, w, 3], RGB, longer side PICTURE_SIDE_PX."""
        timecode = FrameTimecode(self._num_frames, self._fps)
        found = self._detector.process_frame(timecode, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.cuts += [cut.frame_num for cut in found]
        self._num_frames += 1

    @property
    def settled(self) -> int:
        """Cuts before this position are all known."""
        return self._num_frames - self._window
