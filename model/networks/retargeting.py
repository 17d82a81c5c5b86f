"""S, R_eyes and R_lip: small networks that correct driving key points (LivePortrait, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.config import ModelConfig

CONDITION_GAIN = 10.0


class KeypointMlp(nn.Module):
    """Linear layers with ReLU between them, under the released keys `mlp.0, mlp.2, ...`."""

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    def start_at_zero(self, num_conditions: int = 0) -> None:
        """Zero the last layer only, so that training starts at no correction and all layers still learn.

        The last num_conditions inputs are openness, whose spread is a tenth of the key points': their weights in the
        first layer start `CONDITION_GAIN` times as large, or the network would hardly hear what is asked.
        """
        with torch.no_grad():
            self.mlp[-1].weight.zero_()
            self.mlp[-1].bias.zero_()
            if num_conditions:
                self.mlp[0].weight[:, -num_conditions:] *= CONDITION_GAIN


def make_stitching(config: ModelConfig) -> KeypointMlp:
    """S: both sets of key points [N, 6K] -> offsets of the driving ones and a common shift in x, y [N, 3K + 2]."""
    num = config.num_keypoints
    return KeypointMlp(6 * num, config.stitching_channels, 3 * num + 2)


def make_retarget_eye(config: ModelConfig) -> KeypointMlp:
    """R_eyes: source key points, source left and right eye ratio, wanted ratio [N, 3K + 3] -> offsets [N, 3K]."""
    num = config.num_keypoints
    return KeypointMlp(3 * num + 3, config.retarget_eye_channels, 3 * num)


def make_retarget_lip(config: ModelConfig) -> KeypointMlp:
    """R_lip: source key points, source lip ratio, wanted ratio [N, 3K + 2] -> offsets [N, 3K]."""
    num = config.num_keypoints
    return KeypointMlp(3 * num + 2, config.retarget_lip_channels, 3 * num)
