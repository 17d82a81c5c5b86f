"""What a video file is, found by decoding one frame at most. A file that is no usable video gives `VideoError`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.codec.hwaccel import HWAccel

from model.video.brightness import is_hdr
from model.video.orientation import read_orientation

VideoSource = str | Path | BinaryIO

_STILL_CONTAINERS = {"image2", "image2pipe", "ico"}
PICTURE_BRANDS = {"avif", "avis", "heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "mif2", "msf1"}
"""Files in the container of videos that hold pictures: HEIF and AVIF, a still or (some) a sequence."""
_ENCRYPTION_BOXES = (b"encv", b"enca", b"pssh", b"sinf")
_PLAYLIST_HEADS = (b"#EXTM3U", b"ffconcat", b"\xef\xbb\xbf#EXTM3U", b"[playlist]", b"<?xml", b"<MPD")
_HEAD_BYTES = 1 << 16
# Average and nominal rate of a constant-rate file differ by rounding only; real variable-rate files by 10 % and more.
_CONSTANT_RATE_TOLERANCE = 0.01
_LATE_START_S = 0.5
LONGEST_STEP_BACK_S = 0.5
"""Time stamps that go back by more begin anew, as where MPEG streams were joined; less is the jitter of bad muxers."""
# FFmpeg gives up on the jittery times of a file without a rate and names the ticks of its clock: 1000, 90000.
_MAX_STATED_FPS = 250
_NUM_TIMED_FRAMES = 250
_INTERLACED_ORDERS = (2, 3, 4, 5)  # FFmpeg's AV_FIELD_TT, BB, TB and BT
_MAX_SAR = 8
_MAX_PX = 16384 * 8192  # as shown: 8K four times over, and as many as Pillow takes of a still, more or less
# Of texts in a file that are no UTF-8; from 19 on PyAV replaces such letters itself and has no such option.
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}


class VideoError(ValueError):
    """A file that cannot be used as a video.

    reason: one of missing_file, empty_file, not_a_video, still_image, no_video_stream, encrypted, missing_codec,
    no_frames (opens, but nothing decodes), too_large (more pixels than any camera has), unsupported_colours (FFmpeg
    cannot bring them to RGB), unreadable (the file system refuses).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):  # exceptions cross process borders by pickling their arguments
        return VideoError, (self.reason, str(self))


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts about the main video stream of a file; None is unknown."""

    container: str
    """FFmpeg's name of the container format."""
    codec: str
    """Codec of the video stream, such as h264."""
    pix_fmt: str
    """FFmpeg's pixel format."""
    is_hdr: bool
    """Brightness is by PQ or HLG; frames are given as those of other videos, see `brightness`."""
    is_interlaced: bool
    """The file says, or its first frame, that the rows of a frame were taken at two times; frames are given without
    the combs that this makes, see `interlacing`."""
    coded_width: int
    """Width as stored, pixels."""
    coded_height: int
    """Height as stored, pixels."""
    width: int
    """Width as shown: square pixels, upright."""
    height: int
    """Height as shown: square pixels, upright."""
    sar: Fraction
    """Sample aspect ratio: width of a stored pixel over its height. 1 where the file states none, or one that is not
    credible (outside 1/8 to 8) and would make a huge picture of a small one."""
    rotation_deg: int
    """Degrees counter-clockwise that show the stored picture upright: 0, 90, 180, 270."""
    is_mirrored: bool
    """Once turned, it is shown with left and right exchanged, as front cameras ask."""
    fps: float | None
    """Average frame rate; one that is not credible is counted anew from the times of the first frames."""
    fps_fraction: Fraction | None
    """Average frame rate, exact."""
    is_vfr: bool
    """Average and nominal frame rate differ by more than 1 %, or the stated one is not credible: frames come at
    irregular times, so only presentation times tell when a frame is shown. The times themselves are not compared."""
    duration_s: float | None
    """Length of the video stream from its first frame, or of the file where the stream does not tell."""
    num_frames_in_header: int | None
    """Frame count that the file claims; edit lists and damage make it differ from what decodes."""
    start_s: float
    """Presentation time of the first frame on the file's own clock."""
    time_base: Fraction
    """Seconds per tick of presentation times."""
    has_audio: bool
    """There is an audio stream."""
    audio_codec: str | None
    """Codec of the first audio stream."""


@dataclass(frozen=True, kw_only=True)
class PacketIndex:
    """Presentation times of the frames a file should give, read from its packets without decoding.

    pts: int64 [num_frames], ascending, ticks. is_keyframe: bool [num_frames]. The frame of index i has pts[i] unless
    the file is damaged. num_discarded: packets that an edit list hides. has_open_gops: pictures shown before a key
    frame are stored after it (and may lean on the frames before it), as HEVC files mostly do. goes_back: the time
    stamps begin anew somewhere; the frames from there on are left out.
    """

    pts: np.ndarray
    is_keyframe: np.ndarray
    time_base: Fraction
    num_discarded: int
    has_open_gops: bool
    goes_back: bool

    @property
    def pts_s(self) -> np.ndarray:
        """float64 [num_frames], seconds."""
        return self.pts * float(self.time_base)


