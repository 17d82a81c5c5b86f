"""Written files decode to what was written, at the exact rate, with the sound of the other file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from model.video import VideoWriter, open_video, probe_video

ROOT = Path(__file__).resolve().parents[3]


def _frames(num_frames: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    y, x = np.mgrid[0:height, 0:width]
    return [
        np.stack([128 + 100 * np.sin((x + 2 * i) / 30), 128 + 100 * np.cos(y / 25), np.full_like(x, 90.0)], 2).astype(
            np.uint8
        )
        for i in range(num_frames)
    ]


def _write_all(path: Path, frames: list[np.ndarray]) -> None:
    with VideoWriter(path, 25) as writer:
        for frame in frames:
            writer.write(frame)


def _refuse(*_: Path) -> None:
    raise PermissionError("not allowed")


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def _tone(
    path: Path, seconds: float, codec: str, rate: int = 44100, heard_s: Sequence[tuple[float, float]] = ((0.0, 1e9),)
) -> None:
    """A grey video with a 440 Hz tone, of which only these ranges of seconds are stored."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = output.add_stream(codec, rate=rate, layout="mono")
        for _ in range(round(seconds * 10)):
            grey = np.full((64, 64, 3), 128, np.uint8)
            output.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        samples = (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
        size = audio.codec_context.frame_size or 1024
        for start in range(0, len(samples), size):
            if not any(start_s <= start / rate < end_s for start_s, end_s in heard_s):
                continue
            block = samples[None, start : start + size]
            kind = audio.codec_context.format.name
            if kind.startswith("s"):
                kind_of_number = np.int16 if kind.startswith("s16") else np.int32
                block = (block * np.iinfo(kind_of_number).max).astype(kind_of_number)
            frame = av.AudioFrame.from_ndarray(block, format=kind, layout="mono")
            frame.rate, frame.pts = rate, start
            output.mux(audio.encode(frame))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))


