from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from model.config import ModelConfig
from model.keypoints import Motion
from model.networks import LivePortrait
from training.evaluation.catalogue import GROUPS
from training.evaluation.control import (
    REGION_MASKS,
    _compare_pair,
    _Still,
    _sweep,
    obedience,
    rank_correlation,
    sweep_openness,
)
from training.evaluation.evaluate import Evaluate
from training.evaluation.faces import Face
from training.evaluation.measuring import Tools, mean_of
from training.losses import shoulder_mask
from training.retargeting import RetargetingRecipe

SIZE_PX = 64


class Painter:
    """An engine whose pictures tell what was asked of it: `paint` gets x_s and x_d and gives uint8 [S, S, 3]."""

    def __init__(self, paint) -> None:
        self.portrait = LivePortrait.untrained(config=ModelConfig.tiny())
        for network in (self.portrait.stitching, self.portrait.retarget_eye, self.portrait.retarget_lip):
            torch.nn.init.normal_(network.mlp[-1].weight, std=0.1)
        self._paint = paint

    def extract_motion(self, frames: np.ndarray) -> Motion:
        """Of other frames another one."""
        generator = torch.Generator().manual_seed(int(frames.sum()))
        shapes = {"pitch": (1,), "yaw": (1,), "roll": (1,), "t": (3,), "exp": (21, 3), "scale": (1,), "kp": (21, 3)}
        return Motion(**{n: 0.1 * torch.rand(len(frames), *s, generator=generator) for n, s in shapes.items()})

    def extract_appearance(self, frame: np.ndarray) -> None:
        return None

    def render(self, volume: None, x_s: torch.Tensor, x_d: torch.Tensor) -> np.ndarray:
        return np.stack([self._paint(x_s[0], x) for x in x_d])


@pytest.fixture
def tools(make_face68) -> Tools:
    """They see one face in every picture: lips open by a tenth of the mouth's width, eyes by 0.2 and 0.4."""
    points = make_face68((0.5, 0.4), 0.5)
    points[[48, 54]], points[[62, 66]] = [(0.4, 0.5), (0.6, 0.5)], [(0.5, 0.49), (0.5, 0.51)]
    for first, height in ((36, 0.02), (42, 0.04)):
        points[first], points[first + 3] = points[first + 3] - (0.1, 0), points[first + 3]
        points[[first + 1, first + 2]] = points[first] + [(0.03, -height / 2), (0.07, -height / 2)]
        points[[first + 5, first + 4]] = points[first] + [(0.03, height / 2), (0.07, height / 2)]
    face = Face(points68=points, pose_deg=np.zeros(3), embedding=None)
    reader = SimpleNamespace(read=lambda picture: face)
    return Tools(groups=GROUPS, compare_size_px=SIZE_PX, device=torch.device("cpu"), faces=reader)


@pytest.fixture
def selection(tools) -> SimpleNamespace:
    """Frames of another brightness each, which show the face of the tools."""

    def read(clip: SimpleNamespace, frames: list[int]) -> tuple[np.ndarray, np.ndarray]:
        pictures = [np.full((SIZE_PX, SIZE_PX, 3), clip.brightness + k, np.uint8) for k in frames]
        return np.stack(pictures), np.stack([tools.faces.read(None).points68] * len(frames))

    return SimpleNamespace(read=read)


@pytest.mark.parametrize(("region", "at_rest"), [("eye", 0.3), ("lip", 0.1)])
def test_a_sweep_asks_its_network_and_looks_outside_its_region(region, at_rest, tools, selection) -> None:
    landmarks = torch.from_numpy(tools.faces.read(None).points68).float()[None] * 2 - 1
    inside = REGION_MASKS[region](landmarks, (SIZE_PX, SIZE_PX))[0, 0, ..., None].expand(-1, -1, 3).numpy() > 0
    engine, asked = Painter(lambda x_s, x_d: inside * np.uint8(255 * bool((x_d != x_s).any()))), []
    network = getattr(engine.portrait, f"retarget_{region}")
    network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0][:, -1].tolist()))
    still = _Still(engine, selection, tools, SimpleNamespace(brightness=9))
    sweep = _sweep(still, tools, SimpleNamespace(), region, (0.25, 0.5, 0.75))
    assert asked == [[0.25, 0.5, 0.75]]
    assert [sweep.at_rest, *sweep.achieved] == pytest.approx([at_rest] * 4, abs=1e-4)
    soft = 1 - REGION_MASKS[region](landmarks, (SIZE_PX, SIZE_PX))[0, 0].numpy()
    assert sweep.figures[f"{region}_rest"] == pytest.approx((soft * inside[..., 0]).sum() / soft.sum(), rel=1e-5)
    assert sweep.figures[f"{region}_rest"] < 0.1


