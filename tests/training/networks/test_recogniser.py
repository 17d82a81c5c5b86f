"""Recognisers in torch give what ONNX Runtime gives: SFace on real faces, an ArcFace graph made here."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from model.faces import onnx_session
from model.faces.alignment import arcface_crop
from model.faces.schemes import points5_from_points68
from model.faces.weights import WeightsError
from training.networks import recogniser as module
from training.networks.recogniser import OnnxNetwork, load_recogniser


class GraphBuilder:
    """Layers of an insightface IResNet with random weights, named and ordered as its exporter writes them."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def add(self, operation: str, inputs: list[str], weights: list[np.ndarray], **attributes) -> str:
        output = f"{operation}_{len(self.nodes)}"
        names = [f"{output}.{index}" for index in range(len(weights))]
        self.weights |= {name: np.float32(weight) for name, weight in zip(names, weights, strict=True)}
        self.nodes.append(helper.make_node(operation, [*inputs, *names], [output], **attributes))
        return output

    def conv(self, x: str, before: int, after: int, *, kernel: int = 3, stride: int = 1) -> str:
        weight = self.rng.normal(0, (2 / (before * kernel**2)) ** 0.5, (after, before, kernel, kernel))
        pad = kernel // 2
        return self.add(
            "Conv", [x], [weight, self.rng.normal(0, 0.1, after)],
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, dilations=[1, 1], group=1,
        )  # fmt: skip

    def norm(self, x: str, channels: int) -> str:
        scale, var = self.rng.uniform(0.5, 1.5, (2, channels))
        bias, mean = self.rng.normal(0, 0.2, (2, channels))
        return self.add("BatchNormalization", [x], [scale, bias, mean, var], epsilon=1e-5)

    def prelu(self, x: str, channels: int) -> str:
        return self.add("PRelu", [x], [self.rng.uniform(0, 0.5, (channels, 1, 1))])

    def block(self, x: str, before: int, after: int, stride: int) -> str:
        inner = self.prelu(self.conv(self.norm(x, before), before, after), after)
        inner = self.conv(inner, after, after, stride=stride)
        shortcut = x if before == after else self.conv(x, before, after, kernel=1, stride=stride)
        return self.add("Add", [inner, shortcut], [])

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "torch_jit",
            [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["None", 3, 112, 112])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


@pytest.fixture(scope="module")
def arcface(tmp_path_factory):
    """The IResNet of w600k_r50.onnx: stem, four stages that halve, norm, Flatten, Gemm, norm; narrow and short."""
    builder = GraphBuilder()
    x = builder.prelu(builder.conv("input.1", 3, 8), 8)
    for before, after in ((8, 8), (8, 12), (12, 16), (16, 24)):
        if before == after:  # the first stage keeps its width, but its first block still has a convolved shortcut
            inner = builder.prelu(builder.conv(builder.norm(x, before), before, after), after)
            inner = builder.conv(inner, after, after, stride=2)
            x = builder.add("Add", [inner, builder.conv(x, before, after, kernel=1, stride=2)], [])
        else:
            x = builder.block(x, before, after, 2)
        x = builder.block(x, after, after, 1)
    x = builder.add("Flatten", [builder.norm(x, 24)], [], axis=1)
    weight = builder.rng.normal(0, 0.02, (32, 24 * 7 * 7))
    x = builder.add("Gemm", [x], [weight, builder.rng.normal(0, 0.1, 32)], alpha=1.0, beta=1.0, transB=1)
    x = builder.norm(x, 32)
    path = tmp_path_factory.mktemp("arcface") / "w600k_tiny.onnx"
    onnx.save(builder.model(x), path)
    return path


@pytest.fixture(scope="module")
def sface(sface_folder):
    return load_recogniser(weights_dir=sface_folder)


