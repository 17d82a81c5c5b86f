"""The networks against the released checkpoints' shapes and the published architecture's numbers."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.inference import InferenceEngine
from model.keypoints import Motion
from model.networks import LivePortrait
from model.networks.blocks import Conv3d
from model.networks.generator import SpectralConv2d

REFERENCE_NAMES = {
    "appearance": "appearance_feature_extractor",
    "motion": "motion_extractor",
    "warping": "warping_module",
    "generator": "spade_generator",
    "stitching": "stitching",
    "retarget_eye": "retarget_eye",
    "retarget_lip": "retarget_lip",
}


@pytest.fixture(scope="module")
def shapes(reference: Path) -> dict[str, dict[str, list[int]]]:
    return json.loads((reference / "state_dict_shapes.json").read_text())


@pytest.fixture(scope="module")
def weights(reference: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_weights", reference / "reference_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference / "golden_networks.npz"))


@pytest.fixture(scope="module")
def portrait(shapes, weights) -> LivePortrait:
    portrait = LivePortrait.untrained()
    for name, network in portrait.networks().items():
        published = REFERENCE_NAMES[name]
        state = weights.make_state_dict(published, shapes[published])
        network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=True)
    return portrait.requires_grad_(False)


@pytest.fixture(scope="module")
def inputs(weights) -> dict[str, Tensor]:
    image = weights.make_input("image", [2, 3, 256, 256])
    kp_source = weights.make_input("kp_source", [2, 21, 3], -0.8, 0.8)
    kp_driving = kp_source + weights.make_input("kp_shift", [2, 21, 3], -0.08, 0.08)
    eye = weights.make_input("eye_condition", [2, 3], 0, 0.8)
    lip = weights.make_input("lip_condition", [2, 2], 0, 0.8)
    arrays = {"image": image, "kp_source": kp_source, "kp_driving": kp_driving, "eye": eye, "lip": lip}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def assert_equal_within(got: Tensor, expected: np.ndarray, relative: float = 1e-4) -> None:
    got = got.numpy()
    assert got.shape == expected.shape
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error <= relative, f"max difference is {error:.2e} of the largest expected value"


def assert_decoded(image: Tensor, golden: dict[str, np.ndarray], relative: float) -> None:
    """All values within `relative`, and all but 1 in 2000 within 1e-4.

    G multiplies the last bits of W's flow: other kernels, equally right, move the bottom rows of one picture by up to
    1.8e-4, and the published numbers themselves differ there by 1.17e-4 from a float64 evaluation.
    """
    expected = golden["decoded_strided"]
    assert_equal_within(image[:, :, ::4, ::4], expected, relative)
    error = np.abs(image[:, :, ::4, ::4].numpy() - expected)
    assert np.quantile(error, 0.9995) <= 1e-4 * expected.max()
    assert_equal_within(image.mean(dim=(2, 3)), golden["decoded_mean"])


def runs_intel_kernels() -> bool:
    """Whether MKL takes the kernels that made the golden values; with them W and G equal them bit for bit."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "GenuineIntel" in cpuinfo.read_text() and torch.get_num_threads() > 1


@pytest.mark.parametrize("name", LivePortrait.NETWORKS)
def test_state_dict_is_the_released_one(name: str, shapes) -> None:
    with torch.device("meta"):
        network = getattr(LivePortrait(), name)
    got = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert got == shapes[REFERENCE_NAMES[name]]


def test_motion_extractor_reproduces(portrait, inputs, golden) -> None:
    heads = portrait.motion(inputs["image"])
    for head, value in heads.items():
        assert_equal_within(value, golden[f"motion_{head}"])
    motion = Motion.from_heads(heads)
    for angle in ("pitch", "yaw", "roll"):
        assert_equal_within(getattr(motion, angle)[:, 0], golden[f"motion_degrees_{angle}"])
    assert_equal_within(motion.rotation, golden["rotation"])
    assert_equal_within(motion.keypoints(), golden["keypoints"])


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With which the golden values were made, wherever the tests run on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_appearance_warping_generator_reproduce(portrait, inputs, golden) -> None:
    volume = portrait.appearance(inputs["image"])
    assert_equal_within(volume[:, ::4, ::4, ::4, ::4], golden["appearance_feature_strided"])

    warped = portrait.warping(volume, kp_driving=inputs["kp_driving"], kp_source=inputs["kp_source"])
    assert_equal_within(warped.feature[:, ::8, ::4, ::4], golden["warp_out_strided"])
    assert_equal_within(warped.occlusion, golden["warp_occlusion"])
    assert_equal_within(warped.deformation[:, ::4, ::4, ::4], golden["warp_deformation_strided"])

    image = portrait.generator(warped.feature)
    assert image.shape == (2, 3, 512, 512)
    assert_decoded(image, golden, relative=1e-4 if runs_intel_kernels() else 3e-4)


