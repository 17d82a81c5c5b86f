"""Encoding results: mp4, webm, gif or a folder of PNG files, at an exact frame rate, with the sound of another file."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np

from model.video.destination import check_writable, partial_path
from model.video.probing import open_container

VIDEO_SUFFIXES = {".mp4": "mp4", ".mov": "mov", ".webm": "webm", ".gif": "gif"}
_COPYABLE_AUDIO = {
    "mp4": {"aac", "mp3", "opus", "alac", "ac3"},
    "mov": {"aac", "mp3", "alac"},
    "webm": {"opus", "vorbis"},
}
_AUDIO_ENCODER = {"mp4": "aac", "mov": "aac", "webm": "libopus"}
_MAX_SOUND_SLIP_S = 0.05
"""Times of sound are rounded; only a gap or an overlap above this is one."""
_SILENCE_SAMPLES = 4096


def check_destination(path: str | Path) -> None:
    """ValueError where `VideoWriter` cannot write: unknown ending, no place, or a folder of pictures that exists."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix and suffix not in VIDEO_SUFFIXES:
        kinds = ", ".join(VIDEO_SUFFIXES)
        raise ValueError(f"cannot write {path}: expected a name in {kinds}, or no suffix for a folder of PNGs")
    if not suffix and os.path.lexists(path):
        raise ValueError(f"cannot write PNG files to {path}: it exists; give a new name")
    check_writable(path)


