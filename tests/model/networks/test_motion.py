"""M: where it starts, and what autocast leaves of its digits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.config import ModelConfig
from model.keypoints import Motion
from model.networks.motion import MotionExtractor

SMALL = dataclasses.replace(ModelConfig.tiny(), backbone_depths=(2, 2, 6, 2), backbone_channels=(32, 48, 64, 96))


def make_pictures(num: int, config: ModelConfig) -> torch.Tensor:
    """Smooth random pictures [num, 3, S, S]."""
    coarse = torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=config.image_size, mode="bicubic").clamp(0, 1)


def test_every_face_starts_in_the_middle_at_scale_one() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        network = MotionExtractor(SMALL)
        with torch.no_grad():
            heads = network(make_pictures(2, SMALL))
        motion = Motion.from_heads(heads)
        assert motion.scale.tolist() == [[1.0], [1.0]]
        assert not motion.t.any()
        assert 0.01 < motion.exp.std() < 0.1
        assert heads["kp"].std() > 0.1, "the canonical key points start apart"


def test_autocast_leaves_key_points_more_than_8_bits() -> None:
    """Of two frames of one person: how their key points differ (0.02), against float32. It is wrong by 0.00054, and
    would be by 0.00083 were the sums of the blocks bfloat16, and by 0.00099 were what is pooled, too."""
    torch.manual_seed(3)
    network = MotionExtractor(SMALL).eval()
    frames = make_pictures(1, SMALL).repeat(2, 1, 1, 1)
    frames[1, :, 30:40, 20:40] = 1 - frames[1, :, 30:40, 20:40]
    with torch.no_grad():
        exact = network(frames)["kp"]
        with torch.autocast("cpu", torch.bfloat16):
            heads = network(frames)
    assert {value.dtype for value in heads.values()} == {torch.float32}
    error = (heads["kp"][0] - heads["kp"][1]) - (exact[0] - exact[1])
    assert error.square().mean().sqrt() < 0.0007


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_are_run_in_it(dtype: torch.dtype) -> None:
    network = MotionExtractor(ModelConfig.tiny()).to(dtype)
    with torch.no_grad():
        heads = network(make_pictures(1, ModelConfig.tiny()).to(dtype))
    assert {value.dtype for value in heads.values()} == {dtype}
