"""The whole way from files to a file, on real media with a tiny network."""

from __future__ import annotations

import dataclasses
import tracemalloc
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from model.animation import AnimateOptions, MotionTemplate, animate, load_template, save_template
from model.animation.animating import _AnimatedFace, _max_size_px, _notes, animated_frames, side_by_side
from model.animation.driving import Driving, load_driving
from model.animation.pictures import load_still, open_clip
from model.animation.source import Source, SourceFace, load_source
from model.config import ModelConfig
from model.keypoints import AnimationOptions, Motion
from model.video import open_video, probe_video

STILL = "images/i16_man_with_glasses_and_beard_white_background.jpg"
TWO_MEN = "images/i11_two_men_in_office.jpg"
TALK = "videos/v01_woman_plainwall_512_30fps_audio.mp4"
CLIP = "videos/v05_man_dusk_lowlight.mp4"


def _pictures(path: Path) -> list[np.ndarray]:
    with open_video(path) as video:
        return [frame.rgb() for frame in video]


def _still_motion(num_frames: int) -> Motion:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(num_frames, *shape)

    kp = torch.rand(1, 21, 3, generator=torch.Generator().manual_seed(0)).expand(num_frames, 21, 3)
    return Motion(pitch=zeros(1), yaw=zeros(1), roll=zeros(1), t=zeros(3), exp=zeros(21, 3), scale=zeros(1) + 1, kp=kp)


def _sound_s(path: Path) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return sum(frame.samples for frame in container.decode(stream)) / stream.rate


def test_still_and_two_seconds_of_driving_give_a_playable_file(media: Path, tmp_path: Path, engine, analyser) -> None:
    output = tmp_path / "out.mp4"
    reports = []
    result = animate(
        media / STILL, media / TALK, output,
        engine=engine, analyser=analyser, options=AnimateOptions(max_s=2.0), report=lambda *r: reports.append(r),
    )  # fmt: skip
    info = probe_video(output)
    assert (info.width, info.height, info.codec, info.pix_fmt) == (400, 400, "h264", "yuv420p")
    assert info.fps_fraction == 30
    assert (result.num_frames, result.num_faces) == (60, 1)
    frames = _pictures(output)
    assert len(frames) == 60
    assert info.audio_codec == "aac"
    assert _sound_s(output) == pytest.approx(2.0, abs=0.05)
    # The face moves, the corner of the picture does not.
    still = load_still(media / STILL)
    assert np.abs(frames[0].astype(int) - still)[120:200, 160:240].mean() > 10
    assert np.abs(frames[45].astype(int) - frames[0])[120:200, 160:240].mean() > 0.3
    assert np.abs(frames[45].astype(int) - still)[360:, :60].mean() < 3
    assert ("rendering", 60, 60) in reports
    assert {stage for stage, *_ in reports} == {"driving faces", "driving motion", "rendering"}


def test_template_gives_identical_frames(media: Path, tmp_path: Path, engine, analyser) -> None:
    options = AnimateOptions(max_s=0.5, motion=AnimationOptions(driving_option="expression-friendly"))
    common = {"engine": engine, "analyser": analyser, "options": options}
    template = tmp_path / "motion.safetensors"
    animate(media / STILL, media / TALK, tmp_path / "video", template_output=template, **common)
    animate(media / STILL, template, tmp_path / "template", **common)
    names = sorted(path.name for path in (tmp_path / "video").iterdir())
    assert names == [f"{i:06d}.png" for i in range(15)]
    for name in names:
        assert (tmp_path / "video" / name).read_bytes() == (tmp_path / "template" / name).read_bytes()
    assert load_template(template).fps == 30


def test_every_face_is_pasted_back_where_it_was(media: Path, tmp_path: Path, engine, analyser) -> None:
    still = load_still(media / TWO_MEN)
    changed = {}
    for which in ("all", "0", "1"):
        options = AnimateOptions(max_s=0.2, faces_in_source=which)
        result = animate(
            media / TWO_MEN, media / TALK, tmp_path / which, engine=engine, analyser=analyser, options=options
        )
        assert result.num_faces == (2 if which == "all" else 1)
        picture = cv2.imread(str(tmp_path / which / "000005.png"))[..., ::-1]
        assert picture.shape == still.shape
        changed[which] = (picture != still).any(axis=2)
    assert changed["0"].any()
    assert changed["1"].any()
    assert not (changed["0"] & changed["1"]).any()
    assert np.array_equal(changed["all"], changed["0"] | changed["1"])
    assert changed["all"].mean() < 0.3  # most of the picture is as it was, bit for bit


