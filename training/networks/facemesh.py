"""Differentiable FaceMesh: the landmarker that labels the shards, run in torch from its TFLite file.

A small interpreter walks the file's graph, whose layers are convolutions, PReLU, sums, pooling and padding. It is the
same network on the same crop as `model.faces.facemesh`, so gradients of what that one would see reach pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.faces import Detections
from model.faces.alignment import upright_square
from model.faces.facemesh import CROP_SCALE, NUM_VERTICES, SIZE_PX
from model.faces.schemes import points68_from_mesh
from model.faces.weights import resolve_weight
from model.networks.blocks import without_autocast

_LOOKED_AT_PX = 512
"""Pictures are brought to this side first, as evaluation does before it looks for faces."""

_PADDINGS = {0: "same", 1: "valid"}
_ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {0: lambda x: x, 1: torch.relu}


class MeshLandmarks(nn.Module):
    """FaceMesh's 68 iBUG landmarks of pictures in which the face's place is known about."""

    def __init__(self, path: str | Path | None = None, *, weights_dir: str | None = None) -> None:
        """path: the TFLite file; fetched and verified like curation's if not given. ValueError for other files."""
        super().__init__()
        self._graph = _Graph(Path(path) if path else resolve_weight("facemesh", weights_dir).path)
        for name, value in self._graph.constants.items():
            self.register_buffer(f"constant_{name}", value)

    def forward(self, image: Tensor, near: Tensor) -> Tensor:
        """Landmarks [N, 68, 2] in [-1, 1] of pictures [N, 3, H, H], RGB in [0, 1].

        near: landmarks [N, 68, 2] about where the face is, e.g. of the picture before a change: the crop is cut around
        them. Gradients reach the picture alone. NaN where `near` is NaN.
        """
        with without_autocast(image.device):
            size = _LOOKED_AT_PX
            large = functional.interpolate(image.float(), size=(size, size), mode="bicubic").clamp(0, 1)
            to_picture = torch.from_numpy(_crops(near.detach().cpu().numpy(), size)).to(large)
            grid = functional.affine_grid(to_picture, [len(large), 3, SIZE_PX, SIZE_PX], align_corners=False)
            crop = functional.grid_sample(large, grid, align_corners=False)
            mesh = self._run(crop).reshape(-1, NUM_VERTICES, 3)[..., :2] * (2 / SIZE_PX) - 1
            points = points68_from_mesh(mesh)
            points = points @ to_picture[:, :, :2].mT + to_picture[:, None, :, 2]
            return torch.where(near.isnan().flatten(1).any(dim=1)[:, None, None], torch.nan, points)

    def _run(self, crop: Tensor) -> Tensor:
        constants = {name: getattr(self, f"constant_{name}") for name in self._graph.constants}
        return self._graph.run(crop, constants)


def _crops(near: np.ndarray, size: int) -> np.ndarray:
    """Affine maps float32 [N, 2, 3] from the crop to the picture, both in [-1, 1], like the landmarker's own crops."""
    maps = []
    for points in (np.nan_to_num(near) + 1) / 2 * size - 0.5:
        face = Detections.from_points68(points[None])
        matrix = upright_square(face.boxes[0], face.points[0], scale=CROP_SCALE, size_px=SIZE_PX)
        inverse = np.linalg.inv(_unit(SIZE_PX) @ matrix @ np.linalg.inv(_unit(size)))
        maps.append(inverse[:2])
    return np.stack(maps).astype(np.float32)


def _unit(size: int) -> np.ndarray:
    """Pixels (centres at integers) -> [-1, 1]: [3, 3]."""
    return np.array([[2 / size, 0, 1 / size - 1], [0, 2 / size, 1 / size - 1], [0, 0, 1]])


class _Graph:
    """The steps of a TFLite file: NHWC there, NCHW here."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        try:
            model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
            graph = model.subgraphs[0]
        except Exception as error:  # the parser raises what it happens to meet
            raise ValueError(f"{path} is no TFLite file: {error}") from error
        names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
        codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
        types = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
        types[schema.TensorType.INT32] = np.int32
        self.constants: dict[str, Tensor] = {}
        self.steps: list[tuple[str, Any, list[str], str]] = []
        for index, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data) and tensor.type in types:
                values = np.frombuffer(bytes(data), types[tensor.type]).reshape(tensor.shape)
                self.constants[str(index)] = torch.from_numpy(values.copy())
        for operator in graph.operators:
            name = names[codes[operator.opcodeIndex]]
            inputs, output = [str(index) for index in operator.inputs], str(operator.outputs[0])
            if name == "DEQUANTIZE":
                self.constants[output] = self.constants.pop(inputs[0]).float()
            elif name in _OPERATIONS:
                self.steps.append((name, operator.builtinOptions, inputs, output))
            else:
                raise ValueError(f"{path} has a layer {name}, which is not among {', '.join(_OPERATIONS)}")
        self._input = str(graph.inputs[0])
        sizes = {str(index): int(np.prod(graph.tensors[index].shape)) for index in graph.outputs}
        self._output = next((name for name, size in sizes.items() if size == NUM_VERTICES * 3), None)
        if self._output is None:
            raise ValueError(f"{path} gives no {NUM_VERTICES} vertices: expected MediaPipe's face_landmark.tflite")

    def run(self, image: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """The vertices [N, 1404] of crops [N, 3, 192, 192] in [0, 1]: x, y, z in crop pixels, 0 at the border."""
        values = {**constants, self._input: image}
        for name, options, inputs, output in self.steps:
            values[output] = _OPERATIONS[name](options, *(values[key] for key in inputs))
        return values[self._output].flatten(1)


def _padded(x: Tensor, options: Any, kernel: tuple[int, int], value: float = 0.0) -> Tensor:
    """TensorFlow's `same` padding: as many outputs as inputs over the stride, the odd pixel right and below."""
    if _PADDINGS[options.padding] == "valid":
        return x
    strides, pads = (options.strideH, options.strideW), []
    for size, side, stride in reversed(list(zip(x.shape[2:], kernel, strides, strict=True))):
        missing = max((-(-size // stride) - 1) * stride + side - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return functional.pad(x, pads, value=value)


def _conv(options: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = _padded(x, options, weight.shape[1:3])
    x = functional.conv2d(x, weight.permute(0, 3, 1, 2), bias, (options.strideH, options.strideW))
    return _ACTIVATIONS[options.fusedActivationFunction](x)


def _depthwise(options: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = _padded(x, options, weight.shape[1:3])
    strides = (options.strideH, options.strideW)
    x = functional.conv2d(x, weight.permute(3, 0, 1, 2), bias, strides, groups=x.shape[1])
    return _ACTIVATIONS[options.fusedActivationFunction](x)


def _max_pool(options: Any, x: Tensor) -> Tensor:
    kernel = (options.filterHeight, options.filterWidth)
    x = functional.max_pool2d(_padded(x, options, kernel, -torch.inf), kernel, (options.strideH, options.strideW))
    return _ACTIVATIONS[options.fusedActivationFunction](x)


def _pad(_: Any, x: Tensor, amounts: Tensor) -> Tensor:
    batch, rows, columns, channels = amounts.tolist()
    return functional.pad(x, [*columns, *rows, *channels, *batch])


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "ADD": lambda options, a, b: _ACTIVATIONS[options.fusedActivationFunction](a + b),
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "MAX_POOL_2D": _max_pool,
    "PAD": _pad,
    "PRELU": lambda _, x, slope: torch.where(x < 0, x * slope.permute(2, 0, 1), x),
}
