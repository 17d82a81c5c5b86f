"""L_P,cascade: distance in VGG19 features of global, face and lip pictures, each a pyramid of four scales."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.blocks import without_autocast
from training.networks.vgg import MIN_SIZE_PX, Vgg19Features

NUM_SCALES = 4


def halve(image: Tensor) -> Tensor:
    """Half the size without aliasing: binomial filter (1 3 3 1) in both directions, then every second pixel.

    float [B, C, H, W] -> [B, C, H // 2, W // 2]; output pixels lie in the middle of 2 x 2 input pixels.
    """
    taps = image.new_full((4,), 3 / 8)  # made where it is needed: a list of numbers would wait for the device
    taps[::3].fill_(1 / 8)
    kernel = torch.outer(taps, taps).expand(image.shape[1], 1, 4, 4)
    padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernel, stride=2, groups=image.shape[1])


def pyramid(image: Tensor) -> list[Tensor]:
    """The picture and its halvings, without those under 16 pixels, which VGG19 cannot see."""
    levels = [image]
    while len(levels) < NUM_SCALES and min(levels[-1].shape[-2:]) // 2 >= MIN_SIZE_PX:
        levels.append(halve(levels[-1]))
    return levels


def mean_difference(one: Tensor, other: Tensor) -> Tensor:
    """Mean of |one - other|, a float32 scalar; the differences are in the tensors' own type, their sum is not."""
    with without_autocast(one.device):
        return torch.linalg.vector_norm(one - other, ord=1, dtype=torch.float32) / one.numel()


class CascadedPerceptualLoss(nn.Module):
    """Distance of predicted and target pictures in VGG19 features, by region (face-vid2vid's L_P on each).

    For a region: sum over up to four scales and five layers of mean |VGG(prediction) - VGG(target)|, the mean over
    batch, channels and pixels; all layers weigh the same (face-vid2vid puts its 10 in front of the whole).
    Pictures of 128 have four scales, of 64 three, of 32 two: scales that VGG19 cannot see are left out of the sum.

    By default the network computes in float32 also under autocast; `autocast_features` lets it follow autocast, and the
    differences with it. The means are float32 either way.
    """

    def __init__(self, network: Vgg19Features, *, autocast_features: bool = False) -> None:
        super().__init__()
        self.network = network
        self.autocast_features = autocast_features

    def forward(self, prediction: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """prediction, target: region -> float [B, 3, H, W] in [0, 1], as `regions.cascade` gives. Region -> loss."""
        if prediction.keys() != target.keys():
            raise ValueError(
                f"prediction has the regions {[*prediction]}, target has {[*target]}: they must be the same"
            )
        return {region: self.compare(prediction[region], target[region]) for region in prediction}

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of one region, a scalar."""
        if prediction.shape != target.shape or min(target.shape[-2:]) < MIN_SIZE_PX:
            raise ValueError(
                f"pictures must have one shape of at least {MIN_SIZE_PX} px; "
                f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        with without_autocast(prediction.device):
            predictions = pyramid(prediction.float())
            targets = pyramid(target.detach().float())
        levels = zip(predictions, targets, strict=True)
        return torch.stack([distance for level in levels for distance in self._distances(*level)]).sum()

    def _distances(self, prediction: Tensor, target: Tensor) -> list[Tensor]:
        """Mean difference in each layer, of pictures of one size."""
        with nullcontext() if self.autocast_features else without_autocast(prediction.device):
            with torch.no_grad():
                target_maps = self.network(target)
            maps = self.network(prediction)
        return [mean_difference(mine, other) for mine, other in zip(maps, target_maps, strict=True)]
