"""Motion templates: the motion of a driving video in a small file, to be used again without the video."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.animation.restricted_pickle import load_restricted_pickle
from model.keypoints import Motion
from model.video import check_writable, complete_or_absent

TEMPLATE_SUFFIXES = (".safetensors", ".pkl")
_FORMAT = "portrait-motion-1"


@dataclass(frozen=True, kw_only=True)
class MotionTemplate:
    """Motion of frames that follow each other at a constant rate."""

    motion: Motion
    fps: Fraction

    def resampled(self, fps: Fraction) -> MotionTemplate:
        """At another rate: frame i holds what the motion is in the middle of [i, i + 1) / fps, as for videos."""
        num_frames = max(1, round(len(self.motion) * fps / self.fps))
        indices = [min((2 * i + 1) * self.fps // (2 * fps), len(self.motion) - 1) for i in range(num_frames)]
        return MotionTemplate(motion=self.motion[indices], fps=fps)


def save_template(template: MotionTemplate, path: str | Path) -> None:
    """Write a `.safetensors` template; it appears under its name when complete."""
    from safetensors.torch import save

    path = Path(path)
    check_template_destination(path)
    tensors = {name: value.contiguous().cpu() for name, value in template.motion.as_dict().items()}
    content = save(tensors, metadata={"format": _FORMAT, "fps": str(template.fps)})
    with complete_or_absent(path) as partial:
        partial.write_bytes(content)


def check_template_destination(path: str | Path) -> None:
    """ValueError where `save_template` cannot write."""
    if Path(path).suffix.lower() != ".safetensors":
        raise ValueError(f"cannot write the template {path}: expected a name that ends in .safetensors")
    check_writable(path)


def load_template(path: str | Path) -> MotionTemplate:
    """Read our `.safetensors` or a released `.pkl` template. Raises ValueError; a `.pkl` can run nothing."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such motion template")
    if path.suffix.lower() == ".pkl":
        template = _from_released(load_restricted_pickle(path), path)
    elif path.suffix.lower() == ".safetensors":
        template = _from_safetensors(path)
    else:
        raise ValueError(f"{path} is not a motion template: expected .safetensors or .pkl")
    for name, value in template.motion.as_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds values that are not finite")
    return template


def _from_safetensors(path: Path) -> MotionTemplate:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            fields = {name: file.get_tensor(name) for name in file.keys()} if metadata.get("format") == _FORMAT else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error
    if not fields:
        raise ValueError(f"{path} is a safetensors file, but not a motion template (is it a checkpoint?)")
    try:
        return MotionTemplate(motion=_checked(Motion.from_dict(fields)), fps=_rate(metadata.get("fps", "")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_released(content: Any, path: Path) -> MotionTemplate:
    """The published tool's template: a list of per-frame dicts with rotation matrices, and openness lists."""
    try:
        frames = content["motion"]
        rotation = np.stack([_matrix(frame.get("R", frame.get("R_d"))) for frame in frames])
        fields = {name: np.concatenate([frame[name] for frame in frames]) for name in ("scale", "t", "exp")}
        # Earlier templates hold no canonical key points; animation takes those of the source.
        fields["kp"] = np.concatenate([frame.get("kp", np.zeros_like(frame["exp"])) for frame in frames])
        pitch, yaw, roll = euler_angles_deg(rotation)
        eyes = content.get("c_eyes_lst") or content.get("c_d_eyes_lst")
        lips = content.get("c_lip_lst") or content.get("c_d_lip_lst")
        if eyes and lips and len(eyes) == len(lips) == len(frames):
            fields["eye_open"] = np.concatenate([np.reshape(eye, (1, 2)) for eye in eyes])
            fields["lip_open"] = np.concatenate([np.reshape(lip, (1, 1)) for lip in lips])
        fps = _rate(str(content.get("output_fps", 25)))
        motion = Motion.from_dict({"pitch": pitch, "yaw": yaw, "roll": roll, **fields})
        return MotionTemplate(motion=_checked(motion), fps=fps)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a motion template of the published tool ({error!r})") from error


def _matrix(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64).reshape(3, 3)


def euler_angles_deg(rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitch, yaw, roll, each [N, 1] in degrees, of R = (Rz Ry Rx)^T [N, 3, 3]: the inverse of `rotation_matrix`."""
    pitch = np.arctan2(rotation[:, 1, 2], rotation[:, 2, 2])
    yaw = -np.arcsin(np.clip(rotation[:, 0, 2], -1, 1))
    roll = np.arctan2(rotation[:, 0, 1], rotation[:, 0, 0])
    return tuple(np.degrees(angle)[:, None] for angle in (pitch, yaw, roll))


def _rate(text: str) -> Fraction:
    try:
        fps = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if not 0 < fps <= 1000:
        raise ValueError(f"frame rate {text!r} makes no sense")
    return fps


def _checked(motion: Motion) -> Motion:
    if len(motion) == 0:
        raise ValueError("it holds no frames")
    return motion