def _sound(path: Path) -> tuple[str, float, float]:
    """(codec, length in seconds, root mean square) of the sound track."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        blocks = [frame.to_ndarray().astype(np.float64) for frame in container.decode(stream)]
        length_s = sum(b.shape[1] if stream.codec_context.format.is_planar else b.size for b in blocks) / stream.rate
        return (
            stream.codec_context.codec.canonical_name,
            length_s,
            float(np.sqrt(np.mean(np.concatenate(blocks, 1) ** 2))),
        )


@pytest.mark.parametrize(
    ("name", "fps"), [("out.mp4", Fraction(30000, 1001)), ("out.webm", Fraction(25)), ("out.mov", Fraction(24))]
)
def test_video_round_trip(tmp_path: Path, name: str, fps: Fraction) -> None:
    frames = _frames(12)
    with VideoWriter(tmp_path / name, fps) as writer:
        for frame in frames:
            writer.write(frame)
        assert not (tmp_path / name).exists()
    assert os.listdir(tmp_path) == [name]
    with open_video(tmp_path / name) as video:
        decoded = list(video)
    assert video.info.fps == pytest.approx(float(fps), rel=1e-3)
    assert [f.pts_s for f in decoded] == pytest.approx([i / float(fps) for i in range(12)], abs=1e-3)
    assert min(_psnr_db(f.rgb(), frame) for f, frame in zip(decoded, frames, strict=True)) > 33


def test_mp4_rate_is_exact(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", Fraction(24000, 1001)) as writer:
        for frame in _frames(10):
            writer.write(frame)
    assert probe_video(tmp_path / "out.mp4").fps_fraction == Fraction(24000, 1001)


def test_gif_keeps_colours_and_times(tmp_path: Path) -> None:
    frames = _frames(8)
    with VideoWriter(tmp_path / "out.gif", Fraction(20)) as writer:
        for frame in frames:
            writer.write(frame)
    with open_video(tmp_path / "out.gif") as video:
        decoded = list(video)
    assert [round(f.pts_s, 2) for f in decoded] == [round(i / 20, 2) for i in range(8)]
    assert min(_psnr_db(f.rgb(), frame) for f, frame in zip(decoded, frames, strict=True)) > 26


def test_png_folder_is_lossless(tmp_path: Path) -> None:
    frames = _frames(3, height=33, width=47)
    with VideoWriter(tmp_path / "frames", Fraction(25)) as writer:
        for frame in frames:
            writer.write(frame)
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == ["000000.png", "000001.png", "000002.png"]
    for index, frame in enumerate(frames):
        assert np.array_equal(cv2.imread(str(tmp_path / f"frames/{index:06d}.png"))[..., ::-1], frame)
    with pytest.raises(ValueError, match="it exists"):
        VideoWriter(tmp_path / "frames", Fraction(25))


def test_odd_sizes_lose_the_last_row_and_column(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", 25) as writer:
        writer.write(_frames(1, height=97, width=131)[0])
    info = probe_video(tmp_path / "out.mp4")
    assert (info.width, info.height) == (130, 96)


@pytest.mark.parametrize(
    ("source", "codec", "target", "expected"),
    [
        ("tone.mp4", "aac", "out.mp4", "aac"),
        ("tone.mp4", "aac", "out.webm", "opus"),
        ("tone.mkv", "pcm_s16le", "out.mp4", "aac"),
        ("tone.mkv", "libopus", "out.webm", "opus"),
    ],
)
def test_sound_is_kept_and_cut_with_the_pictures(
    tmp_path: Path, source: str, codec: str, target: str, expected: str
) -> None:
    _tone(tmp_path / source, 3.0, codec, rate=48000)
    with VideoWriter(tmp_path / target, 25, audio_from=tmp_path / source, audio_start_s=0.5) as writer:
        for frame in _frames(40):
            writer.write(frame)
    found, length_s, level = _sound(tmp_path / target)
    assert found == expected
    assert length_s == pytest.approx(1.6, abs=0.1)
    assert level == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    assert len(list(open_video(tmp_path / target))) == 40


@pytest.mark.parametrize("target", ["out.mp4", "out.webm"])
def test_transcoded_sound_keeps_its_time(tmp_path: Path, target: str) -> None:
    _tone(tmp_path / "tone.mkv", 4.0, "pcm_s16le", rate=48000, heard_s=[(1.0, 1.5), (2.5, 3.0)])
    with VideoWriter(tmp_path / target, 25, audio_from=tmp_path / "tone.mkv", audio_start_s=0.25) as writer:
        for frame in _frames(80):
            writer.write(frame)
    with av.open(str(tmp_path / target)) as container:
        heard = []
        for frame in container.decode(audio=0):
            level = np.abs(frame.to_ndarray()).mean()
            heard += [frame.time] * bool(level > 0.1)
    breaks = np.flatnonzero(np.diff(heard) > 0.2)
    assert len(breaks) == 1
    edges = (heard[0], heard[breaks[0]], heard[breaks[0] + 1], heard[-1])
    assert edges == pytest.approx((0.75, 1.25, 2.25, 2.75), abs=0.045)  # of blocks of 20 ms


@pytest.mark.parametrize(("rate", "expected"), [(37800, 44100), (192000, 96000), (44100, 44100)])
def test_sound_of_a_rate_that_the_encoder_does_not_take(tmp_path: Path, rate: int, expected: int) -> None:
    _tone(tmp_path / "tone.mkv", 0.5, "pcm_s16le", rate=rate)
    with VideoWriter(tmp_path / "out.mp4", 25, audio_from=tmp_path / "tone.mkv") as writer:
        for frame in _frames(10):
            writer.write(frame)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].rate == expected
    assert _sound(tmp_path / "out.mp4")[1] == pytest.approx(0.4, abs=0.05)


def _with_sound_of(source: Path, target: Path, num_frames: int) -> str | None:
    """Writes pictures with the sound of another file; why that ended early."""
    with VideoWriter(target, 25, audio_from=source) as writer:
        for frame in _frames(num_frames):
            writer.write(frame)
    assert len(list(open_video(target))) == num_frames
    return writer.sound_stopped_early


@pytest.mark.parametrize("codec", ["aac", "ac3"])
def test_sound_of_joined_files_is_that_of_the_first(tmp_path: Path, codec: str) -> None:
    _tone(tmp_path / "tone.ts", 1.0, codec, rate=48000)
    (tmp_path / "joined.ts").write_bytes((tmp_path / "tone.ts").read_bytes() * 2)
    assert _with_sound_of(tmp_path / "joined.ts", tmp_path / "out.mp4", 50) is None
    assert _sound(tmp_path / "out.mp4")[:2] == (codec, pytest.approx(1.0, abs=0.05))


@pytest.mark.parametrize(
    ("rate", "target", "expected"), [(8000, "mp4", "aac"), (8000, "mov", "mp3"), (16000, "mp4", "mp3")]
)
def test_sound_that_the_container_refuses_is_transcoded(tmp_path: Path, rate: int, target: str, expected: str) -> None:
    _tone(tmp_path / "tone.mkv", 1.0, "libmp3lame", rate=rate)
    _with_sound_of(tmp_path / "tone.mkv", tmp_path / f"out.{target}", 25)
    assert _sound(tmp_path / f"out.{target}")[:2] == (expected, pytest.approx(1.0, abs=0.1))


def test_damaged_sound_ends_and_the_pictures_go_on(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "tone.aac"), "w") as output:
        stream = output.add_stream("aac", rate=48000, layout="mono")
        for start in range(0, 96000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 48000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    content = bytearray((tmp_path / "tone.aac").read_bytes())
    position = 0
    for _ in range(50):  # 1.07 s: each header tells the length of its block
        position += int.from_bytes(content[position + 3 : position + 6]) >> 5 & 0x1FFF
    content[position + 1] &= 0xFE
    content[position + 6] |= 1  # a kind of block that FFmpeg does not write
    (tmp_path / "tone.aac").write_bytes(content)
    said = _with_sound_of(tmp_path / "tone.aac", tmp_path / "out.mp4", 50)
    assert said.startswith("stopped at 1.1 s (")
    assert _sound(tmp_path / "out.mp4")[1] == pytest.approx(50 * 1024 / 48000, abs=0.03)


def test_first_sound_is_kept_where_its_length_is_unknown(tmp_path: Path) -> None:
    _tone(tmp_path / "tone.nut", 1.0, "libopus", rate=48000)
    with av.open(str(tmp_path / "tone.nut")) as container:
        packet = next(container.demux(audio=0))
        start_s = float(packet.pts * packet.time_base)
    assert not packet.duration
    with VideoWriter(tmp_path / "out.webm", 25, audio_from=tmp_path / "tone.nut", audio_start_s=start_s) as writer:
        writer.write(_frames(1)[0])
    with av.open(str(tmp_path / "out.webm")) as container:
        assert bytes(next(container.demux(audio=0))) == bytes(packet)


def test_source_without_sound_gives_a_silent_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "silent.mp4", 25) as writer:
        writer.write(_frames(1)[0])
    with VideoWriter(tmp_path / "out.mp4", 25, audio_from=tmp_path / "silent.mp4") as writer:
        writer.write(_frames(1)[0])
    assert not probe_video(tmp_path / "out.mp4").has_audio


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / f"{'a' * 250}.mp4"
    _write_all(long, _frames(1))
    long.unlink()
    for name in ("out.mp4", "out.gif", "frames"):
        with pytest.raises(ValueError, match="expected uint8"):
            _write_all(tmp_path / name, [_frames(1)[0], np.zeros((4, 4), np.uint8)])
        with pytest.raises(ValueError, match="no frame"), VideoWriter(tmp_path / name, 25):
            pass
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", _refuse)
            with pytest.raises(OSError, match="not allowed"):
                _write_all(tmp_path / name, _frames(1))
    assert os.listdir(tmp_path) == []


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name in \.mp4"):
        VideoWriter(tmp_path / "out.avi", 25)
    with pytest.raises(ValueError, match="folder does not exist"):
        VideoWriter(tmp_path / "absent/out.mp4", 25)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match="it is a folder"):
        VideoWriter(tmp_path / "folder.mp4", 25)
    (tmp_path / "folder.mp4").rmdir()
    with pytest.raises(ValueError, match="File name too long"):
        VideoWriter(tmp_path / f"{'a' * 300}.mp4", 25)
    with pytest.raises(ValueError, match="must be positive"):
        VideoWriter(tmp_path / "out.mp4", 0)
    with pytest.raises(ValueError, match="the first one was"):
        _write_all(tmp_path / "out.mp4", [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)])
    assert os.listdir(tmp_path) == []


_WRITE_REPRODUCIBLY = """
import sys
import cv2
import numpy as np
import skimage.data
from model.video import VideoWriter

picture = skimage.data.astronaut()
with VideoWriter(sys.argv[1], 25, reproducible=True) as writer:
    for k in range(30):
        turned = cv2.getRotationMatrix2D((224, 110), 4 * np.sin(k / 8), 2 + k / 200)
        writer.write(cv2.warpAffine(picture, turned, (480, 480), flags=cv2.INTER_CUBIC))
"""


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif"])
def test_reproducible_files_do_not_depend_on_what_memory_held_before(tmp_path: Path, name: str) -> None:
    files = []
    for fill in (85, 170):
        path = tmp_path / str(fill) / name
        path.parent.mkdir()
        environment = os.environ | {"MALLOC_PERTURB_": str(fill)}
        subprocess.run([sys.executable, "-c", _WRITE_REPRODUCIBLY, path], check=True, env=environment, cwd=ROOT)
        files.append(path.read_bytes())
    assert files[0] == files[1]
