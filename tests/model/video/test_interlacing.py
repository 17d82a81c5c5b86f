"""Interlaced video comes without combs: FFmpeg's own pictures, whatever range is read, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import av
import av.filter
import numpy as np
import pytest

from model.video import open_video
from model.video.interlacing import deinterlace
from model.video.reading import Video

NUM_FRAMES = 14
STEP_PX = 8
KEYFRAMES = (0, 5, 10)


def write_video(path: Path, size: tuple[int, int] = (180, 96), *, is_interlaced: bool = True) -> Path:
    """A bar that moves by STEP_PX a frame, by half of that between the odd rows, taken first, and the even ones."""
    options = {"x264-params": "keyint=5:scenecut=0:bframes=2:open-gop=0", "crf": "8"}
    if is_interlaced:
        options["flags"] = "+ildct+ilme"
    width, height = size
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.colorspace = 1  # BT.709
        for k in range(NUM_FRAMES):
            picture = np.full((height, width, 3), 40, np.uint8)
            for row in range(height):
                left = 10 + STEP_PX * k + (STEP_PX // 2 if row % 2 == 0 and is_interlaced else 0)
                picture[row, left : left + 30] = (200, 120, 90)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", dst_colorspace=1)
            frame.pts = k
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def decode(path: Path) -> list[tuple[int, av.VideoFrame]]:
    """The pictures as stored."""
    with av.open(str(path)) as container:
        return [(picture.pts, picture) for picture in container.decode(video=0)]


def planes(picture: av.VideoFrame) -> np.ndarray:
    return picture.to_ndarray()


def edges(rgb: np.ndarray) -> np.ndarray:
    """Where the bar begins, in rows in the middle of the picture."""
    return np.argmax(rgb[40:56, :, 0] > 120, axis=1)


def read(video: Video, *range_) -> list[tuple[int, bytes]]:
    start, end = range_ or (None, None)
    return [(frame.pts, frame.rgb().tobytes()) for frame in video.frames(start_pts=start, end_pts=end)]


def test_moving_edge_is_straight(tmp_path):
    path = write_video(tmp_path / "made.mp4")
    stored = decode(path)
    with open_video(path) as video:
        frames = list(video)
        assert video.info.is_interlaced
        assert (video.info.fps, video.info.width, video.info.height) == (25.0, 180, 96)
    assert [frame.pts for frame in frames] == [pts for pts, _ in stored]
    for k in (4, 5, 6):
        assert np.ptp(edges(stored[k][1].to_ndarray(format="rgb24"))) >= 3, "the file is what it should be"
        assert np.ptp(edges(frames[k].rgb())) <= 1
        assert np.median(edges(frames[k].rgb())) == pytest.approx(10 + STEP_PX * k, abs=1), "the time of the first rows"


def test_pictures_are_those_of_the_filter_over_the_whole_file(tmp_path):
    path = write_video(tmp_path / "made.mp4")
    graph = av.filter.Graph()
    expected = []
    with av.open(str(path)) as container:
        nodes = graph.add_buffer(template=container.streams.video[0]), graph.add("bwdif", "mode=send_frame")
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        for picture in [*container.decode(video=0), None]:
            graph.vpush(picture)
            try:
                while True:
                    expected.append(planes(graph.vpull()))
            except (av.BlockingIOError, av.EOFError):
                pass
    stored = decode(path)
    found = list(deinterlace(iter(stored)))
    assert [pts for pts, _ in found] == [pts for pts, _ in stored] == [picture.pts for _, picture in found]
    assert len(expected) == NUM_FRAMES
    for (_, picture), wanted, (_, before) in zip(found, expected, stored, strict=True):
        np.testing.assert_array_equal(planes(picture), wanted)
        assert (picture.colorspace, picture.interlaced_frame) == (1, False)
        np.testing.assert_array_equal(planes(picture)[1:96:2], planes(before)[1:96:2], "rows of the first field stay")


@pytest.mark.parametrize(("decoder", "container"), [("pyav", "mp4"), ("pyav", "ts"), ("decord", "mp4")])
def test_ranges_are_those_of_a_whole_decode(tmp_path, decoder, container):
    path = write_video(tmp_path / f"made.{container}")
    with open_video(path) as video:
        whole = read(video)
    assert len(whole) == NUM_FRAMES
    with open_video(path, decoder) as video:
        assert (video.fallback is not None) == (decoder == "decord")
        for start in (11, *KEYFRAMES[::-1], 6, 4, 1):
            end = min(start + 3, NUM_FRAMES - 1)
            assert read(video, whole[start][0], whole[end][0]) == whole[start:end], start


def test_other_pictures_are_not_touched(tmp_path):
    path = write_video(tmp_path / "made.mp4", is_interlaced=False)
    stored = decode(path)
    assert all(found is before for found, before in zip(deinterlace(iter(stored)), stored, strict=True))
    with open_video(path) as video:
        assert not video.info.is_interlaced


def test_pictures_of_another_kind_or_size_begin_anew(tmp_path):
    """And a progressive neighbour serves as one."""
    large = decode(write_video(tmp_path / "large.mp4"))
    small = decode(write_video(tmp_path / "small.mp4", (160, 96)))
    plain = decode(write_video(tmp_path / "plain.mp4", is_interlaced=False))
    found = [planes(picture) for _, picture in deinterlace(iter(large[:4] + small[:3] + large[4:6]))]
    alone = [planes(picture) for part in (large[:4], small[:3], large[4:6]) for _, picture in deinterlace(iter(part))]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    mixed = [picture for _, picture in deinterlace(iter([*plain[:2], large[2], *plain[3:5], *large[5:7]]))]
    assert [mixed[k] is plain[k][1] for k in (0, 1, 3, 4)] == [True] * 4
    assert np.ptp(edges(mixed[2].to_ndarray(format="rgb24"))) <= 1
    assert list(deinterlace(iter([]))) == []
    assert planes(next(deinterlace(iter(large[:1])))[1]).shape == (144, 180), "a single one"
