"""The networks behind one small interface: uint8 frames in, motions and uint8 frames out."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from model.inference.appearance import FastAppearanceExtractor
from model.inference.generator import FastGenerator
from model.inference.motion import FastMotionExtractor
from model.inference.warping import FastWarping
from model.keypoints import Motion
from model.networks import LivePortrait

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """The named dtype; `auto` is float16 on CUDA, bfloat16 on CPUs that multiply it in hardware, float32 elsewhere."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}; got {name!r}")
    if device.type == "cuda":
        return torch.float16
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if device.type == "cpu" and has_bf16 else torch.float32


def choose_device(name: str | torch.device) -> torch.device:
    """The named device; `auto` is cuda where there is one. ValueError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown: expected cpu, cuda or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: expected cpu, cuda or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device} was asked for, but this PyTorch sees no CUDA device; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} was asked for, but there are only {torch.cuda.device_count()} CUDA devices")
    return device


class InferenceEngine:
    """Runs M, F, W and G on one device, in batches.

    Key points enter and leave in float32 whatever the dtype: they steer the picture and cost nothing. The optimised
    path computes the same functions as the plain modules, from weights folded once when the engine is built.
    """

    def __init__(
        self,
        portrait: LivePortrait,
        *,
        device: str | torch.device = "cpu",
        dtype: DtypeName = "auto",
        optimize: bool = True,
        compile: bool = False,
    ) -> None:
        """optimize: run the folded networks; otherwise the plain modules, all but M under autocast if dtype is not
        float32. M runs in float32 always.

        compile: fuse W and G with `torch.compile` and replay them as CUDA graphs (CUDA only; the first batch takes
        minutes, and sets the batch size: smaller ones are filled up, a larger one compiles anew).
        """
        self.portrait = portrait
        self.config = portrait.config
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.optimize = optimize
        if optimize:
            with torch.no_grad():
                self._motion = FastMotionExtractor(portrait.motion).to(self.device)
                self._appearance = FastAppearanceExtractor(portrait.appearance, self.dtype).to(self.device)
                self._warping = FastWarping(portrait.warping, self.dtype).to(self.device)
                self._generator = FastGenerator(portrait.generator, self.dtype).to(self.device)
        else:
            portrait.to(self.device)
            self._motion, self._appearance = portrait.motion, portrait.appearance
            self._warping, self._generator = portrait.warping, portrait.generator
        self._compiled_batch: int | None = None
        self._decode = self._warp_and_generate
        if compile:
            if self.device.type != "cuda":
                raise ValueError("compile=True is for CUDA devices; on the CPU the folded networks run as they are")
            self._compiled_batch = 0
            self._decode = torch.compile(self._warp_and_generate, mode="reduce-overhead", dynamic=False)

    @property
    def batch_size(self) -> int:
        """Frames for one `render` that use the device well: on the CPU more would only cost memory."""
        return 8 if self.device.type == "cuda" else 1

    @torch.inference_mode()
    def extract_motion(self, images: np.ndarray | Tensor) -> Motion:
        """Motion of N pictures (see `prepare`), float32 on the CPU."""
        return Motion.from_heads(self._motion(self.prepare(images))).to("cpu")

    @torch.inference_mode()
    def extract_appearance(self, images: np.ndarray | Tensor) -> Tensor:
        """Appearance volumes [N, C, D, H, W] of N pictures, float32 on the engine's device; for `render`."""
        with self._autocast():
            return self._appearance(self.prepare(images)).float()

    @torch.inference_mode()
    def render(self, volume: Tensor, x_s: Tensor, x_d: Tensor) -> np.ndarray:
        """Frames uint8 [N, S, S, 3] (RGB) from key points x_d [N, K, 3]; S is the `output_size`.

        volume and x_s have a first dimension of N, or of 1 for a still source.
        """
        image = self.decode(volume.to(self.device), x_s.to(self.device), x_d.to(self.device))
        return image.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    @torch.inference_mode()
    def decode(self, volume: Tensor, x_s: Tensor, x_d: Tensor) -> Tensor:
        """G(W(volume, x_s, x_d)) as float32 [N, 3, S, S] in (0, 1), on the engine's device; S is the `output_size`."""
        num_frames = len(x_d)
        if self._compiled_batch is None:
            return self._decode(volume, x_s, x_d)
        # A compiled graph has one batch size: the last frames of a video are filled up.
        self._compiled_batch = max(self._compiled_batch, num_frames)
        missing = self._compiled_batch - num_frames
        volume, x_s, x_d = (
            torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])
            if missing and len(part) == num_frames
            else part
            for part in (volume.expand(num_frames, -1, -1, -1, -1), x_s.expand(num_frames, -1, -1), x_d)
        )
        return self._decode(volume, x_s, x_d)[:num_frames].clone()  # the graph reuses its output

    def _warp_and_generate(self, volume: Tensor, x_s: Tensor, x_d: Tensor) -> Tensor:
        with self._autocast():
            if not self.optimize:
                volume, x_s = volume.expand(len(x_d), -1, -1, -1, -1), x_s.expand(len(x_d), -1, -1)
            warped = self._warping(volume, kp_driving=x_d, kp_source=x_s)
            return self._generator(warped.feature).float()

    def _autocast(self) -> torch.autocast:
        """The plain modules run in half precision under autocast; the folded ones hold their own dtype."""
        enabled = not self.optimize and self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if enabled else None, enabled=enabled)

    def prepare(self, images: np.ndarray | Tensor) -> Tensor:
        """Network input [N, 3, S, S] in [0, 1]; S is the `image_size`.

        images: uint8 [N, H, H, 3] (RGB, square crops of any size, resized by area), or float [N, 3, S, S], taken as is.
        """
        size = self.config.image_size
        if isinstance(images, Tensor):
            if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
                raise ValueError(f"expected a float tensor [N, 3, {size}, {size}], got {images.shape = }")
            return images.to(self.device, torch.float32)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or images.shape[1] != images.shape[2]:
            raise ValueError(f"expected square uint8 crops [N, H, H, 3], got {images.shape = }, {images.dtype = }")
        if images.shape[1] != size:
            images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images])
        tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return tensor.permute(0, 3, 1, 2).float().div_(255)