def test_optimised_path_reproduces(portrait, inputs, golden) -> None:
    """The folded networks at the published size, against the same numbers and bounds, of the first picture."""
    inputs = {name: value[:1] for name, value in inputs.items()}
    golden = {name: value[:1] for name, value in golden.items()}
    engine = InferenceEngine(portrait, dtype="float32")
    motion = engine.extract_motion(inputs["image"])
    assert_equal_within(motion.keypoints(), golden["keypoints"])
    volume = engine.extract_appearance(inputs["image"])
    assert_equal_within(volume[:, ::4, ::4, ::4, ::4], golden["appearance_feature_strided"])
    warped = engine._warping(volume, kp_driving=inputs["kp_driving"], kp_source=inputs["kp_source"])
    assert_equal_within(warped.feature[:, ::8, ::4, ::4], golden["warp_out_strided"])
    assert_equal_within(warped.occlusion, golden["warp_occlusion"])
    assert_equal_within(warped.deformation[:, ::4, ::4, ::4], golden["warp_deformation_strided"])
    image = engine.decode(volume, inputs["kp_source"], inputs["kp_driving"])
    assert_decoded(image, golden, relative=3e-4)


def test_stitching_and_retargeting_reproduce(portrait, inputs, golden) -> None:
    source, driving = inputs["kp_source"].flatten(1), inputs["kp_driving"].flatten(1)
    assert_equal_within(portrait.stitching(torch.cat([source, driving], 1)), golden["stitching_delta"])
    assert_equal_within(portrait.retarget_eye(torch.cat([source, inputs["eye"]], 1)), golden["eye_delta"])
    assert_equal_within(portrait.retarget_lip(torch.cat([source, inputs["lip"]], 1)), golden["lip_delta"])


def test_tiny_preset_has_the_same_structure() -> None:
    config = ModelConfig.tiny()
    portrait = LivePortrait.untrained(config=config)
    image = torch.rand(2, 3, config.image_size, config.image_size)
    motion = Motion.from_heads(portrait.motion(image))
    result = portrait(image, motion.keypoints(), motion.keypoints())
    assert result.shape == (2, 3, config.output_size, config.output_size)
    assert result.std() > 0

    def without_block_indices(network: torch.nn.Module) -> set[str]:
        return {".".join(part for part in key.split(".") if not part.isdigit()) for key in network.state_dict()}

    with torch.device("meta"):
        published = LivePortrait()
    for name in ("motion", "warping", "stitching"):
        assert without_block_indices(getattr(portrait, name)) == without_block_indices(getattr(published, name))


def test_untrained_weights_follow_from_the_seed() -> None:
    first, same, other = (LivePortrait.untrained(seed, ModelConfig.tiny()).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["generator.fc.weight"], other["generator.fc.weight"])


def test_image_size_must_suit_the_strides() -> None:
    with pytest.raises(ValueError, match="multiple of 128"):
        ModelConfig(image_size=200)


def test_a_volume_of_one_slice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^volume_depth is 1, expected 2 or more"):  # its coordinates would be 0 / 0
        ModelConfig(volume_depth=1)


def test_spectral_norm_learns_the_largest_singular_value() -> None:
    generator = LivePortrait.untrained(config=ModelConfig.tiny()).generator
    feature = torch.rand(1, generator.fc.in_channels, 2, 2)

    def norms() -> list[float]:
        weights = [convolution.normalized_weight().flatten(1) for convolution in generator.spectral_convolutions()]
        return [torch.linalg.matrix_norm(weight, ord=2).item() for weight in weights]

    with torch.no_grad():
        before = norms()
        generator.eval()(feature)
        assert norms() == before
        generator.train()
        for _ in range(200):
            generator(feature)
    assert len(before) > 4
    assert before != pytest.approx([1] * len(before), abs=1e-3)
    assert norms() == pytest.approx([1] * len(before), abs=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_convolution_of_shallow_volumes_is_the_3d_one(depth: int, kernel_size: int) -> None:
    torch.manual_seed(0)
    conv = Conv3d(3, 5, kernel_size)
    x = torch.randn(2, 3, depth, 6, 8, requires_grad=True)
    plain = torch.nn.functional.conv3d(x, conv.weight, conv.bias, padding=kernel_size // 2)
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), [x, conv.weight, conv.bias])
    found = conv(x)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
    gradients = torch.autograd.grad((found * weights).sum(), [x, conv.weight, conv.bias])
    torch.testing.assert_close(gradients, expected, atol=1e-4, rtol=1e-5)


def test_the_spectral_norm_is_found_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    plain = SpectralConv2d(16, 16, 3)
    reduced = copy.deepcopy(plain)
    plain.power_iteration()
    with torch.autocast("cpu", torch.bfloat16):
        reduced.power_iteration()
    assert torch.equal(plain.weight_u, reduced.weight_u)
    assert torch.equal(plain.weight_v, reduced.weight_v)
