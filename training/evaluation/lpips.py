"""LPIPS 0.1 (Zhang et al. 2018) on an AlexNet or VGG16 of torchvision's layout, given by path.

The calibration (`lin` weights) is a small file that torchmetrics ships; its own LPIPS needs torchvision for the
backbone, which this project does not depend on.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from training.networks.weight_files import read_state_dict

# Five levels of convolutions: (N of features.N, channels in, channels out, kernel, stride, padding, follows a pooling).
# The activation after each level is compared.
_ALEX = (
    ((0, 3, 64, 11, 4, 2, False),),
    ((3, 64, 192, 5, 1, 2, True),),
    ((6, 192, 384, 3, 1, 1, True),),
    ((8, 384, 256, 3, 1, 1, False),),
    ((10, 256, 256, 3, 1, 1, False),),
)
_VGG16 = (
    ((0, 3, 64, 3, 1, 1, False), (2, 64, 64, 3, 1, 1, False)),
    ((5, 64, 128, 3, 1, 1, True), (7, 128, 128, 3, 1, 1, False)),
    ((10, 128, 256, 3, 1, 1, True), (12, 256, 256, 3, 1, 1, False), (14, 256, 256, 3, 1, 1, False)),
    ((17, 256, 512, 3, 1, 1, True), (19, 512, 512, 3, 1, 1, False), (21, 512, 512, 3, 1, 1, False)),
    ((24, 512, 512, 3, 1, 1, True), (26, 512, 512, 3, 1, 1, False), (28, 512, 512, 3, 1, 1, False)),
)
_BACKBONES = {"alex": (_ALEX, 3), "vgg": (_VGG16, 2)}  # levels, kernel of the max poolings (stride is 2)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's statistics for pictures in [-1, 1]


class Lpips(nn.Module):
    """Perceptual distance of pictures; `backbone` is alex or vgg."""

    def __init__(self, path: str | Path) -> None:
        """path: state dict of AlexNet or VGG16 (.pth, read without running code, or .safetensors); else ValueError."""
        super().__init__()
        state = _read_state(Path(path))
        self.backbone = _recognise(Path(path), state)
        levels, self._pool_kernel = _BACKBONES[self.backbone]
        calibration = _calibration(self.backbone)
        self.levels, self.pooled = nn.ModuleList(), []
        for level in levels:
            convolutions = nn.ModuleList()
            for index, channels_in, channels_out, kernel, stride, padding, _ in level:
                convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, padding)
                convolution.load_state_dict({k: state[f"features.{index}.{k}"] for k in ("weight", "bias")})
                convolutions.append(convolution)
            self.levels.append(convolutions)
            self.pooled.append(level[0][-1])
        for number, weight in enumerate(calibration):
            self.register_buffer(f"lin{number}", weight)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of each pair of pictures, float [N, 3, H, W] in [0, 1]: [N]; 0 for equal ones."""
        distance = torch.zeros(len(first), device=first.device)
        for number, (a, b) in enumerate(zip(self._activations(first), self._activations(second), strict=True)):
            a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
            weighted = (a - b).square() * getattr(self, f"lin{number}")
            distance += weighted.sum(1).mean((1, 2))
        return distance

    def _activations(self, image: Tensor) -> list[Tensor]:
        x = ((image * 2 - 1) - self.shift) / self.scale
        levels = []
        for convolutions, is_pooled in zip(self.levels, self.pooled, strict=True):
            if is_pooled:
                x = nn.functional.max_pool2d(x, self._pool_kernel, 2)
            for convolution in convolutions:
                x = convolution(x).relu()
            levels.append(x)
        return levels


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; LPIPS needs an AlexNet or VGG16 state dict of torchvision's layout")
    return read_state_dict(path)


def _recognise(path: Path, state: dict[str, Tensor]) -> str:
    for name, (levels, _) in _BACKBONES.items():
        convolutions = [convolution for level in levels for convolution in level]
        expected = {f"features.{i}.weight": (out, into, kernel, kernel) for i, into, out, kernel, *_ in convolutions}
        got = {key: tuple(state[key].shape) for key in state if key.startswith("features.") and key.endswith("weight")}
        if got == expected:
            return name
    raise ValueError(
        f"{path}: neither an AlexNet nor a VGG16 of torchvision's layout (features.N.weight); LPIPS is calibrated for "
        "these two"
    )


def _calibration(backbone: str) -> list[Tensor]:
    """One weight a channel for each of the five levels: [C, 1, 1]."""
    resource = files("torchmetrics.functional.image") / "lpips_models" / f"{backbone}.pth"
    with resource.open("rb") as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{number}.model.1.weight"][0].float() for number in range(5)]
