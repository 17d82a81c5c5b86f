"""Quantised weights unfold to what ONNX Runtime would compute, and sessions keep to their threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from model.faces.onnx_session import execution_providers, fold_constants, open_session, require_provider, rewrite_prelu

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """Two convolutions, one with weights quantised in blocks and one per channel; weights listed as inputs too."""
    rng = np.random.default_rng(0)
    constants = {
        "w1_q": rng.integers(-128, 127, (8, 27), np.int8),
        "w1_scale": rng.uniform(0.001, 0.02, (8, 3)).astype(np.float32),
        "w1_zero": rng.integers(-5, 5, (8, 3), np.int8),
        "w1_shape": np.array([8, 3, 3, 3]),
        "w2_q": rng.integers(-128, 127, (4, 8, 1, 1), np.int8),
        "w2_scale": rng.uniform(0.001, 0.02, 4).astype(np.float32),
        "w2_zero": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w1_q", "w1_scale", "w1_zero"], ["w1_flat"], axis=1, block_size=9),
        helper.make_node("Reshape", ["w1_flat", "w1_shape"], ["w1"]),
        helper.make_node("Conv", ["data", "w1"], ["hidden"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["w2_q", "w2_scale", "w2_zero"], ["w2"], axis=0),
        helper.make_node("Conv", ["hidden", "w2"], ["out"], kernel_shape=[1, 1]),
    ]
    data = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 16, 16])
    listed = helper.make_tensor_value_info("w2_scale", TensorProto.FLOAT, [4])
    graph = helper.make_graph(
        nodes,
        "quantised",
        [data, listed],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4, 16, 16])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)
    path = tmp_path_factory.mktemp("networks") / "quantised.onnx"
    onnx.save(model, path)
    return path


def test_folded_network_computes_the_same(quantised):
    data = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    reference = onnxruntime.InferenceSession(quantised, options, providers=["CPUExecutionProvider"])
    expected = reference.run(None, {"data": data})[0]
    session = open_session(quantised, num_threads=1, device="cpu")
    assert [value.name for value in session.get_inputs()] == ["data"]
    np.testing.assert_allclose(session.run(None, {"data": data})[0], expected, rtol=1e-4, atol=1e-5)


def test_folding_leaves_no_quantised_weights(quantised):
    model = onnx.load(quantised)
    fold_constants(model)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Conv"]
    assert {tensor.name for tensor in model.graph.initializer} == {"w1", "w2"}
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer)


def test_rewritten_prelu_computes_the_same(tmp_path):
    """Slopes per channel below 0, between and above 1; a slope that is computed stays as it is."""
    slopes = np.array([-0.5, 0.0, 0.25, 1.0, 3.0], np.float32).reshape(5, 1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("PRelu", ["data", "slopes"], ["hidden"]),
            helper.make_node("Abs", ["slopes"], ["computed"]),
            helper.make_node("PRelu", ["hidden", "computed"], ["out"]),
        ],
        "activations",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 5, 9, 7])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, 9, 7])],
        [numpy_helper.from_array(slopes, "slopes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)
    onnx.save(model, tmp_path / "activations.onnx")
    rewrite_prelu(model)
    assert [n.op_type for n in model.graph.node].count("PRelu") == 1
    data = np.random.default_rng(2).normal(size=(1, 5, 9, 7)).astype(np.float32)
    found = open_session(tmp_path / "activations.onnx", num_threads=1, device="cpu").run(None, {"data": data})[0]
    hidden = np.where(data > 0, data, slopes * data)
    np.testing.assert_allclose(found, np.where(hidden > 0, hidden, abs(slopes) * hidden), rtol=1e-5, atol=1e-6)


def test_released_axes_take_any_size(quantised):
    session = open_session(quantised, num_threads=1, device="cpu", free_axes=(2, 3))
    assert session.run(None, {"data": np.zeros((1, 3, 20, 36), np.float32)})[0].shape == (1, 4, 20, 36)
    assert session.get_session_options().intra_op_num_threads == 1


def test_cuda_that_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="onnxruntime-gpu"):
        execution_providers("cuda")


def test_a_session_that_fell_back_to_the_cpu_is_an_error(quantised):
    session = open_session(quantised, num_threads=1, device="cpu", free_axes=(2, 3))
    require_provider(session, "cpu")
    with pytest.raises(ValueError, match="cannot use a GPU here"):
        require_provider(session, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs ONNX Runtime with CUDA")
def test_cuda_computes_what_the_cpu_does(quantised):
    images = np.random.default_rng(0).random((1, 3, 20, 36), np.float32)
    results = [
        open_session(quantised, num_threads=1, device=device, free_axes=(2, 3)).run(None, {"data": images})[0]
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(results[1], results[0], rtol=0.01, atol=0.01)


def test_onnx_runtime_reports_to_nobody(tmp_path: Path):
    """What counts uses leaves an identifier in the home or the temporary folder."""
    told_otherwise = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME")  # on CI machines it is off
    env = {name: value for name, value in os.environ.items() if name not in told_otherwise}
    env |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import model.faces.onnx_session"], env=env, check=True)
    assert list(tmp_path.iterdir()) == []