def test_video_to_video(media: Path, tmp_path: Path, engine, analyser) -> None:
    output = tmp_path / "out.webm"
    options = AnimateOptions(max_s=1.0, audio="source", motion=AnimationOptions(region="lip"))
    result = animate(media / CLIP, media / TALK, output, engine=engine, analyser=analyser, options=options)
    info = probe_video(output)
    assert (info.codec, info.width, info.height, info.audio_codec) == ("vp9", 480, 480, "opus")
    assert (result.num_frames, result.fps) == (30, Fraction(30))  # the driving rate; the source has 25
    assert len(_pictures(output)) == 30
    assert _sound_s(output) == pytest.approx(1.0, abs=0.1)


def test_networks_of_other_key_points_are_told_before_the_driving_video_is_read(media: Path, tmp_path: Path) -> None:
    engine = SimpleNamespace(config=dataclasses.replace(ModelConfig.tiny(), num_keypoints=15))
    lip = AnimateOptions(motion=AnimationOptions(region="lip"))
    for source, options in ((media / STILL, lip), (media / CLIP, AnimateOptions())):
        with pytest.raises(ValueError, match="the released 21 key points, these have 15"):
            animate(source, tmp_path / "absent.mp4", tmp_path / "o", engine=engine, analyser=None, options=options)


def test_video_source_driven_by_a_still_keeps_its_own_rate(media: Path, tmp_path: Path, engine, analyser) -> None:
    options = AnimateOptions(max_s=0.4, side_by_side=True)
    result = animate(
        media / CLIP, media / STILL, tmp_path / "out.gif", engine=engine, analyser=analyser, options=options
    )
    assert (result.num_frames, result.fps) == (10, Fraction(25))
    assert (result.width, result.height) == (3 * 480, 480)  # driving crop, source, result


def test_crop_only_and_driving_frame_without_cropping(media: Path, tmp_path: Path, engine, analyser) -> None:
    options = AnimateOptions(max_s=0.2, paste_back=False, crop_driving=False, fps=10.0)
    result = animate(
        media / STILL, media / TALK, tmp_path / "out.mp4", engine=engine, analyser=analyser, options=options
    )
    assert (result.width, result.height, result.num_frames, result.fps) == (128, 128, 2, Fraction(10))


def test_faces_leave_and_the_film_goes_on(media: Path, engine, analyser) -> None:
    path = media / "videos/v08_face_then_noface_hevc_vfr.mov"  # a face for 2.4 s, then a title
    driving = load_driving(media / TALK, engine, analyser, max_s=1.1)  # 33 frames
    source = load_source(path, engine, analyser, fps=Fraction(10), max_s=3.2)
    assert source.num_frames == 32
    assert 22 <= source.faces[0].stop <= 26
    frames = list(animated_frames(source, driving, engine, AnimateOptions()))
    originals = list(open_clip(path, fps=Fraction(10), max_s=3.2).frames())
    assert len(frames) == len(originals) == 32
    assert not np.array_equal(frames[10], originals[10])
    assert all(np.array_equal(a, b) for a, b in zip(frames[27:], originals[27:], strict=True))


def test_crop_of_a_video_whose_face_leaves(engine) -> None:
    frames = [np.full((128, 200, 3), 10 * (i + 1), np.uint8) for i in range(3)]  # as high as the crops are
    face = SourceFace(start=0, matrices=np.eye(3)[None], motion=_still_motion(1))
    source = Source(faces=[face], is_video=True, num_frames=3, frames=lambda: iter(frames))
    driving = Driving(motion=_still_motion(3), is_video=True, fps=Fraction(25))
    results = list(animated_frames(source, driving, engine, AnimateOptions(paste_back=False)))
    assert [result.shape for result in results] == [(128, 128, 3)] * 3
    assert results[2][64, 64, 0] == 30
    assert results[2][10, 64, 0] == 0  # the whole frame, in black


