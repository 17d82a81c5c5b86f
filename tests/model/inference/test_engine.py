"""The optimised path computes what the plain modules compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import ModelConfig
from model.inference import InferenceEngine
from model.inference.folding import UpsampledConvolution
from model.inference.sampling import warp_by_flow, warp_by_shifts
from model.networks import LivePortrait
from model.networks.dense_motion import coordinate_grid, keypoint_heatmaps

TINY = ModelConfig.tiny()


def randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Weights with which every part matters: norms that do something, corrections that are not zero."""
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("weight_u", "weight_v")) or not value.is_floating_point():
            continue
        elif value.ndim <= 1 or "grn" in name:
            offset = 1.0 if name.endswith("weight") else 0.0
            value.copy_(offset + 0.2 * torch.randn(value.shape, generator=generator))
        else:
            value.copy_(torch.randn(value.shape, generator=generator) * (1.5 / value[0].numel()) ** 0.5)
    for child in module.modules():
        if hasattr(child, "power_iteration"):
            for _ in range(20):
                child.power_iteration()


@pytest.fixture(scope="module")
def portrait() -> LivePortrait:
    portrait = LivePortrait.untrained(config=TINY)
    randomize(portrait, torch.Generator().manual_seed(0))
    return portrait


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, TINY.image_size, TINY.image_size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def keypoints() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_s = torch.rand(3, 21, 3, generator=generator) * 1.6 - 0.8
    return x_s, x_s + 0.1 * torch.randn(3, 21, 3, generator=generator)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected).abs().max() / expected.abs().max()).item()


def psnr_db(got: Tensor, expected: Tensor) -> float:
    return -10 * torch.log10((got - expected).square().mean()).item()


def test_float32_equals_the_plain_modules(portrait, images, keypoints) -> None:
    plain = InferenceEngine(portrait, dtype="float32", optimize=False)
    fast = InferenceEngine(portrait, dtype="float32")
    expected, got = plain.extract_motion(images).as_dict(), fast.extract_motion(images).as_dict()
    for name, value in expected.items():
        assert relative_error(got[name], value) <= 1e-5, name
    volume = plain.extract_appearance(images)
    assert relative_error(fast.extract_appearance(images), volume) <= 1e-5
    assert relative_error(fast.decode(volume, *keypoints), plain.decode(volume, *keypoints)) <= 1e-4


def test_warping_and_generator_equal_each(portrait, images, keypoints) -> None:
    fast = InferenceEngine(portrait, dtype="float32")
    x_s, x_d = keypoints
    with torch.inference_mode():
        volume = portrait.appearance(fast.prepare(images))
        expected = portrait.warping(volume, kp_driving=x_d, kp_source=x_s)
        got = fast._warping(volume, kp_driving=x_d, kp_source=x_s)
        for name in expected._fields:
            assert relative_error(getattr(got, name), getattr(expected, name)) <= 1e-5, name
        image = portrait.generator(expected.feature)
        assert image.std() > 0.05, "a flat picture would hide errors"
        assert relative_error(fast._generator(expected.feature), image) <= 1e-5


def is_subnormal(x: Tensor) -> Tensor:
    return (x != 0) & (x.abs() < torch.finfo(torch.float32).tiny)


def test_no_subnormal_numbers_slow_the_hourglass(portrait, keypoints) -> None:
    """Gaussians have them at a distance. A CPU's convolutions take ten times as long on them."""
    x_s, x_d = (points.clone() for points in keypoints)
    x_s[:, 0, :2], x_d[:, 0, :2] = 0.9, 0.8  # so that the other side is far
    compressed, size = torch.rand(3, TINY.compressed_channels, 4, 64, 64), torch.Size((4, 64, 64))
    dense = portrait.warping.dense_motion_network
    grid = coordinate_grid(*size, device=x_s.device, dtype=x_s.dtype)
    assert is_subnormal(keypoint_heatmaps(x_d, grid) - keypoint_heatmaps(x_s, grid)).any()
    assert not is_subnormal(dense.hourglass_input(compressed, dense.sparse_motions(size, x_d, x_s), x_d, x_s)).any()
    warping = InferenceEngine(portrait, dtype="float32")._warping
    assert is_subnormal(warping._heatmaps(x_d, size) - warping._heatmaps(x_s, size)).any()
    with torch.inference_mode():
        volume = torch.rand(3, TINY.volume_channels, *size)
        shift = functional.pad(x_s - x_d, (0, 0, 1, 0))
        assert not is_subnormal(warping._hourglass_input(volume, shift, x_d, x_s)).any()


