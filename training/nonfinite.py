"""What a run that diverged leaves behind: the batch, and one clear message."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from training.data import Batch
from training.distributed import Process


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the message says where the batch lies."""


def save_batch(
    batch: Batch, losses: Mapping[str, float], output: Path, process: Process, checkpoint: str | None
) -> str:
    """Write this rank's batch, and return what to tell. The weights of this moment are not saved: they are spoilt."""
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    path = output / f"nonfinite-{batch.position}-rank{process.rank}.safetensors"
    tensors, labels = _parts(batch)
    labels["losses"] = {name: repr(value) for name, value in losses.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", "labels": json.dumps(labels)})
        where = f"this rank's batch is in {path}"
    except OSError as error:
        where = f"this rank's batch could not be written to {path} ({error})"
    clips = ", ".join(sorted(set(labels.get("source.clip_ids", []))))
    what = f"{', '.join(bad)} became NaN or infinite" if bad else "another rank's loss became NaN or infinite"
    resume = f"the run resumes from {checkpoint}" if checkpoint else "no checkpoint was written before"
    flag = " (with --allow-other-recipe)" if checkpoint else ""
    return (
        f"{what} after {batch.position} images (clips {clips}); {where}; {resume}. "
        f"Lower the learning rate or optimizer.max_gradient_norm{flag}, or use float32, or remove the clip, and run "
        "again"
    )


def _parts(value: Any, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and other fields of nested dataclasses, by dotted name."""
    tensors, others = {}, {}
    for field in dataclasses.fields(value):
        name, content = f"{prefix}{field.name}", getattr(value, field.name)
        if dataclasses.is_dataclass(content):
            inner = _parts(content, f"{name}.")
            tensors.update(inner[0])
            others.update(inner[1])
        elif isinstance(content, Tensor):
            tensors[name] = content.detach().cpu().contiguous()
        else:
            others[name] = content
    return tensors, others