class VideoWriter:
    """Writes frames one by one; the result appears under its name only when complete.

        with VideoWriter("out.mp4", Fraction(30000, 1001), audio_from="talk.mp4") as writer:
            writer.write(frame)  # uint8 [H, W, 3], RGB, all of one size

    path: .mp4, .mov, .webm, .gif, or a name without suffix for a folder of PNG files (000000.png ...).
    audio_from: file whose first sound track is kept (copied where the container can hold it, else transcoded, with
    silence in its gaps), shifted so that `audio_start_s` on that file's clock falls on the first frame, and cut where
    the frames end.
    reproducible: the same bytes in every run, on any number of cores; H.264 becomes larger, real clips by 5 to 65 %.
    Without it x264's macroblock tree reads memory that nobody has written (AVX-512 code, version 165), and WebM files
    have random ids.
    Odd sizes lose their last row or column in mp4, mov and webm: 4:2:0 video has even sizes only.
    """

    def __init__(
        self,
        path: str | Path,
        fps: Fraction | float,
        *,
        audio_from: str | Path | None = None,
        audio_start_s: float = 0.0,
        reproducible: bool = False,
    ) -> None:
        self.path = Path(path)
        self.num_frames = 0
        self.size_px: tuple[int, int] | None = None
        """Width and height of what is written, once there is a frame."""
        self.sound_stopped_early: str | None = None
        """When and why the sound ended before the pictures did, known once the file is closed; None where it did not
        break off."""
        self._fps = Fraction(fps).limit_denominator(1_000_000)
        if self._fps <= 0:
            raise ValueError(f"frame rate must be positive, got {fps}")
        check_destination(self.path)
        suffix = self.path.suffix.lower()
        self._partial = partial_path(self.path)
        has_sound = audio_from is not None and suffix in VIDEO_SUFFIXES and suffix != ".gif"
        audio = (audio_from, audio_start_s) if has_sound else None
        self._encoder = None
        if suffix:
            self._encoder = _Encoder(self._partial, VIDEO_SUFFIXES[suffix], self._fps, audio, reproducible)
        else:
            self._partial.mkdir()

    def write(self, frame: np.ndarray) -> None:
        """Append a frame: uint8 [H, W, 3], RGB."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"expected uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        if self._encoder is None:
            png = np.ascontiguousarray(frame[..., ::-1])
            if not cv2.imwrite(str(self._partial / f"{self.num_frames:06d}.png"), png):
                raise OSError(f"cannot write into {self._partial}")
            height, width = frame.shape[:2]
        else:
            height, width = self._encoder.write(frame, self.num_frames)
        self.size_px = (width, height)
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self.num_frames == 0:
            self.abort()
            raise ValueError(f"no frame was written to {self.path}")
        try:
            if self._encoder is not None:
                self._encoder.close(self.num_frames)
                self.sound_stopped_early = self._encoder.sound_stopped_early
            os.replace(self._partial, self.path)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Throw away what was written."""
        if self._encoder is not None:
            with suppress(av.FFmpegError, OSError):  # of a full disk, which is told already
                self._encoder.abandon()
            self._partial.unlink(missing_ok=True)
        else:
            shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class _Encoder:
    """One output file: the video stream, made when the first frame tells its size, and the sound beside it."""

    def __init__(
        self, path: Path, container: str, fps: Fraction, audio: tuple[str | Path, float] | None, reproducible: bool
    ) -> None:
        self._name = container
        self._is_reproducible = reproducible
        self._fps = fps
        options = {"movflags": "+faststart"} if container in ("mp4", "mov") else {}
        if reproducible:
            options["fflags"] = "+bitexact"
        self._output = av.open(str(path), "w", format=container, options=options)
        self._video: av.VideoStream | None = None
        self._graph: av.filter.Graph | None = None
        self._audio = audio
        self._sound: _Sound | None = None
        self._size: tuple[int, ...] = ()

    @property
    def sound_stopped_early(self) -> str | None:
        return self._sound.stopped_early if self._sound is not None else None

    def _start(self, height: int, width: int) -> None:
        self._size = (height, width)
        if self._name == "gif":
            self._video = self._output.add_stream("gif", rate=self._fps)
            self._video.pix_fmt = "pal8"
            self._graph = _palette_graph(width, height, self._fps)
        elif self._name == "webm":
            options = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
            self._video = self._output.add_stream("libvpx-vp9", rate=self._fps, options=options)
            self._video.pix_fmt = "yuv420p"
        else:
            options = {"crf": "17", "preset": "medium"} | ({"mbtree": "0"} if self._is_reproducible else {})
            self._video = self._output.add_stream("libx264", rate=self._fps, options=options)
            self._video.pix_fmt = "yuv420p"
        if self._is_reproducible:
            self._video.codec_context.thread_count = 1
        self._video.width, self._video.height = width, height
        self._video.codec_context.time_base = 1 / self._fps
        if self._name != "gif":
            self._video.codec_context.colorspace = av.video.reformatter.Colorspace.ITU709
            self._video.codec_context.color_primaries = self._video.codec_context.color_trc = 1  # BT.709
            self._video.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
        if self._audio is not None:
            self._sound = _Sound(self._output, self._name, *self._audio)

    def write(self, frame: np.ndarray, index: int) -> tuple[int, ...]:
        """Returns the height and width that the video has."""
        if self._name != "gif":
            frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
        if self._video is None:
            self._start(*frame.shape[:2])
        if frame.shape[:2] != self._size:
            raise ValueError(f"frame {index} is {list(frame.shape[:2])}, the first one was {list(self._size)}")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = index, 1 / self._fps
        if self._graph is not None:
            self._graph.push(picture)
            picture = self._graph.pull()
        else:
            bt709 = av.video.reformatter.Colorspace.ITU709
            picture = picture.reformat(format="yuv420p", dst_colorspace=bt709, threads=1)
        self._output.mux(self._video.encode(picture))
        if self._sound is not None:
            self._sound.mux_until(float(index / self._fps))
        return self._size

    def close(self, num_frames: int) -> None:
        self._output.mux(self._video.encode(None))
        if self._sound is not None:
            self._sound.mux_until(float(num_frames / self._fps))
            self._sound.close()
        self._output.close()

    def abandon(self) -> None:
        if self._sound is not None:
            self._sound.close()
        self._output.close()


