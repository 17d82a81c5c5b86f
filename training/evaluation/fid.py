"""Features for FID from a network given by path: TorchScript or ONNX.

torchmetrics does the statistics (`measuring.Distribution`); its own Inception needs torch-fidelity, which needs
torchvision, so the network comes as a file that carries its own preprocessing: pictures uint8 [N, 3, H, W] go in as
they are and features [N, D] come out. The Inception that the StyleGAN projects publish as TorchScript
(`inception-2015-12-05.pt`) is such a file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class FeatureNetwork(nn.Module):
    """uint8 [N, 3, H, W] -> float [N, num_features]."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        """path: .onnx or TorchScript. ValueError with one line if it cannot be loaded or does not make features."""
        super().__init__()
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; FID needs a TorchScript or ONNX network that makes features")
        self._device = torch.device(device)
        self._run = _open_onnx(path) if path.suffix == ".onnx" else _open_torchscript(path, self._device)
        try:
            features = self(torch.zeros(2, 3, 256, 256, dtype=torch.uint8))
        except Exception as error:  # whatever a foreign network raises when the input does not suit it
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"{path}: does not take uint8 pictures [N, 3, H, W] ({lines[-1]})") from error
        if features.ndim != 2 or len(features) != 2:
            raise ValueError(f"{path}: expected features [N, D] for N pictures, got {tuple(features.shape)} for N = 2")
        self.num_features = int(features.shape[1])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self._run(images).float().to(self._device)


def _open_torchscript(path: Path, device: torch.device):
    try:
        module = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as TorchScript ({str(error).strip().splitlines()[0]})") from error
    takes_flag = "return_features" in [argument.name for argument in module.forward.schema.arguments]

    def run(images: Tensor) -> Tensor:
        images = images.to(device)
        return module(images, return_features=True) if takes_flag else module(images)

    return run


def _open_onnx(path: Path):
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise ValueError(f"{path}: cannot be read as ONNX ({str(error).strip().splitlines()[0]})") from error
    wanted = session.get_inputs()[0]
    dtype = np.uint8 if wanted.type == "tensor(uint8)" else np.float32

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {wanted.name: images.cpu().numpy().astype(dtype)})[0])

    return run
