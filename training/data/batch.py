"""What the loader hands over, pairs of frames as uint8 with their labels, and what the networks see of them.

Shapes: B pairs, S side of a model's input in pixels. Poses are (pitch, yaw, roll) in degrees as the manifests define
them; unknown angles are NaN, which losses mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class _Movable:
    """Moves all tensors of a dataclass, and of dataclasses in it, together; CPU tensors named in `stays` stay."""

    stays: frozenset[str] = frozenset()

    def to(self, device: torch.device | str) -> Self:
        """The same on another device; asynchronous from pinned memory."""
        return self._map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same in page-locked memory; the loader calls it."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, change: Any) -> Self:
        values: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, _Movable):
                values[item.name] = value._map(change)
            elif isinstance(value, Tensor) and item.name not in self.stays:
                values[item.name] = change(value)
        return replace(self, **values)  # type: ignore[type-var]


@dataclass(kw_only=True, slots=True)
class Frames(_Movable):
    """One side of the pairs of a batch."""

    images: Tensor
    """uint8 [B, 3, H, W], RGB, side as in the shards or halved (`make_loader`); channels last in memory, as the JPEG
    decoder writes them."""
    landmarks: Tensor
    """float32 [B, 68, 2]: iBUG points x, y in pixels of `images`, integers at pixel centres."""
    pose: Tensor
    """float32 [B, 3]: pitch, yaw, roll in degrees."""
    clip_ids: list[str]
    frames: list[int]
    """Index of each frame in its clip."""
    identities: list[str]


@dataclass(kw_only=True, slots=True)
class Batch(_Movable):
    """Pairs of one rank for one step."""

    source: Frames
    driving: Frames
    is_still: Tensor
    """bool [B]: source and driving are the same picture of a clip of one frame."""
    indices: Tensor
    """int64 [B], always on the CPU: global sample index of each pair, from which its augmentation is drawn."""
    still_rows: list[int]
    """Where `is_still` holds, known without asking the device."""
    position: int
    """Pairs that all ranks have consumed once this batch is: where `make_loader` goes on."""
    num_skipped: int = 0
    """Damaged samples that were replaced by others while this batch was read."""
    skipped: list[str] = field(default_factory=list)
    """Their names and what was wrong."""

    stays = frozenset({"indices"})

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(kw_only=True, slots=True)
class PreparedFrames(_Movable):
    """One side of a batch as the networks and losses take it: float32 on the device."""

    image: Tensor
    """[B, 3, S, S] in [0, 1]: input of F and M."""
    target: Tensor
    """[B, 3, 2S, 2S] in [0, 1]: what G is to make; `image` is its 2 x 2 average."""
    landmarks: Tensor
    """[B, 68, 2] in [-1, 1], x right, y down; -1 and 1 are the outer edges of the picture (align_corners=False)."""
    pose: Tensor
    """[B, 3]: pitch, yaw, roll in degrees."""


@dataclass(kw_only=True, slots=True)
class PreparedBatch(_Movable):
    """A batch after augmentation."""

    source: PreparedFrames
    driving: PreparedFrames
    is_still: Tensor
    """bool [B]."""

    def __len__(self) -> int:
        return len(self.is_still)

    def parts(self, num: int) -> list[Self]:
        """The pairs in `num` batches of equal size, in order."""
        size = len(self) // num
        return [self._map(lambda value, start=part * size: value[start : start + size]) for part in range(num)]
