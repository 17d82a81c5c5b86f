"""The whole model: seven networks, read from and written to released checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoint import State, load_checkpoint, read_config, save_checkpoint
from model.config import ModelConfig
from model.networks.appearance import AppearanceExtractor
from model.networks.generator import SpadeGenerator
from model.networks.motion import MotionExtractor
from model.networks.retargeting import make_retarget_eye, make_retarget_lip, make_stitching
from model.networks.warping import WarpingNetwork


def _float32(state: State) -> State:
    """Weights of half precision in the precision of the networks; others are the same tensors."""
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


class LivePortrait(nn.Module):
    """F, M, W, G, S, R_eyes, R_lip: `appearance, motion, warping, generator, stitching, retarget_eye, retarget_lip`.

    Build it with `from_pretrained` or `untrained`; both give evaluation mode on the CPU in float32.
    """

    NETWORKS = ("appearance", "motion", "warping", "generator", "stitching", "retarget_eye", "retarget_lip")

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.trained = False
        self.appearance = AppearanceExtractor(self.config)
        self.motion = MotionExtractor(self.config)
        self.warping = WarpingNetwork(self.config)
        self.generator = SpadeGenerator(self.config)
        self.stitching = make_stitching(self.config)
        self.retarget_eye = make_retarget_eye(self.config)
        self.retarget_lip = make_retarget_lip(self.config)

    def networks(self) -> dict[str, nn.Module]:
        """The seven networks by name."""
        return {name: getattr(self, name) for name in self.NETWORKS}

    @classmethod
    def from_pretrained(cls, path: str | Path, config: ModelConfig | None = None) -> LivePortrait:
        """Load a folder of released files or one `.safetensors`; all seven networks must be there and fit exactly.

        config: sizes of the networks; None takes those that lie with the weights, else the published ones.

        Raises FileNotFoundError or ValueError (`model.checkpoint.CheckpointError`) with what is missing or differs.
        """
        portrait = cls._on_meta(config or read_config(path))
        states = load_checkpoint(path)
        states.require_match(portrait)
        for name, network in portrait.networks().items():
            network.load_state_dict(_float32(states.networks[name]), assign=True)
        portrait.trained = True
        return portrait.eval().requires_grad_(False)

    @classmethod
    def untrained(cls, seed: int = 0, config: ModelConfig | None = None) -> LivePortrait:
        """Random weights, the same for the same seed. S, R_eyes and R_lip correct nothing. `trained` is False."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            portrait = cls(config)
        for name in ("stitching", "retarget_eye", "retarget_lip"):
            getattr(portrait, name).start_at_zero()
        return portrait.eval()

    @classmethod
    def _on_meta(cls, config: ModelConfig) -> LivePortrait:
        """Shapes without storage: a checkpoint's own tensors are adopted, nothing is initialised in vain."""
        with torch.device("meta"):
            return cls(config)

    def save(self, path: str | Path) -> None:
        """Write the released layout: a folder of `.pth` files, or one file if `path` ends in `.safetensors`."""
        save_checkpoint(self, path)

    def forward(self, source: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """Picture [N, 3, image_size, image_size] and key points [N, K, 3] -> picture [N, 3, output_size, output_size]:
        G(W(F(source), x_s, x_d))."""
        warped = self.warping(self.appearance(source), kp_driving=kp_driving, kp_source=kp_source)
        return self.generator(warped.feature)
