"""Differentiable face recognisers: SFace, ArcFace and their like, run in torch from their ONNX files.

A small interpreter walks the ONNX graph, so any recogniser of the usual layers works: MobileNet-style SFace,
insightface's IResNets (`w600k_r50.onnx`). Weights quantised in blocks become floats at load. The default is the SFace
file that curation fetches and verifies, so no model hub is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from model.faces.alignment import ARCFACE_SIZE_PX
from model.faces.onnx_session import fold_constants
from model.faces.weights import WeightsError, resolve_weight
from model.networks.blocks import without_autocast
from training.networks.weight_files import local_file

logger = logging.getLogger(__name__)

Attributes = dict[str, Any]


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads = attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        x, pads = functional.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0, 0, 0, 0]
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    return functional.conv2d(x, weight, bias, strides, pads[:2], dilations, attributes.get("group", 1))


def _batch_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.mT if attributes.get("transA") else a
    b = b.mT if attributes.get("transB") else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)  # slopes broadcast by ONNX's rules, as [C, 1, 1] or one number


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda _, a, b: a + b,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Div": lambda _, a, b: a / b,
    "Dropout": lambda _, x, *rest: x,
    "Flatten": lambda attributes, x: x.flatten(attributes.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean(dim=(2, 3), keepdim=True),
    "Identity": lambda _, x: x,
    "MatMul": lambda _, a, b: a @ b,
    "Mul": lambda _, a, b: a * b,
    "PRelu": _prelu,
    "Relu": lambda _, x: torch.relu(x),
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Sub": lambda _, a, b: a - b,
}


class OnnxNetwork(nn.Module):
    """An ONNX graph of one input and one output, evaluated in torch; weights are frozen buffers, float32.

    ValueError names the file and the operations that are not known.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        path = local_file(path, "--losses.recogniser")
        try:
            model = onnx.load(path)
        except Exception as error:  # protobuf raises errors of its own
            raise ValueError(f"{path} is no ONNX file ({error}); it may be damaged") from error
        fold_constants(model)
        graph = model.graph
        self.nodes = [node for node in graph.node if node.op_type != "Constant"]
        unknown = sorted({node.op_type for node in self.nodes} - set(_OPERATIONS))
        if unknown:
            raise ValueError(
                f"{path} uses the operations {', '.join(unknown)}, which this reader of recognisers does not know; "
                f"it knows {', '.join(_OPERATIONS)}"
            )
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._buffer_names = {}
        for index, (name, value) in enumerate(constants.items()):
            self._buffer_names[name] = f"constant_{index}"
            tensor = torch.from_numpy(np.array(value, dtype=np.float32))
            self.register_buffer(f"constant_{index}", tensor, persistent=False)
        self._attributes = [
            {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            for node in self.nodes
        ]
        inputs = [value for value in graph.input if value.name not in constants]
        self.input_name, self.output_name = inputs[0].name, graph.output[0].name
        # insightface's rule: a graph that starts with Sub and Mul normalises pixels from 0 to 255 itself.
        first = {node.op_type for node in self.nodes[:8]}
        self.normalises_pixels = bool({"Sub", "Mul"} <= first)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            values = {name: getattr(self, buffer) for name, buffer in self._buffer_names.items()}
            values[self.input_name] = x.float()
            for node, attributes in zip(self.nodes, self._attributes, strict=True):
                arguments = [values[name] for name in node.input if name]
                values[node.output[0]] = _OPERATIONS[node.op_type](attributes, *arguments)
            return values[self.output_name]


class RandomEmbedder(nn.Module):
    """Substitute for a recogniser: four random convolutions, whose flattened map is projected to 128 numbers.

    It sees where light and dark are in the aligned face, and knows nothing of identity.
    """

    normalises_pixels = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = (3, 16, 32, 64, 64)
        shapes = [(after, before, 3, 3) for before, after in pairwise(widths)]
        for index, shape in enumerate([*shapes, (128, 64 * 7 * 7)]):
            weight = torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5
            self.register_buffer(f"weight_{index}", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            x = x.float()
            for index in range(4):
                x = functional.leaky_relu(functional.conv2d(x, getattr(self, f"weight_{index}"), None, 2, 1), 0.2)
            return x.flatten(1) @ self.weight_4.T


class FaceRecogniser(nn.Module):
    """Identity of aligned faces: float [B, 3, 112, 112], RGB in [0, 1] -> unit vectors float32 [B, D].

    Frozen and always in evaluation mode; gradients reach the picture.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.is_random = isinstance(network, RandomEmbedder)
        self.eval()

    def train(self, mode: bool = True) -> FaceRecogniser:
        return super().train(False)

    def forward(self, faces: Tensor) -> Tensor:
        if tuple(faces.shape[1:]) != (3, ARCFACE_SIZE_PX, ARCFACE_SIZE_PX):
            raise ValueError(f"a recogniser wants aligned faces [B, 3, 112, 112]; got {tuple(faces.shape)}")
        with without_autocast(faces.device):
            pixels = faces.float() * 255
            if not self.network.normalises_pixels:
                pixels = (pixels - 127.5) / 127.5
            return functional.normalize(self.network(pixels), dim=1)


def load_recogniser(
    path: str | Path | None = None,
    *,
    weights_dir: str | Path | None = None,
    allow_random_features: bool = False,
) -> FaceRecogniser:
    """A recogniser from an ONNX file (path or URL); by default SFace, from `weights_dir`, the cache or one download.

    Only where SFace cannot be had and `allow_random_features` is set, a random substitute takes its place, which is
    said once. A `path` that is given is never substituted.
    """
    if path:
        return FaceRecogniser(OnnxNetwork(path))
    try:
        return FaceRecogniser(OnnxNetwork(resolve_weight("sface", weights_dir).path))
    except WeightsError as error:
        if not allow_random_features:
            raise ValueError(
                f"the identity loss needs a face recogniser: {str(error).rstrip('.')}. Or give an ONNX file with "
                "--losses.recogniser, or the folder of SFace's with --losses.weights-dir, or pass "
                "--allow-random-features to train with random features instead (worse results)"
            ) from error
        logger.warning("no recogniser (%s): the identity loss uses random features, as asked", error)
        return FaceRecogniser(RandomEmbedder())
