"""Models whose figures are known beforehand: one that returns the driving frames, and one that never moves."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg
import torch

from model.animation.progress import ignore
from model.config import ModelConfig
from model.keypoints import Motion
from model.networks import LivePortrait
from training.evaluation.catalogue import GROUPS
from training.evaluation.evaluate import Evaluate, evaluate
from training.evaluation.faces import Face, asked_absolute, asked_relative, motion_figures
from training.evaluation.measuring import Column, Tools
from training.evaluation.pixels import MAX_PSNR_DB
from training.evaluation.reenactment import Carrier, _ClipRun, driven_keypoints, spread


def test_a_model_that_returns_the_driving_frames_is_perfect(options: Evaluate, monkeypatch) -> None:
    monkeypatch.setattr(Carrier, "render", lambda self, frames: frames.copy())
    wanted = dataclasses.replace(options, parts=("self", "cross"), cross=("absolute",), batch_size=4)
    results, pictures = evaluate(wanted, ignore)
    itself = {key: entry.get("result") for key, entry in results["sections"]["self"]["aggregate"].items()}
    perfect = {"l1": 0, "face_l1": 0, "psnr": MAX_PSNR_DB, "face_psnr": MAX_PSNR_DB, "face_found": 100}
    perfect |= {"aed": 0, "apd": 0, "pose_angle": 0, "eye_error": 0, "lip_error": 0}
    for key, value in perfect.items():
        assert itself[key] == pytest.approx(value, abs=1e-5), key
    for key in ("ssim", "face_ssim", "csim"):
        assert itself[key] == pytest.approx(1, abs=1e-5), key
    assert itself["jitter"] == itself["jitter_driving"] > 0
    cross = results["sections"]["cross_absolute"]["aggregate"]
    assert cross["aed"]["result"] == pytest.approx(0, abs=1e-5)
    assert cross["aed"]["copy_source"] > 0.5  # the other person's face holds still
    assert cross["csim"]["result"] < 0.999  # it is the driving person that is seen
    assert cross["csim"]["copy_source"] is None
    assert [frame for frame, _ in pictures["self"][0].pictures] == [1, 2, 3, 4, 5, 6]
    shown = pictures["self"][0].pictures[3][1]
    assert shown["driving"] == shown["result"]
    assert simplejpeg.decode_jpeg(shown["difference"]).max() == 0


def test_a_model_that_never_moves_has_the_figures_of_copying(options: Evaluate, monkeypatch) -> None:
    original = Carrier.__init__

    def remember(self, engine, source, *rest) -> None:
        original(self, engine, source, *rest)
        self.source = source

    monkeypatch.setattr(Carrier, "__init__", remember)
    monkeypatch.setattr(Carrier, "render", lambda self, frames: np.repeat(self.source, len(frames), axis=0))
    results, _ = evaluate(dataclasses.replace(options, parts=("self", "cross"), max_frames=4), ignore)
    for name in ("self", "cross_relative"):
        compared = []
        for key, entry in results["sections"][name]["aggregate"].items():
            if entry.get("copy_source") is not None:
                assert entry["result"] == pytest.approx(entry["copy_source"], abs=1e-5), (name, key)
                compared.append(key)
        assert {"aed", "apd", "pose_angle", "face_found"} <= set(compared)
    itself = results["sections"]["self"]
    assert itself["clips"][0]["copy_source"]["csim"] > 0.8  # the same person
    assert itself["num_frames"] == 8  # four of each clip, after the source
    assert itself["aggregate"]["jitter"]["result"] == 0
    assert itself["aggregate"]["lip_error"]["result"] >= 0
    assert results["sections"]["cross_relative"]["aggregate"]["csim"]["result"] == pytest.approx(1, abs=1e-5)


def test_result_and_copy_are_judged_over_the_same_frames(monkeypatch) -> None:
    """A model that never moves, and shows nothing in every other frame: about faces it is as good as copying."""
    noise = np.random.default_rng(0)

    def face() -> Face:
        return Face(
            points68=noise.uniform(0, 1, (68, 2)),
            pose_deg=noise.uniform(-9, 9, 3),
            embedding=noise.normal(size=4) / 2,
        )

    source, seen = face(), [face() for _ in range(4)]
    tools = Tools(groups=GROUPS, compare_size_px=64, device=torch.device("cpu"), faces=object())
    run = _ClipRun.__new__(_ClipRun)
    run._tools, run._mode, run._source_face = tools, None, source
    run._clip, run._columns = SimpleNamespace(clip_id="a"), {"result": Column(), "copy_source": Column()}
    run._faces, run.seen = {"result": [], "driving": []}, {("a", k): found for k, found in enumerate(seen)}
    found = iter([source, None, source, None])
    monkeypatch.setattr(Tools, "find_face", lambda *_: next(found))
    for k in range(4):
        run._add_faces(k, None, None)
    result, copied = (run._columns[name].means() for name in ("result", "copy_source"))
    assert (result.pop("face_found"), copied.pop("face_found")) == (50, 100)
    assert set(result) == {"aed", "apd", "pose_angle", "eye_error", "lip_error", "csim"}
    assert result == copied
    assert run._columns["result"].num_frames("aed") == 2


@pytest.mark.parametrize("mode", [None, "absolute", "relative"])
def test_what_a_face_is_asked_for(monkeypatch, mode: str | None) -> None:
    """Alone the driving face, across persons also with the source's; openness only where one person is compared."""
    noise = np.random.default_rng(0)
    source, first, second, made = (
        Face(points68=noise.uniform(0, 1, (68, 2)), pose_deg=noise.uniform(-9, 9, 3), embedding=noise.normal(size=4))
        for _ in range(4)
    )
    tools = Tools(groups=GROUPS, compare_size_px=64, device=torch.device("cpu"), faces=object())
    run = _ClipRun.__new__(_ClipRun)
    run._tools, run._mode, run._source_face = tools, mode, source
    run._clip, run._columns = SimpleNamespace(clip_id="a"), {"result": Column(), "copy_source": Column()}
    run._faces, run.seen = {"result": [], "driving": []}, {("a", 0): first, ("a", 1): second}
    monkeypatch.setattr(Tools, "find_face", lambda *_: made)
    for k in range(2):
        run._add_faces(k, None, None)
    values = run._columns["result"].values
    asked = asked_relative(source, first, second) if mode == "relative" else asked_absolute(second)
    for name, value in motion_figures(made, asked).items():
        assert values[name][1] == pytest.approx(value), name
    assert ("lip_error" in values) == (mode is None)
    assert values["csim"][1] == pytest.approx(float(made.embedding @ (second if mode is None else source).embedding))


