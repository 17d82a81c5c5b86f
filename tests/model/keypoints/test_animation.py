"""Key-point algebra against the published pipeline's numbers, and its own promises."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.keypoints import AnimationOptions, KeypointAnimator, Motion
from model.keypoints.animation import hull_size_ratio
from model.networks import LivePortrait

PUBLISHED_OPTIONS = {
    "flag_relative_motion": "relative",
    "animation_region": "region",
    "driving_option": "driving_option",
    "driving_multiplier": "multiplier",
    "flag_stitching": "stitching",
    "flag_normalize_lip": "normalize_lip",
    "flag_eye_retargeting": "eye_retargeting",
    "flag_lip_retargeting": "lip_retargeting",
    "flag_source_video_eye_retargeting": "source_video_eye_retargeting",
    "driving_smooth_observation_variance": "smooth_observation_variance",
}
NUM_CASES = 54


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference / "golden_animation.npz"))


@pytest.fixture(scope="module")
def cases(reference: Path) -> list[dict]:
    return json.loads((reference / "golden_animation_cases.json").read_text())


@pytest.fixture(scope="module")
def networks(reference: Path) -> LivePortrait:
    """A model whose three small networks carry the reference weights."""
    spec = importlib.util.spec_from_file_location("reference_weights", reference / "reference_weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    shapes = json.loads((reference / "state_dict_shapes.json").read_text())
    with torch.device("meta"):
        portrait = LivePortrait()
    for name in ("stitching", "retarget_eye", "retarget_lip"):
        state = {key: torch.from_numpy(value) for key, value in weights.make_state_dict(name, shapes[name]).items()}
        getattr(portrait, name).load_state_dict(state, strict=True, assign=True)
    return portrait


def open_ratios_203(landmarks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The published openness from 203 landmarks [N, 203, 2]: eyes [N, 2] (left, right), lips [N, 1]."""
    ratios = []
    for upper, lower, first, second in ((6, 18, 0, 12), (30, 42, 24, 36), (90, 102, 48, 66)):
        gap, width = landmarks[:, upper] - landmarks[:, lower], landmarks[:, first] - landmarks[:, second]
        ratios.append(gap.norm(dim=-1) / (width.norm(dim=-1) + 1e-6))
    return torch.stack(ratios[:2], dim=1), ratios[2][:, None]


def read_motion(golden: dict[str, np.ndarray], side: str) -> Motion:
    names = ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")
    eye_open, lip_open = open_ratios_203(torch.from_numpy(golden[f"{side}/landmarks_203"]))
    return Motion.from_dict({name: golden[f"{side}/{name}"] for name in names}).replace(
        eye_open=eye_open, lip_open=lip_open
    )


def make_motion(num_frames: int, *, num_keypoints: int) -> Motion:
    generator = torch.Generator().manual_seed(0)
    points = (num_keypoints, 3)
    shapes = {"pitch": (1,), "yaw": (1,), "roll": (1,), "t": (3,), "exp": points, "scale": (1,), "kp": points}
    return Motion(**{name: torch.rand(num_frames, *shape, generator=generator) for name, shape in shapes.items()})


def animate(
    source: Motion, driving: Motion, *, source_is_video: bool = False, driving_is_video: bool = True, **settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_s and x_d [num_frames, K, 3] of all output frames, a step a frame."""
    if source_is_video:
        num_frames = min(len(source), len(driving)) if driving_is_video else len(source)
        driving = driving[:num_frames] if driving_is_video else driving[0].expand(num_frames)
        settings["driving"] = driving
    animator = KeypointAnimator(source, source_is_video=source_is_video, driving_is_video=driving_is_video, **settings)
    frames = [animator.step(driving[index]) for index in range(len(driving))]
    x_s, x_d = (torch.cat(points) for points in zip(*frames, strict=True))
    return x_s, x_d


@pytest.mark.parametrize("number", range(NUM_CASES))
def test_published_case(number: int, cases, golden, networks) -> None:
    assert len(cases) == NUM_CASES
    case = cases[number]
    source, driving = read_motion(golden, "source"), read_motion(golden, "driving")
    source_is_video, driving_is_video = case["source"] == "video", case["driving"] == "video"
    x_s, x_d = animate(
        source if source_is_video else source[0],
        driving if driving_is_video else driving[0],
        networks=networks,
        options=AnimationOptions(**{PUBLISHED_OPTIONS[flag]: value for flag, value in case["flags"].items()}),
        source_is_video=source_is_video,
        driving_is_video=driving_is_video,
    )
    for name, got in (("x_s", x_s.numpy()), ("x_d", x_d.numpy())):
        expected = golden[f"{case['id']}/{name}"]
        assert got.shape == expected.shape == (case["frames"], 21, 3)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_every_published_option_is_exercised(cases) -> None:
    assert {flag for case in cases for flag in case["flags"]} == set(PUBLISHED_OPTIONS)


@pytest.mark.parametrize("source_is_video", [False, True])
def test_batches_equal_single_frames(source_is_video: bool, golden, networks) -> None:
    source, driving = read_motion(golden, "source"), read_motion(golden, "driving")
    options = AnimationOptions(driving_option="expression-friendly", source_video_eye_retargeting=True)
    settings = {"networks": networks, "options": options, "source_is_video": source_is_video}
    expected_s, expected_d = animate(source, driving, **settings)

    animator = KeypointAnimator(source, driving=driving, **settings)
    batches = [animator.step(driving[:2]), animator.step(driving[2:])]
    x_s, x_d = (torch.cat(points) for points in zip(*batches, strict=True))
    torch.testing.assert_close(x_s, expected_s)
    torch.testing.assert_close(x_d, expected_d)


def test_source_without_landmarks_is_animated_without_lip_normalisation(golden, networks) -> None:
    source = read_motion(golden, "source")[0]
    driving = read_motion(golden, "driving")

    def moved(motion: Motion, *, normalize_lip: bool) -> torch.Tensor:
        return animate(motion, driving, networks=networks, options=AnimationOptions(normalize_lip=normalize_lip))[1]

    blind = moved(source.replace(eye_open=None, lip_open=None), normalize_lip=True)
    assert torch.equal(blind, moved(source, normalize_lip=False))
    assert not torch.equal(blind, moved(source, normalize_lip=True))


def test_retargeting_without_driving_openness_says_so(golden, networks) -> None:
    source = read_motion(golden, "source")[0]
    driving = read_motion(golden, "driving").replace(eye_open=None)
    options = AnimationOptions(eye_retargeting=True)
    with pytest.raises(ValueError, match="driving eye openness"):
        animate(source, driving, networks=networks, options=options)


def test_unknown_region_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="all, exp, pose, lip, eyes"):
        AnimationOptions(region="nose")


@pytest.mark.parametrize(
    ("options", "source_is_video", "driving_is_video"),
    [
        ({"region": "lip"}, False, True),
        ({"relative": False}, False, True),
        ({}, True, True),
        ({}, False, False),
    ],
)
def test_a_part_of_the_expression_needs_the_released_key_points(
    options: dict, source_is_video: bool, driving_is_video: bool
) -> None:
    motion = make_motion(3, num_keypoints=15)
    settings = {"source_is_video": source_is_video, "driving_is_video": driving_is_video}
    with pytest.raises(ValueError, match=r"needs networks with the released 21 key points, these have 15: animate a"):
        animate(
            motion if source_is_video else motion[0],
            motion if driving_is_video else motion[0],
            networks=None,
            options=AnimationOptions(**options),
            **settings,
        )


@pytest.mark.parametrize("region", ["all", "exp"])
def test_other_key_points_take_over_a_whole_relative_motion(region: str) -> None:
    motion = make_motion(3, num_keypoints=15)
    networks = LivePortrait.untrained(config=replace(ModelConfig.tiny(), num_keypoints=15))
    _, x_d = animate(motion[0], motion, networks=networks, options=AnimationOptions(region=region))
    assert x_d.shape == (3, 15, 3)


def test_hull_size_ratio(reference: Path) -> None:
    geometry = np.load(reference / "golden_geometry.npz")
    source, driving = (torch.from_numpy(geometry[f"multiplier/{side}"][0]) for side in ("source", "driving"))
    assert hull_size_ratio(source, driving) == pytest.approx(float(geometry["multiplier/value"]), rel=1e-6)