def test_frames_with_unknown_landmarks_are_asked_nothing(tools, selection) -> None:
    """How far they are open is unknown, and what R makes of that is no picture."""
    clips = [SimpleNamespace(brightness=brightness) for brightness in (9, 99)]

    def read(clip: SimpleNamespace, frames: list[int]) -> tuple[np.ndarray, np.ndarray]:
        pictures, points68 = selection.read(clip, frames)
        return pictures, points68 if clip is clips[0] else np.full_like(points68, np.nan)

    told: list[tuple[int, int]] = []
    sweeps = sweep_openness(
        Painter(lambda x_s, x_d: np.full((SIZE_PX, SIZE_PX, 3), 7, np.uint8)),
        SimpleNamespace(clips=clips, read=read),
        tools,
        asked={"eye": (0.1, 0.2), "lip": (0.3,)},
        max_sources=2,
        report=lambda stage, done, total: told.append((done, total)),
    )
    assert [(sweep.clip, sweep.region) for sweep in sweeps] == [(clips[0], "eye"), (clips[0], "lip")]
    assert told == [(0, 10), (3, 10), (5, 10), (8, 10), (10, 10)]


def test_shoulders_are_compared_below_the_chin_with_and_without_stitching(tools, selection) -> None:
    landmarks = torch.from_numpy(tools.faces.read(None).points68).float()[None] * 2 - 1
    mask = shoulder_mask(landmarks, (SIZE_PX, SIZE_PX))[0, 0, ..., None].expand(-1, -1, 3).numpy()

    def paint(x_s: torch.Tensor, x_d: torch.Tensor) -> np.ndarray:
        """How far key points have moved on the shoulders; the head is white where they have."""
        moved = (x_d - x_s).abs().mean().item()
        return np.where(mask > 0, np.uint8(round(1000 * moved)), np.uint8(255 * (moved > 0)))

    engine = Painter(paint)
    clip, source = (SimpleNamespace(brightness=b, first_driving=1, num_frames=5) for b in (20, 70))
    pair = _compare_pair(engine, selection, tools, clip, source)
    still = engine.extract_motion(selection.read(source, [0])[0])
    driving = engine.extract_motion(selection.read(clip, [1, 2, 3, 4])[0])
    x_s, x_d = still.keypoints(), driving.replace(kp=still.kp.expand(4, -1, -1)).keypoints()
    delta = engine.portrait.stitching(torch.cat([x_s.expand(4, -1, -1).flatten(1), x_d.flatten(1)], dim=1)).detach()
    stitched = x_d + delta[:, :63].unflatten(1, (21, 3)) + torch.nn.functional.pad(delta[:, None, 63:], (0, 1))
    for name, points in (("plain", x_d), ("stitched", stitched)):
        expected = 1000 * (points - x_s).abs().mean().item() / 255
        assert pair.figures[f"shoulders_{name}"] == pytest.approx(expected, abs=0.5 / 255)
    assert pair.figures["shoulders_plain"] != pytest.approx(pair.figures["shoulders_stitched"], rel=0.05)


def test_rank_correlation() -> None:
    pairs = [(0.0, 0.1), (0.2, 0.3), (0.4, 0.2), (0.6, 0.5)]
    assert rank_correlation(pairs) == pytest.approx(1 - 6 * (1 + 1) / (4 * 15))  # two neighbours are swapped
    assert rank_correlation(pairs) == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)
    assert rank_correlation([(a, 1 - b) for a, b in pairs]) == pytest.approx(-0.8)
    assert rank_correlation([(a, 0.3) for a, _ in pairs]) == 0
    assert rank_correlation(pairs[:2]) is None


def test_means_leave_out_what_is_not_there() -> None:
    assert mean_of([1.0, None, float("nan"), 3.0]) == 2.0
    assert mean_of([None]) is None


def test_copying_is_judged_over_the_steps_that_show_a_face() -> None:
    control, copied, spearman = obedience((0.0, 0.2, 0.4, 0.8), [0.1, 0.2, 0.3, None], at_rest=0.1)
    assert control == pytest.approx((0.1 + 0.0 + 0.1) / 3)
    assert copied == pytest.approx((0.1 + 0.1 + 0.3) / 3)
    assert spearman == pytest.approx(1)
    assert obedience((0.0, 0.2), [None, None], at_rest=0.1) == (None, None, None)
    assert obedience((0.0, 0.2), [0.1, 0.1], at_rest=None)[1] is None


def test_sweeps_ask_for_what_stage_2_trains() -> None:
    options, recipe = Evaluate(weights=Path(), data=""), RetargetingRecipe()
    assert (max(options.eye_sweep), max(options.lip_sweep)) == (recipe.max_eyes, recipe.max_lip)