def test_sface_gives_what_onnx_runtime_gives_on_real_faces(sface, sface_folder, real_faces):
    path = f"{sface_folder}/face_recognition_sface_2021dec_int8bq.onnx"
    session = onnx_session.open_session(path, num_threads=1, device="cpu")
    crops = [arcface_crop(face.crop, points5_from_points68(face.landmarks_px)) for face in real_faces]
    pixels = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32)
    expected = np.concatenate([session.run(None, {"data": face[None]})[0] for face in pixels])
    with torch.no_grad():
        raw = sface.network(torch.from_numpy(pixels)).numpy()
        embeddings = sface(torch.from_numpy(pixels) / 255).numpy()
    np.testing.assert_allclose(raw, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(embeddings, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    similarity = embeddings @ embeddings.T
    assert (similarity[~np.eye(len(crops), dtype=bool)] < 0.43).all()  # four different people


def test_arcface_graph_gives_what_onnx_runtime_gives(arcface):
    recogniser = load_recogniser(arcface)
    faces = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(arcface, providers=["CPUExecutionProvider"])
    pixels = (faces.numpy() * 255 - 127.5) / 127.5  # ArcFace wants -1 to 1; its graph has no Sub and Mul of its own
    expected = session.run(None, {"input.1": pixels.astype(np.float32)})[0]
    with torch.no_grad():
        embeddings = recogniser(faces).numpy()
    np.testing.assert_allclose(embeddings, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert not recogniser.network.normalises_pixels


def test_gradient_reaches_the_picture_and_equals_finite_differences(arcface):
    recogniser = load_recogniser(arcface)
    network = recogniser.network
    face = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1
    face.requires_grad_()
    network(face)[0, 3].backward()
    direction = face.grad.sign()  # a change well above rounding at steps too small to cross the kinks of many PReLUs
    with torch.no_grad():
        ahead, behind = (network(face + sign * 1e-5 * direction)[0, 3].item() for sign in (1, -1))
    assert face.grad.abs().sum().item() == pytest.approx((ahead - behind) / 2e-5, rel=0.02)


def test_recogniser_is_frozen_float32_and_holds_nothing_to_save(sface):
    sface.train()
    assert not any(part.training for part in sface.modules())
    assert not list(sface.parameters())
    assert not sface.state_dict()
    faces = torch.rand(1, 3, 112, 112, requires_grad=True)
    exact = sface(faces)
    with torch.autocast("cpu", torch.bfloat16):
        same = sface(faces)
    assert same.dtype == torch.float32
    assert torch.equal(same, exact)
    same[0, 0].backward()
    assert faces.grad.isfinite().all()
    assert faces.grad.abs().max() > 0


def test_sface_is_the_default_and_is_taken_from_where_curation_keeps_it(sface_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PORTRAIT_WEIGHTS", str(tmp_path))
    (tmp_path / "face_recognition_sface_2021dec_int8bq.onnx").symlink_to(
        f"{sface_folder}/face_recognition_sface_2021dec_int8bq.onnx"
    )
    assert load_recogniser().network.normalises_pixels
    assert load_recogniser()(torch.rand(1, 3, 112, 112)).shape == (1, 128)


def test_random_substitute_only_when_asked_and_then_said(monkeypatch, caplog):
    def cannot_fetch(*_):
        raise WeightsError("no network")

    monkeypatch.setattr(module, "resolve_weight", cannot_fetch)
    with pytest.raises(
        ValueError, match=r"no network.*--losses.recogniser, or .*--losses.weights-dir, .*--allow-random-features"
    ):
        load_recogniser()
    with caplog.at_level(logging.WARNING):
        recogniser = load_recogniser(allow_random_features=True)
    assert "random features" in caplog.text
    assert recogniser.is_random
    faces = torch.rand(2, 3, 112, 112, requires_grad=True)
    embeddings = recogniser(faces)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert torch.equal(embeddings, load_recogniser(allow_random_features=True)(faces))
    embeddings[0, 0].backward()
    assert faces.grad.isfinite().all()


def test_files_that_are_no_recognisers_are_explained(tmp_path):
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"])
    graph = helper.make_graph(
        [node],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(4, np.float32), "scales")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other.onnx uses the operations Resize"):
        OnnxNetwork(tmp_path / "other.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"broken.onnx is no ONNX file"):
        load_recogniser(tmp_path / "broken.onnx", allow_random_features=True)
    with pytest.raises(ValueError, match=r"--losses.recogniser: .*nowhere.onnx does not exist"):
        load_recogniser(tmp_path / "nowhere.onnx", allow_random_features=True)


def test_unaligned_faces_are_refused(arcface):
    with pytest.raises(ValueError, match=r"aligned faces \[B, 3, 112, 112\]; got \(1, 3, 64, 64\)"):
        load_recogniser(arcface)(torch.rand(1, 3, 64, 64))