def test_a_face_that_comes_later_moves_from_the_first_driving_frame(engine) -> None:
    """Two tracks of the same face: where both are, both have the same key points."""
    motion = _still_motion(40)
    opening = torch.linspace(0, 0.4, 40)[:, None, None].expand(40, 21, 3)
    driving = Driving(motion=motion.replace(exp=opening, yaw=opening[:, 0, :1] * 50), is_video=True, fps=Fraction(25))
    options = AnimationOptions(stitching=False)
    moved = []
    for start in (0, 20):
        matrices = np.repeat(np.eye(3)[None], 40 - start, axis=0)
        face = SourceFace(start=start, matrices=matrices, motion=motion[start:])
        animated = _AnimatedFace(face, True, driving, 40, engine, options)
        x_s, x_d = animated._animator.step(animated._driving)
        moved.append((x_d - x_s)[20 - start :])
    assert moved[0].abs().amax() > 0.3
    torch.testing.assert_close(moved[1][10:], moved[0][10:], rtol=0, atol=0.02)  # smoothing begins anew
    torch.testing.assert_close(moved[1][0], moved[0][0], rtol=0, atol=0.05)


def test_face_that_is_not_always_there_is_noted(media: Path, tmp_path: Path, engine, analyser) -> None:
    path = media / "videos/v08_face_then_noface_hevc_vfr.mov"
    common = {"engine": engine, "analyser": analyser, "options": AnimateOptions(max_s=3.2, fps=10.0)}
    result = animate(media / STILL, path, tmp_path / "driven.mp4", **common)
    assert 22 <= result.num_frames <= 25
    assert result.notes[0].startswith("the driving face was followed from frame 0 to 2")
    result = animate(path, media / STILL, tmp_path / "source.mp4", **common)
    assert result.num_frames == 32
    assert "the others are as they were" in result.notes[0]


def test_a_video_that_cannot_be_read_to_its_end_is_noted(media: Path, tmp_path: Path, engine, analyser) -> None:
    joined = tmp_path / "joined.ts"
    with av.open(str(media / TALK)) as talk, av.open(str(joined), "w") as output:
        stream = output.add_stream_from_template(talk.streams.video[0])
        for packet in talk.demux(video=0):
            if packet.dts is not None and packet.dts * packet.time_base < 1:
                packet.stream = stream
                output.mux(packet)
    joined.write_bytes(2 * joined.read_bytes())
    for source, side in ((media / STILL, "driving"), (joined, "source")):
        result = animate(source, joined, tmp_path / side, engine=engine, analyser=analyser)
        notes = [note for note in result.notes if note.startswith(f"{side} video: time stamps go back from")]
        assert len(notes) == 1
        assert notes[0].endswith(" s; the rest is not used")
        assert result.num_frames == sum(1 for _ in open_clip(joined).frames()) < 40
    options = AnimateOptions(max_s=0.2)
    result = animate(media / STILL, joined, tmp_path / "start", engine=engine, analyser=analyser, options=options)
    assert result.notes == ()


