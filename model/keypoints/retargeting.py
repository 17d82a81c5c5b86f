"""How S, R_eyes and R_lip are applied to key points (LivePortrait, section 3.3)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class CorrectionNetworks(Protocol):
    """What animation needs of the model: `LivePortrait`, or anything with its three small networks."""

    stitching: nn.Module
    retarget_eye: nn.Module
    retarget_lip: nn.Module


def _call(network: nn.Module, *parts: Tensor) -> Tensor:
    """Run a small network in its own device and dtype; the result is float32 where the key points are."""
    flat = torch.cat([part.flatten(1) for part in parts], dim=1)
    weight = next(network.parameters())
    return network(flat.to(weight.device, weight.dtype)).to(flat.device, torch.float32)


def stitch(networks: CorrectionNetworks, x_s: Tensor, x_d: Tensor) -> Tensor:
    """Driving key points [N, K, 3] moved so that the shoulders of the source stay where they are: [N, K, 3]."""
    delta = _call(networks.stitching, x_s, x_d)
    num_offsets = x_d[0].numel()
    shift = torch.nn.functional.pad(delta[:, None, num_offsets:], (0, 1))
    return x_d + delta[:, :num_offsets].view_as(x_d) + shift


def retarget_eye(networks: CorrectionNetworks, x_s: Tensor, source_open: Tensor, wanted: Tensor) -> Tensor:
    """Offsets [N, K, 3] that bring the source's eyes [N, 2] to the wanted openness [N, 1]."""
    return _call(networks.retarget_eye, x_s, source_open, wanted).view_as(x_s)


def retarget_lip(networks: CorrectionNetworks, x_s: Tensor, source_open: Tensor, wanted: Tensor) -> Tensor:
    """Offsets [N, K, 3] that bring the source's lips [N, 1] to the wanted openness [N, 1]."""
    return _call(networks.retarget_lip, x_s, source_open, wanted).view_as(x_s)
