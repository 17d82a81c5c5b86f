"""Ranges are exact in containers where FFmpeg's times or seeks are not."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from model.video import index_packets, open_video
from model.video.pyav_reader import PyavReader
from tests.broken_packets import break_packets


def _write(path: Path, codec: str, container: str | None = None, num_frames: int = 90, **options: int | str) -> Path:
    """A drifting block: every frame differs from every other."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25, options={name: str(value) for name, value in options.items()})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            picture = np.full((48, 64, 3), 40, np.uint8)
            picture[5 + number % 30 : 15 + number % 30, 2 * number % 50 : 2 * number % 50 + 9] = (255, 90, 20)
            picture[40:] = 5 * number % 256
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def _frames(frames) -> list[tuple[int, bytes]]:
    return [(frame.pts, frame.rgb().tobytes()) for frame in frames]


@pytest.mark.parametrize(("codec", "container"), [("mpeg2video", "vob"), ("mpeg1video", "mpeg")])
def test_ranges_of_program_streams_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, container: str
) -> None:
    """Most of their pictures here have no time of their own."""
    path = _write(tmp_path / "made.mpg", codec, container, bf=2, g=12)
    decode, starts = PyavReader._decode, []
    monkeypatch.setattr(PyavReader, "_decode", lambda self: starts.append(None) or decode(self))
    with open_video(path) as video:
        whole = _frames(video)
        assert len({picture for _, picture in whole}) == 90
        for order, num_decodes in (((30, 35, 41, 60, 72, 84), 1), ((84, 60, 36, 36, 0), 5)):
            starts.clear()
            for start in order:
                frames = video.frames(start_pts=whole[start][0], end_pts=whole[start + 5][0])
                assert _frames(frames) == whole[start : start + 5], start
            assert len(starts) == num_decodes, "ranges in order cost one decode"
        next(iter(video))
        assert _frames(video.frames(start_pts=whole[80][0])) == whole[80:]
        assert _frames(video) == whole


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(("suffix", "ticks"), [(".avi", 1), (".asf", 40)])
def test_reordered_pictures_without_times_of_showing_come_in_order(
    tmp_path: Path, decoder: str, suffix: str, ticks: int
) -> None:
    options = {"bf": 3, "g": 20, "x264-params": "b-adapt=0:b-pyramid=1:open-gop=1"}
    path, timed = tmp_path / f"made{suffix}", _write(tmp_path / "made.ts", "libx264", **options)
    with av.open(str(timed)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.time_base = Fraction(1, 25)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with open_video(timed) as video:
        pictures = [frame.rgb().tobytes() for frame in video]
    with open_video(path, decoder) as video:
        whole = _frames(video)
        assert whole == list(zip(range(ticks, 91 * ticks, ticks), pictures, strict=True))
        assert index_packets(path).pts.tolist() == [pts for pts, _ in whole]
        for start in (20, 21, 37, 40, 19, 18, 1, 0, 60):
            frames = video.frames(start_pts=whole[start][0], end_pts=whole[start + 7][0], first_index=start)
            assert [(f.index, f.pts, f.rgb().tobytes()) for f in frames] == [
                (start + k, *whole[start + k]) for k in range(7)
            ]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("num_b_frames", [0, 2])
def test_damage_costs_the_frames_up_to_the_next_key_frame(tmp_path: Path, decoder: str, num_b_frames: int) -> None:
    path = _write(tmp_path / "made.mp4", "libx264", num_frames=125, g=25, bf=num_b_frames, sc_threshold=0)
    with open_video(path) as video:
        clean = _frames(video)
        assert (video.left_out, video.stopped_early) == (None, None)
    break_packets(path, 30, 55, 60)
    with open_video(path, decoder) as video:
        frames = list(video)
        assert [f.index for f in frames] == list(range(len(frames)))
        kept = [clean.index(frame) for frame in _frames(frames)]
        second, third = kept.index(50), kept.index(75)
        held = 2 * num_b_frames  # at most: pictures that the decoder still has are lost too
        assert 29 - held <= kept[second - 1] < 30
        assert 54 - held <= kept[third - 1] < 55
        missing = [pts for pts, _ in clean if pts not in {f.pts for f in frames}]
        ends_s = [pts * video.info.time_base for pts in (missing[0], missing[-1])]
        told = "{} frames from {:.2f} s to {:.2f} s are left out for damage".format(len(missing), *map(float, ends_s))
        assert kept == sorted(kept)
        assert (video.left_out, video.stopped_early) == (told, None)
        assert missing[-1] == clean[74][0]
        for start, end in ((0, 20), (26, 60), (35, 40), (40, 52), (50, 80), (80, 90)):  # beside, over and in the holes
            expected = [clean[k] for k in kept if start <= k < end]
            got = _frames(video.frames(start_pts=clean[start][0], end_pts=clean[end][0]))
            assert got == expected, (start, end)
            assert (video.left_out is None) == (len(expected) == end - start)
    break_packets(path, 110)
    with open_video(path, decoder) as video:
        frames = _frames(video)
        assert frames == [clean[k] for k in kept if k < 110 and clean[k] in frames]
        assert 109 - held <= clean.index(frames[-1]) < 110
        assert (video.left_out, video.stopped_early) == (
            told,
            "decoding stopped: Invalid data found when processing input",
        )


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("num_b_frames", [0, 2])
def test_damage_right_behind_a_key_frame(tmp_path: Path, decoder: str, num_b_frames: int) -> None:
    """The decoder gives the key frame only after the broken packet, and then pictures that lean on that one."""
    path = _write(tmp_path / "made.mp4", "libx264", num_frames=75, g=25, bf=num_b_frames, sc_threshold=0)
    with open_video(path) as video:
        clean = _frames(video)
    break_packets(path, 26)
    with open_video(path, decoder) as video:
        frames = _frames(video)
    kept = [clean.index(frame) for frame in frames]
    assert kept == [*range(len(kept) - 25), *range(50, 75)]
    assert 25 - 2 * num_b_frames <= kept[-26] <= 25


def test_without_times_damage_is_the_end(tmp_path: Path) -> None:
    """Nothing tells how long the hole is: times would go on as if there were none."""
    path = _write(tmp_path / "made.h264", "libx264", "h264", num_frames=75, g=25, bf=0, sc_threshold=0)
    data = path.read_bytes()
    with av.open(str(path)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    cut = data.index(b"\0\0\1", places[30]) + 4
    path.write_bytes(data[:cut] + bytes(range(255, 245, -1)) + data[places[31] :])
    with open_video(path) as video:
        frames = list(video)
        assert [f.pts_s for f in frames] == pytest.approx([k / 25 for k in range(30)])
        assert (video.left_out, video.stopped_early) == (
            None,
            "decoding stopped: Invalid data found when processing input",
        )
