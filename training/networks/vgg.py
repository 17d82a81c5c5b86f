"""VGG19 features for perceptual losses, in plain torch, with weights in torchvision's layout."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from training.networks.weight_files import local_file, read_state_dict

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
MIN_SIZE_PX = 16
"""Smallest picture that leaves relu5_1, after four halvings, a pixel."""

# Channels of the convolutions up to relu5_1; "pool" is a halving.
_PLAN = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512, 512, 512, 512, "pool", 512)
# Positions of the five ReLUs in torchvision's `features`.
_TAPS = (1, 6, 11, 20, 29)


class Vgg19Features(nn.Module):
    """Activations of VGG19 (arXiv 1409.1556) after the first ReLU of each of its five blocks.

    image: float [B, 3, H, W], RGB in [0, 1], at least 16 x 16 -> five maps, [B, 64, H, W] to [B, 512, H/16, W/16]. The
    network is frozen and stays in evaluation mode; gradients reach the picture. `width` scales the channels of the
    random substitute.
    """

    is_random = False
    """Whether this is the substitute."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for step in _PLAN:
            if step == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, max(1, round(step * width)), 3, padding=1), nn.ReLU()]
                channels = layers[-2].out_channels
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Vgg19Features:
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image - self.mean) / self.std
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS:
                taps.append(x)
        return taps

    @classmethod
    def from_file(cls, path: str | Path) -> Vgg19Features:
        """Weights of a torchvision VGG19 state dict by path or URL: .pth (loaded without running code) or .safetensors.

        Keys `features.N.weight` and `features.N.bias` up to N = 28; the rest of the file is ignored. ValueError names
        the file and what is missing or has another shape.
        """
        path = local_file(path, "--losses.vgg19")
        state = read_state_dict(path)
        network = cls()
        wanted = network.state_dict()
        missing = [key for key in wanted if key not in state]
        if missing:
            raise ValueError(
                f"{path} is no VGG19 in torchvision's layout: it lacks {len(missing)} of {len(wanted)} keys "
                f"({', '.join(missing)}); give torchvision's vgg19 state dict (vgg19-dcbb9e9d.pth)"
            )
        wrong = [
            f"{key} is {list(state[key].shape)}, expected {list(value.shape)}"
            for key, value in wanted.items()
            if state[key].shape != value.shape
        ]
        if wrong:
            raise ValueError(f"{path} is another network than VGG19 (VGG16? with batch norm?): {'; '.join(wrong)}")
        network.load_state_dict({key: state[key].float() for key in wanted})
        return network

    @classmethod
    def random_features(cls, seed: int = 0, *, width: float = 1.0) -> Vgg19Features:
        """The same network with random weights: a substitute for development, not for results.

        He-normal weights and zero biases from `seed`, so activations keep their variance from layer to layer. Distances
        in random features still see structure at five scales, but know nothing of what people notice. A `width` below 1
        makes it cheaper (cost falls with its square).
        """
        network = cls(width)
        network.is_random = True
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in network.features:
                if isinstance(layer, nn.Conv2d):
                    spread = (2 / layer.weight[0].numel()) ** 0.5
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * spread)
                    layer.bias.zero_()
        return network


def load_vgg19(path: str | Path | None, *, allow_random_features: bool = False, width: float = 1.0) -> Vgg19Features:
    """VGG19 from a path or URL; the random substitute (said once) only if there is no path and it was asked for."""
    if path:
        return Vgg19Features.from_file(path)
    if not allow_random_features:
        raise ValueError(
            "the perceptual loss needs VGG19 weights and got no path: give torchvision's vgg19 state dict (.pth or "
            ".safetensors) with --losses.vgg19, or pass --allow-random-features to train with random features instead "
            "(worse results)"
        )
    logger.warning("no VGG19 weights: the perceptual loss uses random features, as asked")
    return Vgg19Features.random_features(width=width)
