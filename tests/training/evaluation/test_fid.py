from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.linalg
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from model.animation.progress import ignore
from training.evaluation.evaluate import Evaluate, evaluate
from training.evaluation.fid import FeatureNetwork
from training.evaluation.measuring import Distribution


class _Statistics(nn.Module):
    """Six features of a picture, and the flag that StyleGAN's Inception takes."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        if not return_features:
            return images.float()
        x = images.float() / 255
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)


def _script(path: Path) -> Path:
    torch.jit.script(_Statistics()).save(str(path))
    return path


def _pictures(seed: int, contrast: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(0, 255 - contrast, (40, 3, 1, 1), generator=generator)
    return (level + torch.randint(0, contrast, (40, 3, 16, 16), generator=generator)).byte()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_distance_equals_the_formula(tmp_path: Path) -> None:
    network = FeatureNetwork(_script(tmp_path / "network.pt"))
    assert network.num_features == 6
    real, fake = _pictures(0, 100), _pictures(1, 60)
    distribution = Distribution()
    assert distribution.value() is None
    for start in range(0, 40, 16):  # in uneven batches
        distribution.add(network(real[start : start + 16]), real=True)
        distribution.add(network(fake[start : start + 16]), real=False)
    a, b = (network(pictures).double().numpy() for pictures in (real, fake))
    mixed = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * mixed)
    assert distribution.value() == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equal_pictures_have_no_distance(tmp_path: Path) -> None:
    network, distribution = FeatureNetwork(_script(tmp_path / "network.pt")), Distribution()
    for is_real in (True, False):
        distribution.add(network(_pictures(0, 100)), real=is_real)
    assert distribution.value() == pytest.approx(0, abs=1e-6)


def test_onnx_networks_serve_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["x"], ["y"]),
        helper.make_node("Flatten", ["y"], ["features"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, "h", "w"])]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3])]
    model = helper.make_model(helper.make_graph(nodes, "means", inputs, outputs), ir_version=8)
    model.opset_import[0].version = 13
    onnx.save(model, tmp_path / "network.onnx")
    pictures = _pictures(0, 100)
    features = FeatureNetwork(tmp_path / "network.onnx")(pictures)
    torch.testing.assert_close(features, pictures.float().mean((2, 3)), rtol=1e-5, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    for name in ("damaged.pt", "damaged.onnx"):
        (tmp_path / name).write_bytes(b"not a network")
        with pytest.raises(ValueError, match="cannot be read as"):
            FeatureNetwork(tmp_path / name)
    torch.jit.script(nn.Identity()).save(str(tmp_path / "pictures.pt"))
    with pytest.raises(ValueError, match=r"expected features \[N, D\]"):
        FeatureNetwork(tmp_path / "pictures.pt")
    with pytest.raises(ValueError, match="no such file"):
        FeatureNetwork(tmp_path / "absent.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_evaluation_names_its_network_by_what_is_in_it(options: Evaluate, tmp_path: Path) -> None:
    network = _script(tmp_path / "network.pt")
    asked = dataclasses.replace(options, parts=("self",), metrics=("fid",), max_frames=1, fid_network=network)
    networks = evaluate(asked, ignore)[0]["networks"]
    digest = hashlib.sha256(network.read_bytes()).hexdigest()
    assert networks == {"lpips": None, "lpips_sha256": None, "fid": "network.pt", "fid_sha256": digest}
