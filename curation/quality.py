"""Optional face-quality networks: one score a face, higher is better, whatever file the user names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from curation.recipe import CropOptions

QualityModel = Callable[[np.ndarray], float]
"""uint8 [H, W, 3] RGB face -> score."""


def load_quality_model(options: CropOptions) -> QualityModel | None:
    """The network that `crop.quality_model` names; None when it names none.

    Raises:
        ValueError: the file is missing or of an unknown kind, or pyiqa is not installed.
    """
    name = options.quality_model
    if not name:
        return None
    if name.startswith("pyiqa:"):
        return _load_pyiqa(name.removeprefix("pyiqa:"))
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"crop.quality_model: no such file: {path}")
    if path.suffix == ".onnx":
        return _load_onnx(path, options)
    return _load_opencv(path, options)


def _blob(face: np.ndarray, options: CropOptions) -> np.ndarray:
    side = options.quality_size_px
    method = cv2.INTER_AREA if max(face.shape) > side else cv2.INTER_LINEAR
    picture = cv2.resize(face, (side, side), interpolation=method).astype(np.float32)
    return ((picture - options.quality_mean) / options.quality_std).transpose(2, 0, 1)[None]


def _load_onnx(path: Path, options: CropOptions) -> QualityModel:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda face: float(np.mean(session.run(None, {name: _blob(face, options)})[0]))


def _load_opencv(path: Path, options: CropOptions) -> QualityModel:
    try:
        network = cv2.dnn.readNet(str(path))
    except cv2.error as error:
        raise ValueError(
            f"crop.quality_model: OpenCV cannot read {path.name} as a network (expected .onnx or .pb)"
        ) from error

    def score(face: np.ndarray) -> float:
        network.setInput(_blob(face, options))
        return float(np.mean(network.forward()))

    return score


def _load_pyiqa(metric: str) -> QualityModel:
    try:
        import pyiqa
    except ImportError as error:
        raise ValueError(
            f"crop.quality_model pyiqa:{metric} needs the package pyiqa: pip install pyiqa (it brings torchvision:"
            " take an environment of its own if that replaces torch)"
        ) from error
    import torch

    network = pyiqa.create_metric(metric, device="cpu")

    def score(face: np.ndarray) -> float:
        tensor = torch.from_numpy(face.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            value = float(network(tensor))
        return -value if network.lower_better else value

    return score