def describe_source(source: VideoSource) -> str:
    """Name of a path or file object for messages."""
    return str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "the given file object"))


def open_container(source: VideoSource, accelerator: HWAccel | None = None) -> av.container.InputContainer:
    """Open for reading; raises VideoError. File objects are rewound first. accelerator: what decodes what it can."""
    name = describe_source(source)
    head = _read_head(source, name)
    if not head:
        raise VideoError("empty_file", f"{name} is empty (0 bytes)")
    if head.lstrip().startswith(_PLAYLIST_HEADS):  # would make FFmpeg open whatever files it names
        raise VideoError("not_a_video", f"{name} is a playlist, not a video")
    try:
        # The file: protocol keeps names such as "pipe:0" or "http://..." from being anything but files.
        target = f"file:{source}" if isinstance(source, str | Path) else source
        container = av.open(target, mode="r", hwaccel=accelerator, **_LENIENT)
    except (av.FFmpegError, OSError, ValueError) as error:
        if any(box in head for box in _ENCRYPTION_BOXES):
            raise VideoError("encrypted", f"{name} is encrypted and cannot be decoded") from error
        if head[4:8] == b"ftyp" and head[8:12].decode("latin1") in PICTURE_BRANDS:
            raise VideoError("still_image", f"{name} is a still image, and damaged ({_cause(error)})") from error
        raise VideoError("not_a_video", f"{name} is not a video that FFmpeg can read ({_cause(error)})") from error
    if _is_still(container):
        container.close()
        raise VideoError("still_image", f"{name} is a still image, not a video")
    return container


def _is_still(container: av.container.InputContainer) -> bool:
    """A picture; of the formats that hold one or many (GIF, HEIF, AVIF) a file with one."""
    name = container.format.name
    if name in _STILL_CONTAINERS or name.endswith("_pipe"):
        return True
    best = container.streams.best("video")
    may_be_still = name == "gif" or container.metadata.get("major_brand") in PICTURE_BRANDS
    return may_be_still and best is not None and best.frames == 1


def video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The main video stream, set to decode on one thread; raises VideoError where there is none."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({s.type for s in container.streams})
        raise VideoError("no_video_stream", f"{name} has no video stream, only: {', '.join(kinds) or 'nothing'}")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError("missing_codec", f"{name}: FFmpeg has no decoder for its video codec")
    stream.thread_type = "NONE"  # parallelism belongs to whoever runs many videos
    stream.codec_context.thread_count = 1
    return stream


def probe_video(source: VideoSource) -> VideoInfo:
    """Facts about a video file, path or binary file object; decodes its first frame. Raises VideoError.

    The source is only read.
    """
    name = describe_source(source)
    info = _probe(source, name)
    if info.fps is None or info.fps <= _MAX_STATED_FPS:
        return info
    fps = _rate_of_packets(source)
    if fps is not None and abs(fps / info.fps_fraction - 1) <= _CONSTANT_RATE_TOLERANCE:
        return info  # a fast camera
    return replace(info, fps=float(fps) if fps else None, fps_fraction=fps, is_vfr=True)


def _probe(source: VideoSource, name: str) -> VideoInfo:
    with open_container(source) as container:
        stream = video_stream(container, name)
        _refuse_huge(stream.width, stream.height, name)  # which takes as much memory to decode
        try:
            first = next(container.decode(stream), None)
        except (av.FFmpegError, OSError) as error:
            raise VideoError("no_frames", f"{name}: no frame can be decoded ({_cause(error)})") from error
        if first is None:
            raise VideoError("no_frames", f"{name}: no frame can be decoded (its video stream is empty)")
        info = _describe(container, stream, first)
        _refuse_huge(info.width, info.height, name)
        _refuse_unknown_colours(first, name)
        return info


def _refuse_huge(width: int, height: int, name: str) -> None:
    if width * height > _MAX_PX:
        raise VideoError(
            "too_large",
            f"{name}: its pictures of {width}x{height} pixels are too large (at most {_MAX_PX / 1e6:.0f} million)",
        )


def _refuse_unknown_colours(picture: av.VideoFrame, name: str) -> None:
    sample = av.VideoFrame(16, 16, picture.format.name)
    sample.colorspace = picture.colorspace
    try:
        sample.reformat(format="rgb24", threads=1)
    except OSError as error:  # as FFmpeg says that it does not support something
        stored = f"{picture.format.name}, colour matrix {picture.colorspace} of ITU-T H.273"
        remedy = "re-encode the video as BT.709"
        raise VideoError(
            "unsupported_colours", f"{name}: FFmpeg cannot convert its colours to RGB ({stored}); {remedy}"
        ) from error


