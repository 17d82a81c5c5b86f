"""Which model was evaluated: what a name cannot say, because files move and runs go on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.export import checkpoint_folder, is_run

if TYPE_CHECKING:
    from torch import nn

    from model.networks import LivePortrait


def about_weights(path: Path, portrait: LivePortrait) -> dict[str, Any]:
    """Name, checkpoint of a run, SHA-256 and sizes of a model that was loaded from `path`."""
    return {
        "name": path.resolve().name,
        "checkpoint": checkpoint_folder(path).name if is_run(path) else None,
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
