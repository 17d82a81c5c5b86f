"""The second reader: decord, to the same bits as PyAV. It decodes ahead, so 720p video costs it 1-2 GB of memory."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from model.video.frame import Frame
from model.video.probing import PacketIndex, VideoInfo, VideoSource, describe_source, index_packets
from model.video.pyav_reader import PyavReader

# Containers with an index; decord starts and seeks inexactly in streams such as MPEG-TS, and does not tell where the
# size of the picture changes, as it does in WebM and Matroska files of calls.
_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "avi"}
# Of formats with fewer colours than pixels those that become RGB without an interpolation, in which decord's differs.
_SUBSAMPLED = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"}
_EXIF_CODECS = {"mjpeg", "png"}
_MIN_SIDE_PX = 16
# decord tells frame times as float32 seconds.
_TIME_TOLERANCE_S = 2e-3


class DecordReader:
    """Decodes one file with decord; PyAV reads what decord cannot, and `fallback` tells from where and why."""

    decoder = "decord"

    def __init__(self, source: VideoSource, info: VideoInfo) -> None:
        if not isinstance(source, str | Path):
            raise ValueError(f"decord reads paths only, got {describe_source(source)}; use decoder='pyav'")
        self.info = info
        self.fallback: str | None = None
        self.stopped_early: str | None = None
        self.num_corrupt = 0
        self._source = source
        self._pyav: PyavReader | None = None
        self._packets: PacketIndex = index_packets(source)
        self._decord = None
        self._is_at_start = True
        try:
            _check_pictures(info)
            self._decord = _open_decord(source)
            self._check_index()
        except _decord_errors() as error:
            self._fall_back(0, error)

    def _check_index(self) -> None:
        """decord numbers packets, hidden and broken ones too; go on only where its numbers are those of the frames."""
        pts_s = self._packets.pts_s
        if len(pts_s) and not self._packets.is_keyframe[0]:
            raise RuntimeError("the file does not begin with a key frame")
        if len(self._decord) != len(pts_s) or self._packets.num_discarded:
            raise RuntimeError(f"it counts {len(self._decord)} frames where the file shows {len(pts_s)}")
        times_s = self._decord.get_frame_timestamp(np.arange(len(pts_s)))[:, 0]
        if np.abs((times_s - times_s[0]) - (pts_s - pts_s[0])).max() > _TIME_TOLERANCE_S:
            raise RuntimeError("its frame times are not those of the file")

    def _fall_back(self, index: int, error: Exception) -> None:
        why = str(error).strip() or type(error).__name__
        self.fallback = f"decord failed at frame {index}, PyAV reads on: {why.splitlines()[-1][:200]}"
        self._decord = None
        self._pyav = PyavReader(self._source, self.info)

    def frames(self, start_pts: int | None, end_pts: int | None, first_index: int | None) -> Iterator[Frame]:
        """Frames with start_pts <= pts < end_pts in presentation order; the first one gets `first_index`."""
        pts = self._packets.pts
        begin = 0 if start_pts is None else int(np.searchsorted(pts, start_pts))
        end = len(pts) if end_pts is None else int(np.searchsorted(pts, end_pts))
        position = begin
        if self._decord is not None and begin < end:
            try:
                self._seek(begin)
                while position < end:
                    picture = self._decord.next()
                    yield self._frame(position, first_index, begin, picture)
                    position += 1
            except _decord_errors() as error:
                self._fall_back(position, error)
        if self._pyav is not None and (position < end or end_pts is None):
            resume_pts = start_pts if position == begin else int(pts[position])
            index = None if first_index is None else first_index + position - begin
            yield from self._pyav.frames(resume_pts, end_pts, index)
            self.stopped_early, self.num_corrupt = self._pyav.stopped_early, self._pyav.num_corrupt

    @property
    def left_out(self) -> str | None:
        """What damage cost inside the range that was read last: PyAV reads on where decord meets it."""
        return None if self._pyav is None else self._pyav.left_out

    def _seek(self, begin: int) -> None:
        is_at_start, self._is_at_start = self._is_at_start, False
        if is_at_start and begin == 0:
            return
        if self._packets.has_open_gops:
            raise RuntimeError("it cannot seek exactly in open groups of pictures")
        if is_at_start:
            self._decord.next()  # some streams describe themselves in the first frame only
        self._decord.seek_accurate(begin)

    def _frame(self, position: int, first_index: int | None, begin: int, picture) -> Frame:
        pts = int(self._packets.pts[position])
        return Frame(
            index=None if first_index is None else first_index + position - begin,
            pts=pts,
            pts_s=float(pts * self._packets.time_base),
            is_corrupt=None,
            decode_rgb=picture.asnumpy,  # decord turns pictures upright itself
            display_size=(self.info.width, self.info.height),
        )

    def close(self) -> None:
        """Release the decoder and its frames decoded ahead."""
        self._decord = None
        if self._pyav is not None:
            self._pyav.close()


def _check_pictures(info: VideoInfo) -> None:
    """RuntimeError where decord's pictures may differ from PyAV's."""
    if info.container not in _CONTAINERS:
        raise RuntimeError(f"it is not exact in {info.container} files")
    if info.is_hdr or info.is_mirrored:
        raise RuntimeError("it knows neither HDR nor mirrored pictures")
    if info.rotation_deg and info.codec in _EXIF_CODECS:
        raise RuntimeError("it turns pictures as the container says, not as they say themselves")
    if info.is_interlaced:
        raise RuntimeError("it leaves the combs of interlaced pictures")
    width, height = info.coded_width, info.coded_height
    form = av.VideoFormat(info.pix_fmt, width, height)
    is_whole = (form.chroma_width(), form.chroma_height()) == (width, height)
    is_exact = info.pix_fmt in _SUBSAMPLED and width % 2 == 0 == height % 2
    if not (is_whole or is_exact) or min(width, height) < _MIN_SIDE_PX:
        raise RuntimeError(f"it converts {info.pix_fmt} of {width}x{height} pixels in another way")


def _open_decord(path: str | Path):
    importlib.import_module("torch")  # decord loaded before torch crashes the process
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)


def _decord_errors() -> tuple[type[Exception], ...]:
    import decord

    return (decord.DECORDError, RuntimeError, StopIteration)
