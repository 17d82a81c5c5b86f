"""Steps that are lost to a NaN: their batches are kept and told, and many in a row end the run."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from training.checkpoints import CheckpointFolder, name_at
from training.data import Batch
from training.distributed import Process
from training.stage import NORMS

_log = logging.getLogger(__name__)
MAX_IN_A_ROW = 10
"""Lost steps, one after the other, that end a run: one batch may overflow, but not each."""
MAX_BATCHES = 10
"""Batches of lost steps that each rank writes, for each start of a run; those that end it are further ones."""
_MAX_CAUSES = 4  # ranks whose clips are named


class NonFiniteError(RuntimeError):
    """Losses or gradients are NaN or infinite again and again; the message says where a batch lies."""


class LostSteps:
    """What to do about steps whose losses or gradients are not finite. `Stage.training_step` leaves the weights alone
    in them, so a run passes over them like over a damaged sample."""

    def __init__(self, output: Path, process: Process) -> None:
        self._output, self._process = output, process
        self._num = 0
        self.num_in_a_row = 0
        """How many the last steps are."""

    @property
    def may_be_broken(self) -> bool:
        """Whether the state is not to be saved: the step before the lost ones, finite as it was, may have broken the
        weights, and the run would resume from there. A single one is more likely lost to its batch."""
        return self.num_in_a_row > 1

    def note(
        self, batch: Batch, losses: Mapping[str, float], folder: CheckpointFolder, *, good_until: int, is_lost: bool
    ) -> None:
        """Take in one step. good_until: images after the last good one before it, or at the start.

        Raises:
            NonFiniteError: too many were lost in a row.
        """
        if not is_lost:
            self.num_in_a_row = 0
            return
        self._num, self.num_in_a_row = self._num + 1, self.num_in_a_row + 1
        is_end = self.num_in_a_row == MAX_IN_A_ROW
        where = "the batch is not kept"
        if self._num <= MAX_BATCHES or is_end:
            where = save_batch(batch, losses, self._output, self._process)
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        clips = sorted({*batch.source.clip_ids, *batch.driving.clip_ids})
        what = describe(self._process.gather(_OfRank(bad, clips, where)), batch.position)
        if is_end:
            raise NonFiniteError(f"{what}, as in each of the last {MAX_IN_A_ROW} steps; {advice(folder, good_until)}")
        _log.warning("step lost: %s", what)

    def end(self, folder: CheckpointFolder, *, good_until: int) -> None:
        """Take in a run's end. Raises NonFiniteError where its weights may be broken."""
        if self.may_be_broken:
            raise NonFiniteError(
                f"the last {self.num_in_a_row} steps were lost, and the one before them may have broken the weights: "
                f"they are not saved; {advice(folder, good_until)}"
            )


def advice(folder: CheckpointFolder, good_until: int) -> str:
    """Where a run goes on that has diverged, and what to do before. good_until: images after its last good step."""
    folder.finish()
    names = folder.names()
    is_suspect = names[-1:] == [name_at(good_until)]  # it is of the step before the lost ones
    left = names[:-1] if is_suspect else names
    if is_suspect:
        start = (
            f"no step after {names[-1]} was good, so its weights may be broken: remove {folder.root / names[-1]} "
            f"{f'to go on from {left[-1]}' if left else 'to begin anew'}"
        )
    else:
        start = f"the run resumes from {left[-1]}" if left else "no checkpoint was written before"
    flag = " (with --allow-other-recipe)" if left else ""
    return (
        f"{start}. Lower the learning rate or optimizer.max_gradient_norm{flag}, or use float32, or remove the clip, "
        "and run again"
    )


class _OfRank(NamedTuple):
    """What one rank tells the others of a lost step."""

    bad: list[str]
    """What of its losses, and of the norms that all have, is not finite."""
    clips: list[str]
    where: str
    """In words, where its batch is."""

    @property
    def is_cause(self) -> bool:
        """Whether losses of its own are bad: gradients are averaged, so that all ranks have the norms of a NaN."""
        return any(not name.startswith(NORMS) for name in self.bad)


def describe(ranks: Sequence[_OfRank], images: int) -> str:
    """What was not finite in a step, and the pairs in which it was, as far as ranks tell them apart."""
    causes = [(number, rank) for number, rank in enumerate(ranks) if rank.is_cause]
    if len(ranks) == 1:
        names, places = ranks[0].bad, f"(clips {', '.join(ranks[0].clips)}; {ranks[0].where})"
    elif len(causes) in (0, len(ranks)):
        names, places = ranks[0].bad, f"in all ranks (in rank 0 {ranks[0].where})"
    else:
        names = [name for _, rank in causes for name in rank.bad if not name.startswith(NORMS)]
        places = " and ".join(
            f"in rank {number} (clips {', '.join(rank.clips)}; {rank.where})" for number, rank in causes[:_MAX_CAUSES]
        )
    return f"{', '.join(dict.fromkeys(names))} became NaN or infinite after {images} images {places}"


def save_batch(batch: Batch, losses: Mapping[str, float], output: Path, process: Process) -> str:
    """Write this rank's batch, and return what to tell."""
    path = output / f"nonfinite-{batch.position}-rank{process.rank}.safetensors"
    tensors, labels = _parts(batch)
    labels["losses"] = {name: repr(value) for name, value in losses.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", "labels": json.dumps(labels)})
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        with suppress(OSError):
            path.unlink(missing_ok=True)  # the part that there was room for
        return f"the batch could not be written to {path} ({error})"
    return f"the batch is in {path}"


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