class _Sound:
    """The sound track of another file, copied or transcoded packet by packet beside the frames."""

    def __init__(
        self, output: av.container.OutputContainer, container: str, source: str | Path, start_s: float
    ) -> None:
        self._output = output
        self._start_s = start_s
        self._input = open_container(source)
        self._stream = None
        self._packets: Iterator[av.Packet] = iter(())
        self._waiting: tuple[float, av.Packet] | None = None
        self._latest_s = 0.0
        self.stopped_early: str | None = None
        streams = [s for s in self._input.streams.audio if s.codec_context is not None]
        if not streams:
            return
        if _can_copy(streams[0], container):
            self._stream = output.add_stream_from_template(streams[0])
            self._packets = self._copied(streams[0])
        else:
            encoder = _AUDIO_ENCODER[container]
            rate = _encoder_rate(encoder, streams[0].codec_context.rate)
            layout = "mono" if streams[0].codec_context.layout.nb_channels == 1 else "stereo"
            self._stream = output.add_stream(encoder, rate=rate, layout=layout)
            self._packets = self._transcoded(streams[0])

    def _copied(self, stream: av.AudioStream) -> Iterator[tuple[float, av.Packet]]:
        offset = round(self._start_s / stream.time_base)
        latest = None
        for packet in self._input.demux(stream):
            if packet.size == 0 or packet.pts is None or packet.pts + (packet.duration or 1) <= offset:
                continue
            if latest is not None and packet.pts <= latest:  # of a joined file, say: there is sound for that time
                continue
            latest = packet.pts
            packet.pts -= offset
            packet.dts = packet.pts
            packet.stream = self._stream
            yield float(packet.pts * stream.time_base), packet

    def _transcoded(self, stream: av.AudioStream) -> Iterator[tuple[float, av.Packet]]:
        for frame in chain(self._placed(stream), [None]):
            for packet in self._stream.encode(frame):
                yield float(packet.pts * packet.time_base), packet

    def _placed(self, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
        """The sound from the first picture on, each sample at its time: silence fills gaps, overlaps are cut."""
        rate, layout = self._stream.codec_context.rate, self._stream.codec_context.layout
        num_samples = 0
        for time_s, samples in self._resampled(stream, rate, layout):
            slip = 0 if time_s is None else round((time_s - self._start_s) * rate) - num_samples
            if num_samples == 0 or abs(slip) > _MAX_SOUND_SLIP_S * rate:
                gap = np.zeros((len(samples), max(0, min(slip, _SILENCE_SAMPLES))), np.float32)
                for start in range(0, slip, _SILENCE_SAMPLES):
                    yield _sound_frame(gap[:, : slip - start], num_samples + start, rate, layout)
                num_samples += max(0, slip)
                samples = samples[:, max(0, -slip) :]
            if samples.shape[1]:
                yield _sound_frame(samples, num_samples, rate, layout)
                num_samples += samples.shape[1]

    def _resampled(
        self, stream: av.AudioStream, rate: int, layout: av.AudioLayout
    ) -> Iterator[tuple[float | None, np.ndarray]]:
        """(time on the source's clock if known, float32 [channels, n]) of what is heard after the first picture."""
        kind, resampler = None, None
        for decoded in self._input.decode(stream):
            if decoded.time is not None and decoded.time + decoded.samples / decoded.sample_rate <= self._start_s:
                continue
            before, kind = kind, (decoded.format.name, decoded.layout.name, decoded.sample_rate)
            if kind != before:
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            yield from ((frame.time, frame.to_ndarray()) for frame in resampler.resample(decoded))

    def mux_until(self, end_s: float) -> None:
        """Write the packets that begin before `end_s` seconds of output."""
        while True:
            if self._waiting is None:
                try:
                    self._waiting = next(self._packets, None)
                except av.FFmpegError as error:
                    self._stop(error)
                if self._waiting is None:
                    return
            time_s, packet = self._waiting
            if time_s >= end_s:
                return
            self._latest_s, self._waiting = time_s, None
            try:
                self._output.mux(packet)
            except av.FFmpegError as error:
                if isinstance(error, OSError):  # of the disk
                    raise
                self._stop(error)

    def _stop(self, error: av.FFmpegError) -> None:
        """Damaged sound ends early; the pictures go on."""
        self._packets = iter(())
        self.stopped_early = f"stopped at {self._latest_s:.1f} s ({error.strerror})"

    def close(self) -> None:
        self._input.close()


def _can_copy(stream: av.AudioStream, container: str) -> bool:
    """Whether a container takes a sound track as it is; of some codecs not every rate."""
    if stream.codec_context.codec.canonical_name not in _COPYABLE_AUDIO[container]:
        return False
    with suppress(av.FFmpegError), av.open(io.BytesIO(), "w", format=container) as trial:
        trial.add_stream_from_template(stream)
        trial.start_encoding()
        return True
    return False


def _encoder_rate(encoder: str, rate: int) -> int:
    """The rate that an encoder of sound takes for one of `rate`: the next above where it does not take this one."""
    if encoder == "libopus":
        return 48000
    rates = av.Codec(encoder, "w").audio_rates or [rate]
    return min((known for known in rates if known >= rate), default=max(rates))


def _sound_frame(samples: np.ndarray, start: int, rate: int, layout: av.AudioLayout) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame


def _palette_graph(width: int, height: int, fps: Fraction) -> av.filter.Graph:
    """A palette of its own for every frame: good colours, and nothing has to be held back."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / fps)
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph
