"""Angles, rotations, smoothing and openness against the published numbers; the Motion container."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.keypoints import Motion, bins_to_degrees, kalman_smooth, open_ratios_68, rotation_matrix


@pytest.fixture(scope="module")
def geometry(reference: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference / "golden_geometry.npz"))


def make_motion(num_frames: int, seed: int = 0) -> Motion:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"pitch": (1,), "yaw": (1,), "roll": (1,), "t": (3,), "exp": (21, 3), "scale": (1,), "kp": (21, 3)}
    return Motion(**{name: torch.randn(num_frames, *shape, generator=generator) for name, shape in shapes.items()})


def test_bins_to_degrees(geometry) -> None:
    got = bins_to_degrees(torch.from_numpy(geometry["pose/logits"]))
    np.testing.assert_allclose(got, geometry["pose/degrees"], atol=1e-4)


def test_rotation_matrix(geometry) -> None:
    pitch, yaw, roll = torch.from_numpy(geometry["pose/euler_pitch_yaw_roll"]).unbind(1)
    np.testing.assert_allclose(rotation_matrix(pitch, yaw, roll), geometry["pose/rotation"], atol=1e-6)


@pytest.mark.parametrize("variance", ["3e-07", "1e-05", "0.0001"])
def test_kalman_smooth(variance: str, geometry) -> None:
    got = kalman_smooth(torch.from_numpy(geometry["smooth/input"]), float(variance))
    np.testing.assert_allclose(got, geometry[f"smooth/{variance}"], atol=1e-6)


def test_kalman_smooth_reduces_jitter_and_keeps_a_constant() -> None:
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 0.01
    assert kalman_smooth(noise, 1e-4).diff(dim=0).std() < 0.3 * noise.diff(dim=0).std()
    constant = torch.full((5, 2), 0.7)
    torch.testing.assert_close(kalman_smooth(constant, 1e-4), constant)


def test_open_ratios_68_measures_the_same_on_an_ideal_face() -> None:
    landmarks = np.zeros((1, 68, 2), np.float32)
    landmarks[0, 36:42] = [(0, 0), (10, -5), (20, -3), (30, 0), (20, 2), (10, 6)]  # 8 px high, 30 px wide
    landmarks[0, 42:48] = [(60, 0), (70, 0), (80, 0), (90, 0), (80, 0), (70, 0)]  # closed
    landmarks[0, 48], landmarks[0, 54] = (20, 50), (70, 50)
    landmarks[0, 62], landmarks[0, 66] = (45, 45), (45, 55)
    eye, lip = open_ratios_68(landmarks)
    np.testing.assert_allclose(eye, [[8 / 30, 0]], atol=1e-6)
    np.testing.assert_allclose(lip, [[10 / 50]], atol=1e-6)


def test_motion_indexing_and_joining() -> None:
    motion = make_motion(5)
    assert len(motion[-1]) == 1
    assert torch.equal(motion[-1].exp, motion.exp[4:])
    joined = Motion.cat([motion[:2], motion[2:]])
    assert all(torch.equal(value, joined.as_dict()[name]) for name, value in motion.as_dict().items())
    with pytest.raises(IndexError):
        motion[5]
    some = Motion.cat([motion.replace(eye_open=torch.rand(5, 2), lip_open=torch.rand(5, 1)), motion])
    assert len(some) == 10
    assert some.eye_open is some.lip_open is None, "not all of them have it"


def test_motion_survives_a_dict_of_arrays() -> None:
    motion = make_motion(3).replace(lip_open=torch.rand(3, 1))
    arrays = {name: value.numpy() for name, value in motion.as_dict().items()}
    restored = Motion.from_dict(arrays)
    assert restored.eye_open is None
    assert torch.equal(restored.lip_open, motion.lip_open)
    with pytest.raises(ValueError, match=r"missing \['kp'\], unknown \['nose'\]"):
        Motion.from_dict({**{k: v for k, v in arrays.items() if k != "kp"}, "nose": arrays["t"]})


def test_motion_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"'t' has shape \(3, 2\), expected \(3, 3\)"):
        make_motion(3).replace(t=torch.zeros(3, 2))


def test_translation_along_depth_is_ignored() -> None:
    motion = make_motion(2)
    moved = motion.replace(t=motion.t + torch.tensor([0.0, 0.0, 5.0]))
    assert torch.equal(moved.keypoints(), motion.keypoints())
