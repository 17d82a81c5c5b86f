"""The networks behind one small interface: uint8 frames in, motions and uint8 frames out."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from model.keypoints import Motion
from model.networks import LivePortrait

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class InferenceEngine:
    """Runs M, F, W and G on one device, in batches.

    Key points leave and enter in float32 whatever the engine's dtype: they steer the picture and cost nothing.
    """

    def __init__(
        self,
        portrait: LivePortrait,
        *,
        device: str | torch.device = "cpu",
        dtype: DtypeName = "auto",
        optimize: bool = True,
    ) -> None:
        self.portrait = portrait
        self.config = portrait.config
        self.device = torch.device(device)
        self.dtype = DTYPES["float32"]
        self.portrait.to(self.device)

    @torch.inference_mode()
    def extract_motion(self, images: np.ndarray | Tensor) -> Motion:
        """Motion of N pictures (see `prepare`), float32 on the CPU."""
        return Motion.from_heads(self.portrait.motion(self.prepare(images))).to("cpu")

    @torch.inference_mode()
    def extract_appearance(self, images: np.ndarray | Tensor) -> Tensor:
        """Appearance volumes [N, C, D, H, W] of N pictures, on the engine's device; for `render`."""
        return self.portrait.appearance(self.prepare(images))

    @torch.inference_mode()
    def render(self, volume: Tensor, x_s: Tensor, x_d: Tensor) -> np.ndarray:
        """Frames uint8 [N, S, S, 3] (RGB) from key points x_d [N, K, 3].

        volume and x_s have a first dimension of N, or of 1 for a still source.
        """
        num_frames = len(x_d)
        x_s, x_d = x_s.to(self.device).expand(num_frames, -1, -1), x_d.to(self.device)
        warped = self.portrait.warping(volume.expand(num_frames, -1, -1, -1, -1), kp_driving=x_d, kp_source=x_s)
        image = self.portrait.generator(warped.feature)
        return (image.float() * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def prepare(self, images: np.ndarray | Tensor) -> Tensor:
        """Network input [N, 3, S, S] in [0, 1].

        images: uint8 [N, H, W, 3] (RGB, square crops of any size, resized by area), or float [N, 3, S, S], taken as is.
        """
        size = self.config.image_size
        if isinstance(images, Tensor):
            if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
                raise ValueError(f"expected a float tensor [N, 3, {size}, {size}], got {images.shape = }")
            return images.to(self.device, torch.float32)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or images.shape[1] != images.shape[2]:
            raise ValueError(f"expected square uint8 crops [N, S, S, 3], got {images.shape = }, {images.dtype = }")
        if images.shape[1] != size:
            images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images])
        tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return tensor.permute(0, 3, 1, 2).float().div_(255)
