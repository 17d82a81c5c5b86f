"""Steps that are lost to a NaN: their batches are kept and told, and many in a row end the run."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from training.checkpoints import CheckpointFolder
from training.data import Batch
from training.distributed import Process

_log = logging.getLogger(__name__)
MAX_IN_A_ROW = 10
"""Lost steps, one after the other, that end a run: one batch may overflow, but not each."""
MAX_BATCHES = 10
"""Batches of lost steps that each rank writes, for each start of a run; those that end it are further ones."""


class NonFiniteError(RuntimeError):
    """Losses or gradients are NaN or infinite again and again; the message says where a batch lies."""


class LostSteps:
    """What to do about steps whose losses or gradients are not finite. `Stage.training_step` leaves the weights alone
    in them, so a run passes over them like over a damaged sample."""

    def __init__(self, output: Path, process: Process) -> None:
        self._output, self._process = output, process
        self._num = self._num_in_a_row = 0

    def note(self, batch: Batch, losses: Mapping[str, float], folder: CheckpointFolder, *, is_lost: bool) -> None:
        """Take in one step.

        The state after too many is not saved: the step before them, finite as it was, may have broken the weights, and
        the run would resume from there. `folder` has earlier ones.

        Raises:
            NonFiniteError: too many were lost in a row.
        """
        if not is_lost:
            self._num_in_a_row = 0
            return
        self._num, self._num_in_a_row = self._num + 1, self._num_in_a_row + 1
        is_end = self._num_in_a_row == MAX_IN_A_ROW
        where = "its batch is not kept"
        if self._num <= MAX_BATCHES or is_end:
            where = save_batch(batch, losses, self._output, self._process)
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        what = f"{', '.join(bad)} became NaN or infinite" if bad else "another rank's loss became NaN or infinite"
        clips = ", ".join(sorted(set(_parts(batch)[1].get("source.clip_ids", []))))
        what = f"{what} after {batch.position} images (clips {clips})"
        if is_end:
            folder.finish()
            checkpoint = folder.newest_name()
            resume = f"the run resumes from {checkpoint}" if checkpoint else "no checkpoint was written before"
            flag = " (with --allow-other-recipe)" if checkpoint else ""
            raise NonFiniteError(
                f"{what}, as in each of the last {MAX_IN_A_ROW} steps; {where}; {resume}. Lower the learning rate or "
                f"optimizer.max_gradient_norm{flag}, or use float32, or remove the clip, and run again"
            )
        _log.warning("step lost: %s; %s", what, where)


def save_batch(batch: Batch, losses: Mapping[str, float], output: Path, process: Process) -> str:
    """Write this rank's batch, and return what to tell."""
    path = output / f"nonfinite-{batch.position}-rank{process.rank}.safetensors"
    tensors, labels = _parts(batch)
    labels["losses"] = {name: repr(value) for name, value in losses.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", "labels": json.dumps(labels)})
    except OSError as error:
        return f"this rank's batch could not be written to {path} ({error})"
    return f"this rank's batch is in {path}"


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
