"""`open_video()`: one way to read frames, three decoders behind it that give the same frames bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

from model.video.decord_reader import DecordReader
from model.video.frame import Frame
from model.video.nvdec_reader import NvdecReader, require_gpu
from model.video.probing import VideoInfo, VideoSource, probe_video
from model.video.pyav_reader import PyavReader

DECODERS = {"pyav": PyavReader, "decord": DecordReader, "nvdec": NvdecReader}


def require_decoder(decoder: str) -> None:
    """ValueError where a decoder cannot work on this machine, or there is none of that name."""
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}, expected one of: {', '.join(DECODERS)}")
    if decoder == "nvdec":
        require_gpu()


class Video:
    """An open video: iterate it for all frames, or ask `frames()` for a range. One iteration at a time."""

    def __init__(self, source: VideoSource, decoder: str, *, guess_matrix: bool = False) -> None:
        require_decoder(decoder)
        assert not (guess_matrix and decoder == "decord"), "decord does not tell the matrix"
        self.info: VideoInfo = probe_video(source)
        self._reader = DECODERS[decoder](source, self.info)
        if guess_matrix:
            self._reader.guesses_matrix = True

    @property
    def stopped_early(self) -> str | None:
        """Why the last iteration ended before the file did: damage, or time stamps that begin anew; None after a clean
        end."""
        return self._reader.stopped_early

    @property
    def left_out(self) -> str | None:
        """How many frames damage cost inside the last iteration, and where; None where it cost none. Frames go on with
        the next key frame, numbered as if nothing were missing."""
        return self._reader.left_out

    @property
    def num_corrupt(self) -> int:
        """Frames so far whose damage the decoder concealed (only PyAV tells)."""
        return self._reader.num_corrupt

    @property
    def fallback(self) -> str | None:
        """Why and from which frame on PyAV read what decord could not; None where decord read everything."""
        return self._reader.fallback

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def frames(
        self,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        start_pts: int | None = None,
        end_pts: int | None = None,
        first_index: int | None = None,
    ) -> Iterator[Frame]:
        """Frames of the half-open range of presentation times, each exactly as a decode of the whole file gives it.

        Give the range in seconds or in ticks of `info.time_base` (exact). Frames are numbered from `first_index`, or
        from 0 where the range begins with the file; else `frame.index` is None and `frame.pts` says which frame it is.
        """
        if (start_s is not None and start_pts is not None) or (end_s is not None and end_pts is not None):
            raise ValueError("give a range in seconds or in ticks, not both")
        if start_s is not None:
            start_pts = self._first_tick(start_s)
        if end_s is not None:
            end_pts = self._first_tick(end_s)
        if first_index is None and start_pts is None:
            first_index = 0
        return self._reader.frames(start_pts, end_pts, first_index)

    def _first_tick(self, seconds: float) -> int:
        """First tick at or after a time; the margin takes up the rounding of seconds that came from ticks."""
        return math.ceil(seconds / self.info.time_base - 1e-3)

    def close(self) -> None:
        """Release the decoder; the file was only read."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_video(source: VideoSource, decoder: str = "pyav", *, guess_matrix: bool = False) -> Video:
    """Open a video file (path; PyAV also takes a binary file object) for reading; raises VideoError.

        with open_video("talk.mp4") as video:
            for frame in video:  # or video.frames(start_s=10.0, end_s=20.0)
                picture = frame.rgb()  # uint8 [H, W, 3], upright, square pixels

    Damaged files give the frames that decode and do not lean on those that do not: `video.left_out` tells of holes,
    `video.stopped_early` of damage that no key frame follows. Files whose time stamps begin anew (joined MPEG streams)
    give the frames before that, which `video.stopped_early` says too.

    guess_matrix: colours as players show them. Where a file does not say how its colours are stored, players take
    BT.709 for HD (wider than 1279 or higher than 576); without this, all such files are BT.601, as data sets have them.
    """
    return Video(source, decoder, guess_matrix=guess_matrix)