def test_a_last_block_that_keeps_its_width() -> None:
    config = replace(TINY, generator_out_channels=TINY.feature_channels)
    portrait = LivePortrait.untrained(config=config)
    randomize(portrait, torch.Generator().manual_seed(0))
    size = (2, config.feature_channels, config.feature_size, config.feature_size)
    feature = torch.randn(size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = portrait.generator(feature)
        assert expected.std() > 0.05, "a flat picture would hide errors"
        got = InferenceEngine(portrait, dtype="float32")._generator(feature)
    assert relative_error(got, expected) <= 1e-5


def test_bfloat16_keeps_40_db(portrait, images, keypoints) -> None:
    plain = InferenceEngine(portrait, dtype="float32", optimize=False)
    fast = InferenceEngine(portrait, dtype="bfloat16")
    volume = plain.extract_appearance(images)
    assert psnr_db(fast.decode(volume, *keypoints), plain.decode(volume, *keypoints)) >= 40
    assert fast.extract_motion(images).exp.dtype == torch.float32


@pytest.mark.parametrize("optimize", [True, False])
def test_still_source_is_shared_by_a_batch(optimize: bool, portrait, images, keypoints) -> None:
    engine = InferenceEngine(portrait, dtype="float32", optimize=optimize)
    x_s, x_d = keypoints
    volume = engine.extract_appearance(images[:1])
    frames = engine.render(volume, x_s[:1], x_d)
    assert frames.shape == (3, TINY.output_size, TINY.output_size, 3)
    assert frames.dtype == np.uint8
    for index, frame in enumerate(frames):
        alone = engine.render(volume, x_s[:1], x_d[index : index + 1])[0]
        assert np.abs(frame.astype(int) - alone).max() <= 1
    assert np.abs(frames[0].astype(int) - frames[1]).max() > 1


def test_crops_of_any_size_are_resized(portrait, images) -> None:
    engine = InferenceEngine(portrait, dtype="float32")
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    assert torch.equal(engine.prepare(doubled), engine.prepare(images))
    with pytest.raises(ValueError, match="square uint8 crops"):
        engine.prepare(images[:, :-1])
    with pytest.raises(ValueError, match="float tensor"):
        engine.prepare(torch.zeros(1, 3, 8, 8))


def test_unknown_dtype_and_device(portrait) -> None:
    with pytest.raises(ValueError, match="dtype must be auto"):
        InferenceEngine(portrait, dtype="int8")
    for device in ("bogus", "meta"):
        with pytest.raises(ValueError, match="expected cpu, cuda or auto"):
            InferenceEngine(portrait, device=device)
    with pytest.raises(ValueError, match="compile=True is for CUDA"):
        InferenceEngine(portrait, compile=True)


@pytest.mark.parametrize(("factor", "depth"), [(2, None), (4, None), (2, 3)])
def test_upsampled_convolution(factor: int, depth: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    size = (5, 6) if depth is None else (depth, 5, 6)
    x = torch.randn(2, 7, *size, generator=generator)
    weight = torch.randn(8, 7, *[3] * len(size), generator=generator)
    bias = torch.randn(8, generator=generator)
    scale = (factor, factor) if depth is None else (1, factor, factor)
    convolve = functional.conv2d if depth is None else functional.conv3d
    expected = torch.relu(convolve(functional.interpolate(x, scale_factor=scale), weight, bias, padding=1))

    folded = UpsampledConvolution(weight, bias, factor=factor, dtype=torch.float32)
    shape = expected.movedim(1, -1).shape
    outputs = [torch.empty(*shape[:-1], 3), torch.empty(*shape[:-1], 5)]
    folded(x, outputs)
    torch.testing.assert_close(torch.cat(outputs, dim=-1).movedim(-1, 1), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_sampling_equals_grid_sample(shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(1 if shared else 2, 4, 3, 6, 5, generator=generator)
    everywhere = volume.expand(2, -1, -1, -1, -1)
    flow = torch.rand(2, 3, 6, 5, 3, generator=generator) * 3 - 1.5  # a third of it outside
    expected = functional.grid_sample(everywhere, flow, align_corners=False)
    torch.testing.assert_close(warp_by_flow(volume, flow).movedim(-1, 1), expected, rtol=1e-5, atol=1e-5)

    shift = torch.rand(2, 7, 3, generator=generator) - 0.5
    grid = coordinate_grid(3, 6, 5, device=volume.device, dtype=volume.dtype)
    warped = warp_by_shifts(volume, shift)
    for index in range(shift.shape[1]):
        moved = grid + shift[:, index, None, None, None]
        expected = functional.grid_sample(everywhere, moved, align_corners=False)
        torch.testing.assert_close(warped[:, index], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_half_keeps_40_db(compile: bool, portrait, images, keypoints) -> None:
    plain = InferenceEngine(portrait, dtype="float32", optimize=False)
    volume = plain.extract_appearance(images)
    expected = plain.decode(volume, *keypoints)
    fast = InferenceEngine(portrait, device="cuda", compile=compile)
    got = fast.decode(*(part.cuda() for part in (volume, *keypoints))).cpu()
    assert psnr_db(got, expected) >= 40
