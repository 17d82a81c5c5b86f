"""The default reader: PyAV, one thread, sequential, about 80 MB for 720p however long the video is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from heapq import heapify, heappop, heappush
from itertools import chain

import av
import numpy as np

from model.video.brightness import is_hdr, to_sdr
from model.video.frame import Frame, block_positions, fit_picture, pick_blocks, rotate_upright
from model.video.interlacing import deinterlace, is_combed
from model.video.probing import (
    LONGEST_STEP_BACK_S,
    VideoInfo,
    VideoSource,
    describe_source,
    index_packets,
    open_container,
    video_stream,
)

_HALVED_FORMATS = ("yuv420p", "yuvj420p")
"""One colour for 2 x 2 pixels, 8 bits: converted pixel by pixel, whatever is around them."""
_UNSEEKABLE_CONTAINERS = ("gif", "h264", "hevc", "mpegvideo", "m4v", "mpeg")
"""No index and no times; in program streams (mpeg) most pictures may be without one, and FFmpeg counts on from the last
that it read: after a seek, to other times."""
_UNTIMED_CONTAINERS, _REORDERED_CODECS = ("avi", "asf"), ("h264", "hevc")
"""Their times are those of decoding: FFmpeg gives each picture that of its packet, as if none were reordered."""
_JOINABLE_CONTAINER = "mpegts"
"""Two files one after the other are a file; seeking in it is by time stamps, which may occur twice."""
_UNKNOWN_MATRIX, _BT709 = 2, 1  # FFmpeg's AVCOL_SPC_UNSPECIFIED and AVCOL_SPC_BT709
_LARGE_PX = 600_000
"""Smaller pictures are converted to RGB in no more time than it takes to pick some pixels out first."""


class PyavReader:
    """Decodes one file. `stopped_early` tells why decoding ended before the file did; None after a clean end."""

    decoder = "pyav"
    fallback: str | None = None
    guesses_matrix = False
    """Whether HD pictures that do not say by which matrix their colours are stored are taken for BT.709, as by players.
    Otherwise they are BT.601, as all others that do not say."""

    def __init__(self, source: VideoSource, info: VideoInfo) -> None:
        self.info = info
        self.stopped_early: str | None = None
        self.num_corrupt = 0
        self._source = source
        self._range: tuple[int | None, int | None] = None, None
        self._lost: list[int | None] = []  # pts of what was left out before a key frame
        self._open()

    def _open(self) -> None:
        self._container = self._open_container()
        self._stream = video_stream(self._container, describe_source(self._source))
        self._is_at_start = True
        self._held: tuple[int, av.VideoFrame] | None = None

    def _open_container(self) -> av.container.InputContainer:
        return open_container(self._source)

    def frames(self, start_pts: int | None, end_pts: int | None, first_index: int | None) -> Iterator[Frame]:
        """Frames with start_pts <= pts < end_pts in presentation order; the first one gets `first_index`."""
        index, ticks = first_index, self._stream.time_base
        self._range = start_pts, end_pts
        for pts, picture in self._pictures(start_pts):
            if end_pts is not None and pts >= end_pts:
                return
            self.num_corrupt += picture.is_corrupt
            if self.guesses_matrix and picture.colorspace == _UNKNOWN_MATRIX and _is_hd(picture):
                picture.colorspace = _BT709
            yield Frame(
                index=index,
                pts=pts,
                pts_s=pts * ticks.numerator / ticks.denominator,
                is_corrupt=bool(picture.is_corrupt),
                decode_rgb=partial(_to_rgb, picture, self.info),
                display_size=(self.info.width, self.info.height),
                pick_rgb=self._picker(picture),
            )
            index = None if index is None else index + 1

    @property
    def left_out(self) -> str | None:
        """What damage cost inside the range that was read last; None: nothing. See `stopped_early` for its end."""
        start, end = self._range
        lost = [pts for pts in self._lost if pts is not None]
        lost = [pts for pts in lost if (start is None or pts >= start) and (end is None or pts < end)]
        if not lost:
            return None
        first_s, last_s = (float(pts * self._stream.time_base) for pts in (min(lost), max(lost)))
        return f"{len(lost)} frames from {first_s:.2f} s to {last_s:.2f} s are left out for damage"

    def _picker(self, picture: av.VideoFrame) -> Callable[[int], np.ndarray] | None:
        """What gives pixels of the picture as shown, bit for bit, for less than all of it costs; None: nothing does."""
        width, height = picture.width, picture.height
        if self.info.rotation_deg or self.info.is_mirrored or (width, height) != (self.info.width, self.info.height):
            return None
        if is_hdr(picture):
            return partial(_pick_sdr, picture)
        is_even = width % 2 == 0 == height % 2
        can_pick = is_even and width * height >= _LARGE_PX and picture.format.name in _HALVED_FORMATS
        return partial(_pick_rgb, picture) if can_pick else None

    def _pictures(self, start_pts: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """(pts, picture) from start_pts on, exact: what a decode from the start of the file would give."""
        step = _ticks(self._stream, 1.0)
        back = 0
        while start_pts is not None and self._can_seek(start_pts - back):
            found = self._seek_keyframe(start_pts, start_pts - back)
            if found is not None:
                yield from ((pts, picture) for pts, picture in deinterlace(found()) if pts >= start_pts)
                return
            back = max(step, 2 * back)  # the key frame found lies after start_pts: try an earlier one
        for pts, picture in self._decode_on(start_pts):
            if start_pts is None or pts >= start_pts:
                yield pts, picture

    def _decode_on(self, start_pts: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """What a decode from the start of the file gives, or the rest of it where all before lies before start_pts.

        So ranges that are asked for in order cost one decode where seeking is not exact.
        """
        if start_pts is None or self._held is None or self._passed_pts >= start_pts:
            if not self._is_at_start:
                self._container.close()
                self._open()
            self._is_at_start = False
            self._held, self._ahead, self._passed_pts = None, deinterlace(self._decode()), -math.inf
        for pts, picture in chain([] if self._held is None else [self._held], self._ahead):
            self._held = pts, picture
            yield pts, picture
            self._passed_pts = max(self._passed_pts, pts)
        self._held = None

    def _can_seek(self, pts: int) -> bool:
        start = self._stream.start_time or 0
        is_exact = self.info.container not in _UNSEEKABLE_CONTAINERS and not self._lacks_pts
        return pts > start and is_exact and not self._goes_back

    @property
    def _lacks_pts(self) -> bool:
        """Whether times are those of decoding: then the earliest that is left is that of the next picture shown."""
        is_untimed = self.info.container in _UNTIMED_CONTAINERS and self.info.codec in _REORDERED_CODECS
        return is_untimed and self._stream.codec_context.has_b_frames

    @cached_property
    def _goes_back(self) -> bool:
        """Whether time stamps begin anew in the file, so that a seek may lead to the wrong place."""
        if self.info.container != _JOINABLE_CONTAINER:
            return False
        goes_back = index_packets(self._source).goes_back
        self._container.close()  # a file object has one position, which is no longer where this container left it
        self._open()
        return goes_back

    def _seek_keyframe(self, start_pts: int, target_pts: int) -> Callable | None:
        """Seek to the key frame before target_pts; a function that decodes from it, or None if it is too late.

        Pictures that come out before the key frame lean on frames before it (open groups of pictures), so they are
        dropped: only a decode from an earlier key frame shows them intact.
        """
        self._held = None
        try:
            if self._is_at_start:
                # 4:4:4 streams of old x264 tell their version in the first frame only, and decode to noise without it.
                self._is_at_start = False
                next(self._container.decode(self._stream), None)
            self._container.seek(target_pts, stream=self._stream, backward=True)
        except (av.FFmpegError, OSError):
            return None
        pictures = self._decode()
        for pts, picture in pictures:
            if pts > start_pts:
                return None
            if picture.key_frame:
                if pts == start_pts and is_combed(picture):
                    return None  # deinterlacing takes the one before, too
                return lambda: _prepend((pts, picture), pictures)
        return None

    def _decode(self) -> Iterator[tuple[int, av.VideoFrame]]:
        latest_pts: int | None = None
        step_back = _ticks(self._stream, LONGEST_STEP_BACK_S)
        self.stopped_early, self._lost = None, []
        try:
            for pts, picture in self._decode_packets():
                if pts is None:  # no times in the file: count in nominal frame durations
                    rate = self._stream.guessed_rate or 25
                    pts = 0 if latest_pts is None else latest_pts + max(1, _ticks(self._stream, float(1 / rate)))
                if latest_pts is not None and pts < latest_pts - step_back:
                    times_s = [float(ticks * self._stream.time_base) for ticks in (latest_pts, pts)]
                    self.stopped_early = "time stamps go back from {:.2f} s to {:.2f} s".format(*times_s)
                    return
                latest_pts = pts if latest_pts is None else max(latest_pts, pts)
                yield pts, picture
        except (av.FFmpegError, OSError) as error:
            self.stopped_early = f"decoding stopped: {getattr(error, 'strerror', None) or error}"

    def _decode_packets(self) -> Iterator[tuple[int | None, av.VideoFrame]]:
        """(pts, picture) as they come; None where they have no time.

        What cannot be decoded is left out, and all up to the next key frame: pictures lean on it, and are not flagged.
        """
        lacks_pts, times = self._lacks_pts, []
        error, broken, hole = None, None, []
        for packet in self._container.demux(self._stream):
            time = packet.dts if packet.pts is None else packet.pts
            if lacks_pts and time is not None:
                heappush(times, time)
            try:
                pictures = packet.decode()
            except av.InvalidDataError as caught:
                if time is None:  # then nothing tells how long the hole is
                    raise
                error, broken, pictures = caught, time, []
                hole.append(time)
                if time in times:
                    times.remove(time)
                    heapify(times)
            for picture in pictures:
                own = picture.dts if picture.pts is None else picture.pts
                pts = heappop(times) if times else own
                is_held = broken is not None and own is not None and own < broken  # decoded before, given after
                if error is not None and (is_held or not picture.key_frame):
                    hole.append(pts)
                    continue
                self._lost += hole
                error, broken, hole = None, None, []
                yield pts, picture
        if error is not None:
            raise error

    def close(self) -> None:
        """Release the decoder."""
        self._container.close()


def _to_rgb(picture: av.VideoFrame, info: VideoInfo) -> np.ndarray:
    """The upright picture, pixels as stored; where the size changes within the file, fitted to that of `info`."""
    rgb = to_sdr(_hdr_rgb(picture), picture) if is_hdr(picture) else _convert(picture, "rgb24")
    rgb = rotate_upright(rgb, info.rotation_deg, info.is_mirrored)
    if (picture.width, picture.height) == (info.coded_width, info.coded_height):
        return rgb
    wide, high = (info.sar, 1) if info.rotation_deg in (0, 180) else (1, info.sar)
    return fit_picture(rgb, float(wide / high), info.width, info.height)


def _is_hd(picture: av.VideoFrame) -> bool:
    return picture.width >= 1280 or picture.height > 576


def _convert(picture: av.VideoFrame, form: str) -> np.ndarray:
    # threads=1: automatic slice threads in the colour conversion cost more CPU than they save.
    return picture.to_ndarray(format=form, threads=1)


def _hdr_rgb(picture: av.VideoFrame) -> np.ndarray:
    return _convert(picture, "rgb48le")


def _pick_sdr(picture: av.VideoFrame, long_side_px: int) -> np.ndarray:
    """`pick_blocks` of an HDR picture, picked before its brightness is changed."""
    return to_sdr(pick_blocks(_hdr_rgb(picture), long_side_px), picture)


def _pick_rgb(picture: av.VideoFrame, long_side_px: int) -> np.ndarray:
    """`pick_blocks` of the picture in RGB, picked before it is converted."""
    columns, rows = block_positions(picture.width, picture.height, long_side_px)
    y, u, v = (np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in picture.planes)
    pairs = y.take((2 * rows[:, None] + (0, 1)).ravel(), axis=0).view(np.uint16)
    luma = pairs.take(columns, axis=1).view(np.uint8)
    chroma = [plane.take(rows, axis=0).take(columns, axis=1).ravel() for plane in (u, v)]
    picked = np.concatenate([luma.ravel(), *chroma]).reshape(-1, luma.shape[1])
    small = av.VideoFrame.from_ndarray(picked, format=picture.format.name)
    small.colorspace, small.color_range = picture.colorspace, picture.color_range
    return _convert(small, "rgb24")


def _ticks(stream: av.VideoStream, seconds: float) -> int:
    return round(seconds / stream.time_base)


def _prepend(first: tuple, rest: Iterator) -> Iterator:
    yield first
    yield from rest
