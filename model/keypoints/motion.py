"""The motion of frames as M sees it, and the way from canonical to posed key points (LivePortrait, equation 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

DEGREES_PER_BIN = 3.0
FIRST_BIN_DEG = -97.5


def bins_to_degrees(logits: Tensor) -> Tensor:
    """Expected angle of bin logits [..., 66]: [...], degrees."""
    probability = torch.softmax(logits.float(), dim=-1)
    index = torch.arange(logits.shape[-1], dtype=torch.float32, device=logits.device)
    return (probability * index).sum(dim=-1) * DEGREES_PER_BIN + FIRST_BIN_DEG


def rotation_matrix(pitch: Tensor, yaw: Tensor, roll: Tensor) -> Tensor:
    """R = (Rz Ry Rx)^T of Euler angles in degrees, each [N] or [N, 1]: [N, 3, 3], for row vectors (x R)."""
    x, y, z = (torch.deg2rad(angle.reshape(-1)) for angle in (pitch, yaw, roll))
    (sx, cx), (sy, cy), (sz, cz) = ((torch.sin(angle), torch.cos(angle)) for angle in (x, y, z))
    columns = [
        torch.stack([cz * cy, sz * cy, -sy], dim=-1),
        torch.stack([cz * sy * sx - sz * cx, sz * sy * sx + cz * cx, cy * sx], dim=-1),
        torch.stack([cz * sy * cx + sz * sx, sz * sy * cx - cz * sx, cy * cx], dim=-1),
    ]
    return torch.stack(columns, dim=-2)  # the columns of Rz Ry Rx, as rows


def transform_keypoints(canonical: Tensor, rotation: Tensor, exp: Tensor, scale: Tensor, translation: Tensor) -> Tensor:
    """x = s (x_c R + exp) + t with t_z = 0.

    canonical, exp: [N, K, 3]; rotation: [N, 3, 3]; scale: [N, 1]; translation: [N, 3] -> [N, K, 3].
    """
    in_plane = functional.pad(translation[:, :2], (0, 1))
    return scale[:, :, None] * (canonical @ rotation + exp) + in_plane[:, None, :]


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Motion of N frames: float32 tensors that share their first dimension."""

    pitch: Tensor
    """[N, 1], degrees."""
    yaw: Tensor
    """[N, 1], degrees."""
    roll: Tensor
    """[N, 1], degrees."""
    t: Tensor
    """Translation [N, 3]; z is ignored."""
    exp: Tensor
    """Expression: offsets of the canonical key points [N, K, 3]."""
    scale: Tensor
    """[N, 1]."""
    kp: Tensor
    """Canonical key points [N, K, 3]."""
    eye_open: Tensor | None = None
    """Openness of the eyes (left in the image, right) from landmarks [N, 2]; None where no landmarks are known."""
    lip_open: Tensor | None = None
    """Lip openness from landmarks [N, 1]; None where no landmarks are known."""

    def __post_init__(self) -> None:
        num_frames = self.pitch.shape[0]
        widths = {
            "pitch": (1,),
            "yaw": (1,),
            "roll": (1,),
            "t": (3,),
            "scale": (1,),
            "eye_open": (2,),
            "lip_open": (1,),
        }
        for name, value in self._present().items():
            expected = (num_frames, *widths.get(name, (self.kp.shape[-2], 3)))
            if tuple(value.shape) != expected:
                raise ValueError(f"motion field {name!r} has shape {tuple(value.shape)}, expected {expected}")

    @classmethod
    def from_heads(cls, heads: Mapping[str, Tensor]) -> Motion:
        """From M's raw heads: bins to degrees, flat key points to [N, K, 3]."""
        angles = {name: bins_to_degrees(heads[name])[:, None] for name in ("pitch", "yaw", "roll")}
        points = {name: heads[name].float().unflatten(-1, (-1, 3)) for name in ("exp", "kp")}
        return cls(**angles, **points, t=heads["t"].float(), scale=heads["scale"].float())

    @classmethod
    def from_dict(cls, fields: Mapping[str, Tensor | np.ndarray]) -> Motion:
        """From arrays by field name, as `as_dict` gives them. ValueError names missing and unknown fields."""
        known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(cls)}
        missing = [name for name, required in known.items() if required and name not in fields]
        unknown = [name for name in fields if name not in known]
        if missing or unknown:
            raise ValueError(f"a motion needs the fields {[*known]}: missing {missing}, unknown {unknown}")
        return cls(**{name: torch.as_tensor(value, dtype=torch.float32) for name, value in fields.items()})

    @classmethod
    def cat(cls, motions: Sequence[Motion]) -> Motion:
        """Frames of several motions in a row. Openness is kept where all of them have it."""
        names = [name for name in motions[0]._present() if all(getattr(m, name) is not None for m in motions)]
        return cls(**{name: torch.cat([getattr(motion, name) for motion in motions]) for name in names})

    def _present(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def as_dict(self) -> dict[str, Tensor]:
        """Tensors by field name, without the absent ones."""
        return self._present()

    def __len__(self) -> int:
        return self.pitch.shape[0]

    def __getitem__(self, index: int | slice | list[int]) -> Motion:
        """One frame (still with a first dimension of 1), a range of frames, or those of a list."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"frame {index} of a motion of {len(self)} frames")
            index = slice(index, index + 1 or None)
        return Motion(**{name: value[index] for name, value in self._present().items()})

    def expand(self, num_frames: int) -> Motion:
        """One frame repeated (a view)."""
        return Motion(**{name: value.expand(num_frames, *value.shape[1:]) for name, value in self._present().items()})

    def replace(self, **fields: Tensor | None) -> Motion:
        return dataclasses.replace(self, **fields)

    def to(self, device: torch.device | str) -> Motion:
        return Motion(**{name: value.to(device) for name, value in self._present().items()})

    @property
    def angles(self) -> Tensor:
        """Pitch, yaw and roll [N, 3], degrees."""
        return torch.cat([self.pitch, self.yaw, self.roll], dim=1)

    @property
    def rotation(self) -> Tensor:
        """[N, 3, 3], for row vectors."""
        return rotation_matrix(self.pitch, self.yaw, self.roll)

    def keypoints(self) -> Tensor:
        """Posed key points [N, K, 3]: x_s of a source."""
        return transform_keypoints(self.kp, self.rotation, self.exp, self.scale, self.t)