def _describe(container: av.container.InputContainer, stream: av.VideoStream, first: av.VideoFrame) -> VideoInfo:
    sar = _fraction(stream.sample_aspect_ratio) or Fraction(1)
    sar = sar if Fraction(1, _MAX_SAR) <= sar <= _MAX_SAR else Fraction(1)
    rotation_deg, is_mirrored = read_orientation(first)
    width, height = max(1, round(first.width * sar)), first.height
    if rotation_deg in (90, 270):
        width, height = height, width
    nominal = _fraction(stream.guessed_rate)
    fps = _fraction(stream.average_rate) or nominal
    audio = container.streams.audio[0] if container.streams.audio else None
    return VideoInfo(
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        pix_fmt=first.format.name,
        is_hdr=is_hdr(first),
        is_interlaced=bool(first.interlaced_frame) or stream.codec_context.field_order in _INTERLACED_ORDERS,
        coded_width=first.width,
        coded_height=first.height,
        width=width,
        height=height,
        sar=sar,
        rotation_deg=rotation_deg,
        is_mirrored=is_mirrored,
        fps=float(fps) if fps else None,
        fps_fraction=fps or None,
        is_vfr=bool(fps and nominal and abs(fps / nominal - 1) > _CONSTANT_RATE_TOLERANCE),
        duration_s=_duration_s(container, stream, float((first.pts or 0) * stream.time_base)),
        num_frames_in_header=stream.frames or None,
        start_s=float((first.pts or 0) * stream.time_base),
        time_base=_fraction(stream.time_base),
        has_audio=audio is not None,
        audio_codec=audio.codec_context.name if audio is not None and audio.codec_context is not None else None,
    )


def _rate_of_packets(source: VideoSource) -> Fraction | None:
    """Average rate of the first frames by their times; None for a single frame or without times."""
    times = []
    with open_container(source) as container, suppress(av.FFmpegError, OSError):  # a damaged tail
        stream = video_stream(container, describe_source(source))
        time_base = _fraction(stream.time_base)
        for packet in islice(container.demux(stream), _NUM_TIMED_FRAMES):
            if packet.pts is not None and not packet.is_discard:
                times.append(packet.pts)
    span_s = (max(times) - min(times)) * time_base if times else 0
    return ((len(times) - 1) / span_s).limit_denominator(1001) or None if span_s else None


def _fraction(value: Any) -> Fraction | None:
    """A rate or time base of PyAV, which from 19 on has a type of its own for them; None for none and for 0."""
    return Fraction(value.numerator, value.denominator) if value else None


def index_packets(source: VideoSource) -> PacketIndex:
    """Presentation times of every frame, from the packets alone (reads the whole file, decodes nothing)."""
    name = describe_source(source)
    times: list[tuple[int, bool]] = []
    num_discarded = 0
    has_open_gops = goes_back = False
    keyframe_pts = latest_dts = None
    with open_container(source) as container:
        stream = video_stream(container, name)
        step_back = round(LONGEST_STEP_BACK_S / stream.time_base)
        try:
            for packet in container.demux(stream):
                if packet.size == 0:  # the flush packet at the end
                    continue
                if packet.dts is not None:
                    if latest_dts is not None and packet.dts < latest_dts - step_back:
                        goes_back = True
                        break
                    latest_dts = packet.dts if latest_dts is None else max(latest_dts, packet.dts)
                if packet.is_discard:
                    num_discarded += 1
                    continue
                pts = packet.pts if packet.pts is not None else packet.dts
                if pts is None:
                    continue
                times.append((pts, packet.is_keyframe))
                has_open_gops |= keyframe_pts is not None and pts < keyframe_pts
                keyframe_pts = pts if packet.is_keyframe else keyframe_pts
        except (av.FFmpegError, OSError):
            pass  # a damaged tail: what was read is the index
        time_base = _fraction(stream.time_base)
    times.sort(key=lambda entry: entry[0])
    return PacketIndex(
        pts=np.array([pts for pts, _ in times], dtype=np.int64),
        is_keyframe=np.array([is_keyframe for _, is_keyframe in times], dtype=bool),
        time_base=time_base,
        num_discarded=num_discarded,
        has_open_gops=has_open_gops,
        goes_back=goes_back,
    )


def _duration_s(container: av.container.InputContainer, stream: av.VideoStream, start_s: float) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Matroska tells a length of the file, which some muxers count from 0 and some from the first frame.
    end_s = _end_s(container, stream) if start_s > _LATE_START_S else None
    return container.duration / av.time_base if end_s is None else end_s - start_s


def _end_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Where the last frame ends, from the packets at the end of the file; None where there is no way to them."""
    end = None
    try:
        container.seek(container.duration, backward=True)
        for packet in container.demux(stream):
            if packet.pts is not None:
                end = max(end or 0, packet.pts + (packet.duration or 0))
    except (av.FFmpegError, OSError):
        return None
    return None if end is None else float(end * stream.time_base)


def _read_head(source: VideoSource, name: str) -> bytes:
    """First bytes of the source; raises VideoError where the file system refuses."""
    try:
        if isinstance(source, str | Path):
            with open(source, "rb") as file:
                return file.read(_HEAD_BYTES)
        source.seek(0)
        head = source.read(_HEAD_BYTES)
        source.seek(0)
        return head
    except FileNotFoundError as error:
        raise VideoError("missing_file", f"{name}: no such file") from error
    except OSError as error:
        raise VideoError("unreadable", f"{name} cannot be read ({_cause(error)})") from error


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
