"""Pictures that go in: stills of every kind, videos at a constant rate, and what is too large."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from model.animation.driving import damage_notes
from model.animation.pictures import load_still, open_clip, resize_transform, scaled_within
from model.framing import transform_points
from model.video import VideoWriter, open_video
from tests.broken_packets import break_packets
from tests.heic import write_heic

STILL = "images/i16_man_with_glasses_and_beard_white_background.jpg"
TALK = "videos/v01_woman_plainwall_512_30fps_audio.mp4"


def test_constant_rate_shows_variable_rate_videos_at_the_right_times(media: Path) -> None:
    path = media / "videos/v10_man_suit_vfr22fps_700.mp4"
    with open_video(path) as video:
        times = [(frame.pts_s - video.info.start_s, frame.small(16)) for frame in video]
    clip = open_clip(path, fps=Fraction(30))
    shown = [cv2.resize(frame, (16, 16)) for frame in clip.frames()]
    assert len(shown) == pytest.approx(clip.info.duration_s * 30, abs=2)
    for index in (0, 17, 60, 120, 170):
        expected = [picture for time_s, picture in times if time_s <= (index + 0.5) / 30][-1]
        assert np.abs(shown[index].astype(int) - expected).mean() < 12
    constant = open_clip(media / TALK)
    assert sum(1 for _ in constant.frames()) == 354  # each frame once


@pytest.mark.parametrize(("size", "is_hd"), [((1280, 720), True), ((720, 576), False)])
def test_videos_that_do_not_tell_their_matrix_have_the_colours_of_players(tmp_path: Path, size, is_hd) -> None:
    path, colour = tmp_path / "untagged.mp4", (200, 60, 40)
    matrix = Colorspace.ITU709 if is_hd else Colorspace.ITU601
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), colour, np.uint8), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=matrix)
        picture.colorspace = 2  # not told
        output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 2
    shown = next(open_clip(path).frames())
    assert np.abs(shown.astype(int) - colour).max() <= 3
    with open_video(path) as video:  # as data sets have it
        assert (np.abs(next(iter(video)).rgb().astype(int) - colour).max() > 8) == is_hd
    with VideoWriter(tmp_path / "out.mp4", 25) as writer:
        writer.write(shown)
    kept = next(open_clip(tmp_path / "out.mp4").frames())
    assert np.abs(kept.astype(int) - colour).max() <= 4


def test_damage_is_told_by_who_reads_on_to_it(media: Path) -> None:
    clip = open_clip(media / "malformed/m06_damaged_28_of_50_frames.mp4")
    assert sum(1 for _ in clip.frames()) == 28
    assert clip.stopped_early == "decoding stopped: Invalid data found when processing input, after 2.8 s"
    start = open_clip(media / "malformed/m06_damaged_28_of_50_frames.mp4", max_s=2.0)
    assert sum(1 for _ in start.frames()) == 20
    assert start.stopped_early is None


def test_a_hole_in_a_video_is_told_and_the_picture_before_it_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    scenes = np.random.default_rng(0).integers(0, 240, (2, 64, 64, 3), np.uint8)
    with VideoWriter(path, 25) as writer:
        for k in range(80):
            writer.write(scenes[k // 40] + k % 7)
    break_packets(path, 30)
    clip = open_clip(path)
    frames = list(clip.frames())
    assert len(frames) == 80
    assert len({frame.tobytes() for frame in frames[30:40]}) == 1
    told = re.fullmatch(r"\d+ frames from 1\.\d\d s to 1\.56 s are left out for damage", clip.left_out)
    assert list(damage_notes(clip, "driving")) == [f"driving video: {told[0]}; the frame before them stands still"]
    short = open_clip(path, max_s=2.0)
    assert (len(list(short.frames())), short.left_out) == (50, clip.left_out)


def test_heic_of_a_telephone_in_tiles(media: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiles.HEIC"
    expected = np.asarray(Image.open(media / STILL).convert("RGB"))[:300, 50:250]
    write_heic(path, expected, quarter_turns=1)
    assert open_clip(path) is None
    picture = load_still(path)
    assert picture.shape == (200, 300, 3)
    assert np.abs(picture - np.rot90(expected).astype(int)).mean() < 3
    whole = path.read_bytes()
    for size in (12, 300, 2000, len(whole) - 20):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="neither a picture nor a video that can be read"):
            load_still(path)


def test_stills_of_all_kinds(media: Path, tmp_path: Path) -> None:
    assert load_still(media / "images/i09_shiba_dog_face_png_data_in_a_jpg_file.jpg").shape == (512, 512, 3)
    assert load_still(media / "images/i26_chrome_robot_with_glasses_palette_mode_png.png").shape == (640, 512, 3)
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3] = (10, 20, 30, 255)
    cv2.imwrite(str(tmp_path / "clear.png"), rgba[..., [2, 1, 0, 3]])
    picture = load_still(tmp_path / "clear.png")
    assert (picture[:, :3] == (10, 20, 30)).all()
    assert (picture[:, 3:] == 255).all()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "grey.png"), grey * np.uint16(257))
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "i.tif")
    Image.fromarray(grey / np.float32(255)).save(tmp_path / "unit.tif")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "bytes.tif")
    for name in ("grey.png", "i.tif", "unit.tif", "bytes.tif"):
        assert np.array_equal(load_still(tmp_path / name)[..., 1], grey), name
    Image.open(media / STILL).save(tmp_path / "one.gif")
    Image.open(media / STILL).save(tmp_path / "one.ico", sizes=[(256, 256)])
    for name, size in (("one.gif", 400), ("one.ico", 256)):
        assert open_clip(tmp_path / name) is None, name
        assert load_still(tmp_path / name).shape == (size, size, 3), name
    Image.fromarray(grey * np.float32(1000)).save(tmp_path / "other.tif")
    with pytest.raises(ValueError, match="mode F with values from 0 to 255000"):
        load_still(tmp_path / "other.tif")


def test_pictures_are_scaled_down_to_even_sides() -> None:
    picture = np.zeros((2401, 1600, 3), np.uint8)
    for max_size_px, shape in ((1280, (1280, 852)), (601, (600, 400)), (2401, (2401, 1600)), (0, (2401, 1600))):
        scaled = scaled_within(picture, max_size_px)
        assert scaled.shape[:2] == shape
        assert (scaled is picture) == (shape == (2401, 1600))
    to_picture = resize_transform(scaled_within(picture, 1280), picture)
    corners = transform_points(np.array([[-0.5, -0.5], [851.5, 1279.5]]), to_picture)
    assert corners == pytest.approx(np.array([[-0.5, -0.5], [1599.5, 2400.5]]))
