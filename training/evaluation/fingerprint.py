"""Which model was evaluated: what a name cannot say, because files move and runs go on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.checkpoints import read_run
from training.export import checkpoint_folder, is_run

if TYPE_CHECKING:
    from torch import nn

    from model.networks import LivePortrait


def about_weights(path: Path, portrait: LivePortrait, *, average: bool = True, which: str = "best") -> dict[str, Any]:
    """Name, checkpoint of a run and kind of its weights, SHA-256 and sizes of a model that was loaded from `path`.

    average, which: as `load_portrait` was told.
    """
    checkpoint = checkpoint_folder(path, which) if is_run(path) else None
    kind = None
    if checkpoint is not None:
        has_average = read_run(checkpoint)["recipe"].get("optimizer.ema_half_life_images", 0) > 0
        kind = "average" if average and has_average else "last"
    return {
        "name": path.resolve().name,
        "checkpoint": checkpoint.name if checkpoint else None,
        "kind": kind,
        "sha256": weights_hash(portrait),
        "model": dataclasses.asdict(portrait.config),
    }


def weights_hash(portrait: nn.Module) -> str:
    """SHA-256 of all tensors by name, shape and value: the same whatever file or folder they came from."""
    digest = hashlib.sha256()
    for key, value in sorted(portrait.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key}{list(value.shape)}{value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
