"""Colours and shapes of unusual files: as they should be shown, and the same from both decoders."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from model.video import open_video
from model.video.frame import pick_blocks

DECODERS = ("pyav", "decord")
_COLOURS = np.array(
    [(200, 60, 40), (60, 180, 70), (40, 70, 200), (128, 128, 128), (230, 230, 230), (30, 30, 30), (220, 170, 140)],
    np.uint8,
)
_TO_BT2020 = np.array(((0.6274, 0.3293, 0.0433), (0.0691, 0.9195, 0.0114), (0.0164, 0.0880, 0.8956)))
_WHITE = 203


def _bars(width: int, height: int) -> np.ndarray:
    """Upright bars of the colours, the upper third darker: uint8 [H, W, 3]."""
    picture = np.repeat(_COLOURS[np.arange(width) * len(_COLOURS) // width][None], height, 0)
    picture[: height // 3] //= 2
    return picture


def _pq(light: np.ndarray) -> np.ndarray:
    power = (light * _WHITE / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def _hlg(light: np.ndarray) -> np.ndarray:
    shown = light * _WHITE / 1000
    scene = shown * (shown @ (0.2627, 0.6780, 0.0593) + 1e-9)[..., None] ** (1 / 1.2 - 1)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def _write(
    path: Path, codec: str, pix_fmt: str, size: tuple[int, int], num_frames: int = 12, **options: object
) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={k: str(v) for k, v in options.items()})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for number in range(num_frames):
            picture = np.roll(_bars(*size), number, axis=0)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)))
        output.mux(stream.encode(None))
    return path


def _write_hdr(path: Path, transfer: int, encode: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]) -> Path:
    """The bars with their white at 203 cd/m2, in the colours of BT.2020."""
    values = encode((_bars(*size) / 255) ** 2.4 @ _TO_BT2020.T)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx265", rate=25, options={"x265-params": "log-level=0:lossless=1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, transfer, 1
        picture = av.VideoFrame.from_ndarray((values * 65535).round().astype(np.uint16), format="rgb48le")
        picture = picture.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
        for number in range(3):
            picture.pts = number
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def _read(path: Path, decoder: str = "pyav") -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """Index, time, sketch and picture of every frame; the sketch is taken first."""
    with open_video(path, decoder) as video:
        return [(f.index, f.pts, f.sketch(96), f.rgb()) for f in video]


def _require_the_same(path: Path) -> list[np.ndarray]:
    """The pictures of a file, which must be the same from both decoders; sketches are pixels of them."""
    frames, others = (_read(path, decoder) for decoder in DECODERS)
    assert [frame[:2] for frame in frames] == [frame[:2] for frame in others]
    for (*_, sketch, picture), (*_, other_sketch, other) in zip(frames, others, strict=True):
        np.testing.assert_array_equal(picture, other)
        np.testing.assert_array_equal(sketch, pick_blocks(picture, 96))
        np.testing.assert_array_equal(sketch, other_sketch)
    return [picture for *_, picture in frames]


def _middles(picture: np.ndarray) -> np.ndarray:
    """The colours of the bars, int [7, 3]."""
    columns = (2 * np.arange(len(_COLOURS)) + 1) * picture.shape[1] // (2 * len(_COLOURS))
    return picture[picture.shape[0] * 3 // 4, columns].astype(int)


@pytest.mark.parametrize(("transfer", "encode"), [(16, _pq), (18, _hlg)], ids=["pq", "hlg"])
def test_hdr_looks_like_the_same_scene_in_a_usual_video(tmp_path: Path, transfer: int, encode: Callable) -> None:
    path = _write_hdr(tmp_path / "hdr.mov", transfer, encode, (448, 256))
    picture = _require_the_same(path)[0]
    assert np.abs(_middles(picture) - _COLOURS).max() <= 6
    with open_video(path) as video:
        assert video.info.is_hdr


def test_lights_brighter_than_white_keep_their_order(tmp_path: Path) -> None:
    levels = np.array([0.5, 1, 2, 4, 20])

    def ramp(light: np.ndarray) -> np.ndarray:
        return _pq(np.broadcast_to(levels[np.arange(320) // 64][None, :, None], light.shape))

    shown = _read(_write_hdr(tmp_path / "hdr.mov", 16, ramp, (320, 64)))[0][-1][32, 32::64].astype(int)
    assert (shown.max(1) - shown.min(1) <= 2).all()  # greys stay grey
    assert (np.diff(shown[:, 1]) > 0).all()
    assert shown[0, 1] == pytest.approx(255 * 0.5 ** (1 / 2.4), abs=2)
    assert 235 <= shown[1, 1] <= 245
    assert shown[-1, 1] == 255


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "size"),
    [
        ("ten_bits.mp4", "libx264", "yuv420p10le", (320, 240)),
        ("ten_bits_422.mp4", "libx264", "yuv422p10le", (320, 240)),
        ("ten_bits_444.mp4", "libx264", "yuv444p10le", (320, 240)),
        ("odd.avi", "ffv1", "yuv420p", (321, 241)),
        ("odd_444.mp4", "libx264", "yuv444p", (321, 241)),
        ("narrow.mp4", "libx264", "yuv444p", (3, 241)),
        ("one_row.mp4", "libx264", "yuv444p", (241, 1)),
        ("quarter.avi", "ffv1", "yuv410p", (320, 240)),
        ("jpeg.avi", "mjpeg", "yuvj422p", (320, 240)),
        ("alpha.mov", "png", "rgba", (320, 240)),
        ("grey.avi", "ffv1", "gray", (320, 240)),
    ],
)
def test_decoders_agree_on_unusual_pixels(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, size: tuple[int, int]
) -> None:
    assert len(_require_the_same(_write(tmp_path / name, codec, pix_fmt, size))) == 12


def _join(path: Path, parts: list[Path], skipped: int = 0) -> Path:
    """Packets one after the other in one stream, without the first ones."""
    with av.open(str(path), "w") as output:
        stream, start = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                video = source.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                packets = [p for p in source.demux(video) if p.size][skipped:]
                for packet in packets:
                    packet.pts, packet.dts, packet.stream = packet.pts + start, packet.dts + start, stream
                    output.mux(packet)
                start = max(packet.pts for packet in packets) + round(0.04 / video.time_base)
    return path


def test_size_that_changes_in_a_file_distorts_nothing(tmp_path: Path) -> None:
    """As in recordings of calls: a telephone is turned, a connection gets better."""
    sizes = [(280, 210), (210, 280), (560, 420)]
    parts = [_write(tmp_path / f"{k}.webm", "libvpx", "yuv420p", size, b="2M") for k, size in enumerate(sizes)]
    pictures = _require_the_same(_join(tmp_path / "call.webm", parts))
    assert len(pictures) == 36
    assert all(picture.shape == (210, 280, 3) for picture in pictures)
    wide, turned, large = pictures[0], pictures[12], pictures[24]
    assert turned[:, :61].max() == turned[:, 219:].max() == 0  # bars beside 158 columns
    assert np.abs(_middles(turned[:, 61:219]) - _COLOURS).max() < 12
    assert np.abs(_middles(wide) - _middles(large)).max() < 12


def test_file_that_begins_without_a_key_frame(tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole.mp4", "libx264", "yuv420p", (320, 240), num_frames=30, g=10, bf=2)
    pictures = _require_the_same(_join(tmp_path / "joined_late.mp4", [whole], skipped=1))
    assert 20 <= len(pictures) < 30


@pytest.mark.parametrize(
    ("matrix", "show"),
    [
        ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
        ((1, 0, 0, -1), lambda picture: picture[::-1]),
        ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda picture: picture[::-1, ::-1].transpose(1, 0, 2)),
    ],
    ids=["left_right", "up_down", "turned_right", "turned_left"],
)
def test_mirrored_video_is_shown_as_it_asks(tmp_path: Path, matrix: tuple[int, ...], show: Callable) -> None:
    path = _write(tmp_path / "front.mp4", "libx264", "yuv420p", (320, 240))
    stored = [picture for *_, picture in _read(path)]
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, data.find(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    for picture, original in zip(_require_the_same(path), stored, strict=True):
        np.testing.assert_array_equal(picture, show(original))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_that_tell_more_than_their_orientation(tmp_path: Path, orientation: int) -> None:
    """Frames with EXIF data and a named colour profile, as photographs that were made an animated PNG."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pictures = [Image.fromarray(np.roll(_bars(64, 48), k, axis=0)) for k in (0, 10)]
    path = tmp_path / "animated.png"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, exif=exif, icc_profile=profile)
    for (*_, shown), stored in zip(_read(path), pictures, strict=True):
        stored.getexif()[ExifTags.Base.Orientation] = orientation
        np.testing.assert_array_equal(shown, ImageOps.exif_transpose(stored))


def test_pictures_of_a_video_that_tell_their_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    jpeg = io.BytesIO()
    Image.fromarray(_bars(320, 240)).save(jpeg, "JPEG", exif=exif, quality=95)
    with av.open(str(tmp_path / "camera.avi"), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        for number in range(2):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), number, number
            output.mux(packet)
    for picture in _require_the_same(tmp_path / "camera.avi"):
        assert np.abs(picture[:, :200].astype(int) - np.rot90(_bars(320, 240), -1)[:, :200]).mean() < 5