@pytest.mark.parametrize("lips_gap", [0.0, 0.2])
def test_the_first_driving_frame_moves_nothing_in_relative_mode(make_face68, lips_gap: float) -> None:
    """Also of a source with open lips: what closed them would be an error of expression."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"pitch": (1,), "yaw": (1,), "roll": (1,), "t": (3,), "exp": (21, 3), "scale": (1,), "kp": (21, 3)}
    source, driving = (
        Motion(**{name: 0.1 * torch.rand(1, *shape, generator=generator) for name, shape in shapes.items()})
        for _ in range(2)
    )
    portrait = LivePortrait.untrained(config=ModelConfig.tiny())
    torch.nn.init.normal_(portrait.retarget_lip.mlp[-1].weight)
    torch.nn.init.zeros_(portrait.stitching.mlp[-1].weight)
    points = make_face68((0.5, 0.4), 0.5)
    points[66] = points[62] + (0, lips_gap)
    motions, moved = iter([source, driving]), []
    engine = SimpleNamespace(
        portrait=portrait,
        extract_motion=lambda _: next(motions),
        extract_appearance=lambda _: None,
        render=lambda volume, x_s, x_d: moved.append((x_d - x_s).abs().max().item()),
    )
    Carrier(engine, None, points[None], "relative").render(None)
    assert moved == [pytest.approx(0, abs=1e-5)]


def test_driven_key_points_are_of_the_source_person() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"pitch": (1,), "yaw": (1,), "roll": (1,), "t": (3,), "exp": (21, 3), "scale": (1,), "kp": (21, 3)}
    source, driving = (
        Motion(**{name: torch.rand(num, *shape, generator=generator) for name, shape in shapes.items()})
        for num in (1, 2)
    )
    torch.testing.assert_close(driven_keypoints(source, driving)[1:], driving[1].replace(kp=source.kp).keypoints())


def test_frames_are_spread_evenly() -> None:
    assert spread(1, 7, 6) == [1, 2, 3, 4, 5, 6]
    assert spread(0, 101, 3) == [0, 50, 100]
    assert spread(0, 2, 6) == [0, 1]
    assert spread(1, 1, 6) == []
