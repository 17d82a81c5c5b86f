"""Probing tells what index.csv tells, and gives a reason for every file that is no usable video."""

from __future__ import annotations

import csv
import pickle
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, features

from model.animation.pictures import open_clip
from model.video import VideoError, index_packets, probe_video


def test_probe_agrees_with_the_ground_truth(media: Path) -> None:
    with open(media / "index.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("videos/")]
    assert len(rows) == 23
    for row in rows:
        info = probe_video(media / row["path"])
        rotated = info.rotation_deg in (90, 270)
        numerator, _, denominator = (row["sar"] or "1").partition("/")
        found = {
            "container": info.container,
            "codec": info.codec,
            "pix_fmt": info.pix_fmt,
            "coded": (info.coded_width, info.coded_height),
            "shown_height": info.width if rotated else info.height,
            "rotation": info.rotation_deg,
            "sar": float(info.sar),
            "vfr": info.is_vfr,
            "frames_in_header": info.num_frames_in_header or 0,
            "audio": info.audio_codec or "none",
        }
        expected = {
            "container": row["container"],
            "codec": row["codec"],
            "pix_fmt": row["pix_fmt"],
            "coded": (int(row["width"]), int(row["height"])),
            "shown_height": int(row["height"]),
            "rotation": int(row["rotation"]),
            "sar": int(numerator) / int(denominator or 1),
            "vfr": row["vfr"] == "yes",
            "frames_in_header": int(row["frames_in_header"]),
            "audio": row["audio"],
        }
        assert found == expected, row["path"]
        assert info.fps == pytest.approx(float(row["fps"]), abs=1e-3)
        assert info.has_audio == (row["audio"] != "none")
        if row["duration_s"]:  # of the file there, of the video stream here
            assert info.duration_s == pytest.approx(
                float(row["duration_s"]), abs=0.1 if "v07" not in row["path"] else 1.0
            )
        else:
            assert info.duration_s is None


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("m01_audio_only.mp4", "no_video_stream", "only: audio"),
        ("m02_subtitle_only.mp4", "no_video_stream", "no video stream"),
        ("m03_truncated_fragmented_0frames.mp4", "no_frames", "no frame can be decoded"),
        ("m04_encrypted_open_fails.mp4", "encrypted", "encrypted"),
        ("m07_zero_bytes.webm", "empty_file", "0 bytes"),
    ],
)
def test_malformed_files_give_reasons(media: Path, name: str, reason: str, words: str) -> None:
    with pytest.raises(VideoError, match=words) as caught:
        probe_video(media / "malformed" / name)
    assert caught.value.reason == reason
    assert name in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, str(copy)) == (reason, str(caught.value))


def test_metadata_that_is_not_utf8_does_not_matter(media: Path) -> None:
    path = media / "malformed/m05_non_utf8_metadata_h263.3gp"
    info = probe_video(path)
    assert (info.codec, info.coded_width, info.width, info.is_vfr) == ("h263", 352, 384, True)
    assert len(index_packets(path).pts) == 71


@pytest.mark.parametrize("starts_with_the_first_frame", [False, True])
def test_length_of_matroska_that_starts_late(tmp_path: Path, starts_with_the_first_frame: bool) -> None:
    """Its header tells when the last frame ends (FFmpeg), or from the first frame on (mkvmerge)."""
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"g": "25"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(100):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 125 + k, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a double in ms
    assert struct.unpack_from(">d", data, place) == (9000.0,)
    if starts_with_the_first_frame:
        struct.pack_into(">d", data, place, 4000.0)
        path.write_bytes(data)
    info = probe_video(path)
    assert info.start_s == pytest.approx(5.0, abs=0.1)
    assert info.duration_s == pytest.approx(4.0)