def test_memory_does_not_grow_with_length(media: Path, engine, analyser) -> None:
    source = load_source(media / STILL, engine, analyser)
    peaks = []
    for max_s in (0.5, 2.0):
        driving = load_driving(media / TALK, engine, analyser, max_s=max_s)
        tracemalloc.start()
        num_frames = sum(1 for _ in animated_frames(source, driving, engine, AnimateOptions()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert num_frames == round(max_s * 30)
    assert peaks[1] < peaks[0] + 2_000_000  # holding the frames would add 20 MB


def test_options_reach_the_key_points(media: Path, engine, analyser) -> None:
    source = load_source(media / STILL, engine, analyser)
    driving = load_driving(media / TALK, engine, analyser, max_s=0.2)
    plain = list(animated_frames(source, driving, engine, AnimateOptions()))[-1]
    for changes in ({"multiplier": 0.0}, {"relative": False}, {"region": "pose"}):
        options = AnimateOptions(motion=AnimationOptions(**changes))
        assert not np.array_equal(list(animated_frames(source, driving, engine, options))[-1], plain), changes
    for batch_size in (1, 5):
        options = dataclasses.replace(AnimateOptions(), batch_size=batch_size)
        batched = list(animated_frames(source, driving, engine, options))[-1]
        assert np.abs(batched.astype(int) - plain).max() <= 1


def test_wrong_inputs_are_refused_in_words(media: Path, tmp_path: Path, engine, analyser) -> None:
    def run(source: Path, driving: Path, output: str = "out.mp4", **options) -> None:
        animate(source, driving, tmp_path / output, engine=engine, analyser=analyser, options=AnimateOptions(**options))

    text = tmp_path / "notes.mp4"
    text.write_text("no video")
    for arguments, message in [
        ((media / "images/i31_cup_of_coffee.png", media / STILL), "no face"),
        ((media / STILL, media / "images/i31_cup_of_coffee.png"), "no face found in the driving picture"),
        ((media / STILL, media / "videos/v18_black_vp9_no_duration.webm"), "no face found in the driving video"),
        ((media / "videos/v18_black_vp9_no_duration.webm", media / STILL), "the first 0.5 s of the source"),
        ((media / "images/i31_cup_of_coffee.png", tmp_path / "absent.mp4"), "no face of at least"),  # told first
        ((media / STILL, text), "neither a picture nor a video"),
        ((text, media / STILL), "neither a picture nor a video"),
        ((media / STILL, media / "malformed/m01_audio_only.mp4"), "no video stream"),
        ((media / STILL, media / "malformed/m07_zero_bytes.webm"), "0 bytes"),
        ((tmp_path / "absent.png", media / STILL), "no such file"),
        ((media / STILL, tmp_path / "absent.safetensors"), "no such motion template"),
        ((media / STILL, media / STILL, "out.avi"), "cannot write"),
        ((media / STILL, tmp_path / "out.mp4", "out.mp4"), "would replace"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(*arguments, max_s=0.5)
    for options, message in [
        ({"faces_in_source": "3"}, "has 1 face"),
        ({"faces_in_source": "big"}, "largest, all"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": 0.0001}, "fps is 0.0001"),
        ({"max_s": float("inf")}, "max_s is inf"),
        ({"max_s": float("nan")}, "max_s is nan"),
        ({"max_s": 1e306}, r"max_s is 1e\+306: expected a positive number of seconds, at most 1000000"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_size_px": 2}, "max_size_px is 2: expected 16 or more, or 0"),
        ({"motion": AnimationOptions(smooth_observation_variance=float("nan"))}, "variance is nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(media / STILL, media / STILL, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.mp4"]


def test_a_wrong_output_is_said_before_the_work(media: Path, tmp_path: Path, engine, analyser) -> None:
    stages = []
    for output, template, words in [
        ("absent/out.mp4", None, "its folder does not exist"),
        ("out.mp4", media / TALK, "would replace"),
        ("out.mp4", tmp_path / "motion.pkl", r"ends in \.safetensors"),
    ]:
        with pytest.raises(ValueError, match=words):
            animate(
                media / STILL, media / TALK, tmp_path / output, template_output=template,
                engine=engine, analyser=analyser, report=lambda *report: stages.append(report),
            )  # fmt: skip
    assert not stages
    assert not list(tmp_path.iterdir())


def test_source_faces_that_come_and_go_are_noted() -> None:
    face = SourceFace(start=20, matrices=np.zeros((10, 3, 3)), motion=None)
    source = Source(faces=[face], is_video=True, num_frames=30, frames=None)
    (note,) = _notes(source, SimpleNamespace(notes=()), 30)
    assert note == "source faces were followed over the frames 20 to 30 of 30; the others are as they were"


def test_a_source_is_read_as_far_as_it_is_seen(media: Path, tmp_path: Path, engine, monkeypatch) -> None:
    read, faces = [], 2 * [SourceFace(start=0, matrices=np.eye(3)[None], motion=_still_motion(1))]

    def load(path: Path, *_, fps: Fraction, max_s: float | None, **__) -> Source:
        read.append(open_clip(path, fps=fps, max_s=max_s).max_frames)
        return Source(faces=faces, is_video=True, num_frames=1, frames=lambda: iter([np.zeros((128, 128, 3), "u1")]))

    monkeypatch.setattr("model.animation.animating.load_source", load)
    template = tmp_path / "motion.safetensors"
    for length, fps, max_s, num_frames in [
        (1001, Fraction(24000, 1001), None, 1001),
        (12, Fraction(30), 0.1, 3),
        (1, Fraction(25), 0.2, 5),  # without motion: the source runs on
    ]:
        save_template(MotionTemplate(motion=_still_motion(length), fps=fps), template)
        options, output = AnimateOptions(max_s=max_s, paste_back=max_s is None), tmp_path / str(length)
        result = animate(media / TALK, template, output, engine=engine, analyser=None, options=options)
        assert (read[-1], result.num_faces) == (num_frames, 2 if options.paste_back else 1)


def test_a_still_with_the_motion_of_a_still_is_a_still(media: Path, tmp_path: Path, engine, analyser) -> None:
    common = {"engine": engine, "analyser": analyser}
    large = tmp_path / "large.png"
    Image.open(media / STILL).resize((1350, 1350)).save(large)
    driving = media / "images/i30_woman_in_orange_astronaut_suit_nasa_public_dom.png"
    animate(large, driving, tmp_path / "frames", options=AnimateOptions(max_size_px=0), **common)
    for name, kind in (("out.png", "PNG"), ("out.JPG", "JPEG"), ("out.webp", "WEBP")):
        result = animate(large, driving, tmp_path / name, **common)
        assert (result.num_frames, result.width, result.height, result.notes) == (1, 1350, 1350, ())
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size) == (kind, (1350, 1350))
    assert np.array_equal(load_still(tmp_path / "out.png"), load_still(tmp_path / "frames/000000.png"))
    one = AnimateOptions(max_s=0.01)
    assert animate(large, media / TALK, tmp_path / "one.png", options=one, **common).num_frames == 1
    small = AnimateOptions(max_size_px=600)
    assert animate(large, driving, tmp_path / "small.png", options=small, **common).width == 600


def test_a_still_is_refused_for_more_frames(media: Path, tmp_path: Path, engine, analyser) -> None:
    stages = []
    common = {"engine": engine, "analyser": analyser, "report": lambda *report: stages.append(report)}
    for source, driving, count in ((STILL, TALK, 354), (CLIP, STILL, 175), (TALK, CLIP, 175)):
        with pytest.raises(ValueError, match=f"a still holds one frame, the result has {count}; give a name in .mp4"):
            animate(media / source, media / driving, tmp_path / "out.png", **common)
    assert not stages  # before the work
    template = tmp_path / "motion.safetensors"
    save_template(MotionTemplate(motion=_still_motion(3), fps=Fraction(25)), template)
    with pytest.raises(ValueError, match="a still holds one frame, the result has 3"):
        animate(media / STILL, template, tmp_path / "out.png", **common)
    assert [path.name for path in tmp_path.iterdir()] == [template.name]


def test_rate_of_a_gif_is_limited(media: Path, tmp_path: Path, engine, analyser) -> None:
    result = animate(
        media / STILL, media / STILL, tmp_path / "out.gif",
        engine=engine, analyser=analyser, options=AnimateOptions(fps=60),
    )  # fmt: skip
    assert (result.fps, result.notes) == (50, ("a GIF shows at most 50 frames/s, not 60",))


def test_the_size_told_is_that_of_the_file(media: Path, tmp_path: Path, engine, analyser) -> None:
    still = tmp_path / "odd.png"
    cv2.imwrite(str(still), load_still(media / STILL)[:399, :399, ::-1])
    for name, size in (("out.mp4", 398), ("out.gif", 399)):
        result = animate(still, still, tmp_path / name, engine=engine, analyser=analyser)
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.video[0]
            assert (result.width, result.height) == (stream.width, stream.height) == (size, size)


def test_large_stills_are_scaled_and_videos_keep_their_size(media: Path, tmp_path: Path, engine, analyser) -> None:
    large = tmp_path / "large.png"
    Image.open(media / STILL).resize((900, 1350)).save(large)
    results = {}
    for max_size_px, size in ((None, (852, 1280)), (600, (400, 600)), (0, (900, 1350))):
        output = tmp_path / str(max_size_px)
        options = AnimateOptions(max_size_px=max_size_px)
        result = animate(large, media / STILL, output, engine=engine, analyser=analyser, options=options)
        assert (result.width, result.height) == size
        results[max_size_px] = (cv2.imread(str(output / "000000.png")), result.notes)
    note = "scaled from 900x1350 to 852x1280 pixels; `animate --max-size-px 0` keeps the size of the source"
    assert results[None][1] == (note,)
    assert results[0][1] == ()
    whole, scaled = results[0][0], results[None][0]
    expected = cv2.resize(whole, (852, 1280), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(scaled - expected).mean() < 0.5  # the face is where it is in the whole picture
    assert np.abs(scaled - expected).max() < 40
    for is_video, paste_back, wanted, size in ((1, 1, None, 0), (1, 1, 720, 720), (0, 0, None, 0), (0, 1, None, 1280)):
        options = AnimateOptions(paste_back=bool(paste_back), max_size_px=wanted)
        assert _max_size_px(SimpleNamespace(is_video=bool(is_video)), options) == size


def test_side_by_side_brings_pictures_to_one_height() -> None:
    row = side_by_side([np.zeros((50, 100, 3), np.uint8), None, np.zeros((100, 80, 3), np.uint8)])
    assert row.shape == (100, 200 + 80, 3)
