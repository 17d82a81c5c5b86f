"""ONNX Runtime sessions for small networks: quantised weights unfolded, PReLU rewritten, threads bounded, quiet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper


def execution_providers(device: str) -> list[str]:
    """Provider names for `cpu` or `cuda`; ValueError where the installed ONNX Runtime has no CUDA."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise ValueError(
            "device is cuda, but the installed ONNX Runtime has no CUDA provider: "
            "install onnxruntime-gpu[cuda,cudnn] in place of onnxruntime, or use device cpu"
        )
    onnxruntime.preload_dlls()  # CUDA and cuDNN out of their wheels, which the dynamic linker does not search
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def session_options(num_threads: int) -> onnxruntime.SessionOptions:
    """Bounded threads, no busy waiting, errors only."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    path: Path, *, num_threads: int, device: str, free_axes: tuple[int, ...] = ()
) -> onnxruntime.InferenceSession:
    """A session with float weights; `free_axes` of the first input accept any size."""
    model = onnx.load(path)
    fold_constants(model)
    if device == "cpu":
        rewrite_prelu(model)
    if free_axes:
        release_axes(model, free_axes)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(num_threads), providers=execution_providers(device)
    )
    require_provider(session, device)
    return session


def require_provider(session: onnxruntime.InferenceSession, device: str) -> None:
    """ValueError where `cuda` was asked for and the session runs on the CPU: ONNX Runtime itself only logs that."""
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise ValueError(
            "device is cuda, but ONNX Runtime cannot use a GPU here: see that the machine has one, with its driver and"
            " the CUDA and cuDNN libraries that this onnxruntime-gpu wants, or use device cpu"
        )


def fold_constants(model: onnx.ModelProto) -> None:
    """Turn quantised weights into float ones and drop weights from the graph's inputs, in place.

    ONNX Runtime keeps DequantizeLinear nodes and runs them at every call, which makes a block-quantised file slower
    than a float one, and warns about every weight that is listed as an input.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    folded = []
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "Reshape") and all(name in constants for name in node.input):
            inputs = [constants[name] for name in node.input]
            value = _dequantize(node, *inputs) if node.op_type == "DequantizeLinear" else inputs[0].reshape(inputs[1])
            constants[node.output[0]] = value
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), node.output[0]))
            folded.append(node)
    for node in folded:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    for value in [value for value in graph.input if value.name in constants or value.name not in used]:
        graph.input.remove(value)


def rewrite_prelu(model: onnx.ModelProto) -> None:
    """Turn PReLU with constant slopes a into a x + (1 - a) ReLU(x), in place.

    ONNX Runtime's CPU kernel for PReLU goes through the numbers one by one, which took more of SFace than its
    convolutions; these operators are vectorised. The results differ by rounding.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "PRelu" or node.input[1] not in constants:
            nodes.append(node)
            continue
        (x, slope), (y,) = node.input, node.output
        rest = numpy_helper.from_array(np.float32(1) - numpy_helper.to_array(constants[slope]), f"{y}_1-a")
        graph.initializer.append(rest)
        nodes += [
            helper.make_node("Mul", [x, slope], [f"{y}_ax"]),
            helper.make_node("Relu", [x], [f"{y}_relu"]),
            helper.make_node("Mul", [f"{y}_relu", rest.name], [f"{y}_rest"]),
            helper.make_node("Add", [f"{y}_ax", f"{y}_rest"], [y]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def release_axes(model: onnx.ModelProto, axes: tuple[int, ...]) -> None:
    """Let the given axes of the first input take any size, in place; shapes that follow from them are forgotten."""
    for axis in axes:
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"axis_{axis}"
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def _dequantize(
    node: onnx.NodeProto, quantized: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None
) -> np.ndarray:
    """What DequantizeLinear computes: per tensor, per slice of `axis`, or per block of `block_size` along `axis`."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    if zero_point is None:
        zero_point = np.zeros_like(scale)
    if block:
        scale, zero_point = (
            np.take(np.repeat(values, block, axis), range(quantized.shape[axis]), axis)
            for values in (scale, zero_point)
        )
    elif scale.ndim == 1 and scale.size > 1:
        shape = [-1 if index == axis else 1 for index in range(quantized.ndim)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return (quantized.astype(np.float32) - zero_point.astype(np.float32)) * scale