def test_codec_that_nobody_knows(tmp_path: Path) -> None:
    path = _stretched(tmp_path / "video.mp4", 64, 48, 1, 1)
    data = path.read_bytes()
    assert data.count(b"mp4v") == 1
    path.write_bytes(data.replace(b"mp4v", b"zzz9").replace(b"esds", b"free"))
    with pytest.raises(VideoError, match="no decoder for its video codec") as caught:
        probe_video(path)
    assert caught.value.reason == "missing_codec"


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video\n" * 100)
    picture = tmp_path / "picture.mp4"
    with av.open(str(picture), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {picture.name}\n")
    for path, reason in [
        (playlist, "not_a_video"),
        (text, "not_a_video"),
        (picture, "still_image"),
        (tmp_path / "absent.mp4", "missing_file"),
    ]:
        with pytest.raises(VideoError) as caught:
            probe_video(path)
        assert caught.value.reason == reason, path
    with pytest.raises(VideoError) as caught:
        probe_video(tmp_path)
    assert caught.value.reason == "unreadable"


def _stretched(path: Path, width: int, height: int, wide: int, high: int) -> Path:
    """An MP4 that states pixels of wide:high."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        output.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
        output.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, data.index(b"pasp") + 4, wide, high)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("wide", "high", "width"),
    [(4, 3, 85), (8, 1, 512), (1, 8, 8), (81, 10, 64), (10, 81, 64), (100_000, 1, 64), (1, 100_000, 64)],
)
def test_pixels_that_no_camera_has_are_square(tmp_path: Path, wide: int, high: int, width: int) -> None:
    info = probe_video(_stretched(tmp_path / "video.mp4", 64, 48, wide, high))
    assert (info.width, info.height) == (width, 48)
    assert info.sar == (Fraction(wide, high) if width != 64 else 1)


def test_huge_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _stretched(tmp_path / "video.mp4", 64, 48, 5, 1)
    monkeypatch.setattr("model.video.probing._MAX_PX", 5 * 64 * 48)
    assert probe_video(path).width == 5 * 64
    for limit in (5 * 64 * 48 - 1, 64 * 48 - 1):  # as shown; as stored, before a picture is decoded
        monkeypatch.setattr("model.video.probing._MAX_PX", limit)
        with pytest.raises(VideoError, match=r"(320|64)x48 pixels are too large") as caught:
            probe_video(path)
        assert caught.value.reason == "too_large"


@pytest.mark.parametrize("matrix", [1, 8, 9, 10, 14])
def test_colours_that_cannot_be_converted_are_told(tmp_path: Path, matrix: int) -> None:
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.colorspace = matrix
        output.mux(stream.encode(av.VideoFrame(64, 48, "yuv444p")))
        output.mux(stream.encode(None))
    if matrix in (1, 9):  # BT.709, BT.2020
        assert probe_video(path).pix_fmt == "yuv444p"
        return
    with pytest.raises(VideoError, match=rf"yuv444p, colour matrix {matrix} of .* re-encode .* BT\.709") as caught:
        probe_video(path)
    assert caught.value.reason == "unsupported_colours"


def test_pictures_in_the_formats_of_videos_are_stills(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "one.ico", sizes=[(48, 48)])
    kinds = ["gif"] + ["avif"] * features.check("avif")
    for kind in kinds:
        pictures[0].save(tmp_path / f"one.{kind}")
        pictures[0].save(tmp_path / f"two.{kind}", save_all=True, append_images=pictures[1:], duration=500)
        assert probe_video(tmp_path / f"two.{kind}").num_frames_in_header == 2
    for kind in (*kinds, "ico"):
        with pytest.raises(VideoError, match="still image") as caught:
            probe_video(tmp_path / f"one.{kind}")
        assert caught.value.reason == "still_image"


def _webm(path: Path, times_ms: list[int]) -> Path:
    """As a browser records: times in milliseconds, no rate, no length."""
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as output:
        stream = output.add_stream("libvpx", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.framerate = Fraction(1, 1000), Fraction(0)
        for time_ms in times_ms:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time_ms % 255, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def test_jittery_times_without_a_rate_give_their_average(tmp_path: Path) -> None:
    jitter_ms = (0, 1, -1, 16, 0, 7, 33, -5)
    times_ms = [40 * i + jitter_ms[i % 8] for i in range(60)]
    with av.open(str(_webm(tmp_path / "jitter.webm", times_ms))) as container:
        assert container.streams.video[0].average_rate is None or container.streams.video[0].average_rate >= 500
    info = probe_video(tmp_path / "jitter.webm")
    assert info.fps == pytest.approx(25, rel=0.02)
    assert info.fps == float(info.fps_fraction)
    assert info.is_vfr
    clip = open_clip(tmp_path / "jitter.webm")
    assert sum(1 for _ in clip.frames()) == pytest.approx(60, abs=2)
    assert probe_video(_webm(tmp_path / "one.webm", [0])).fps is None
    fast = probe_video(_webm(tmp_path / "fast.webm", [2 * i for i in range(60)]))  # a fast camera: as it is
    assert fast.fps_fraction == 500


def test_names_are_files_and_never_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="no such file"):
        probe_video("https://127.0.0.1:9/video.mp4")
    with pytest.raises(VideoError, match="no such file"):
        probe_video("pipe:0")
