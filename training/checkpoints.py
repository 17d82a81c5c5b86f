"""Checkpoints of a run: asynchronous, complete or not there at all, and readable without running code from a file.

    OUTPUT/checkpoints/images-0000120000/   model-00001-of-00001.safetensors  networks, averages, optimisers
                                            model.safetensors.index.json      which file holds a tensor
                                            run.json                          images, step, recipe, best figure,
                                                                              SHA-256 of the files above
    OUTPUT/checkpoints/best                 name of a folder; the latest is the last by name

`torch.distributed.checkpoint` writes safetensors (its own format keeps an index in a pickle). All state is the same on
all ranks, so the first rank writes it, in a thread, from a copy. A folder gets its name only when it is complete and on
the disk; `best` is replaced after that, and older folders are removed last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from manifests.store import write_bytes_atomically
from training.recipe import Recipe, flatten
from training.stage import Stage
from training.stage_tensors import lacking_parts, load_stage_tensors, stage_tensors

# DCP says this of every save by one process, which is meant here; in a thread, where contexts do not reach.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

CHECKPOINT_VERSION = 1
_PARTIAL = ".partial-"
_GO_BACK = "remove this folder to go on from an earlier checkpoint"
_OF_RUNS = {"version", "stage", "state", "recipe_hash", "recipe", "model", "scalars"}


@dataclasses.dataclass
class RunState:
    """What a run is besides its tensors."""

    images: int = 0
    """Pairs seen by all ranks: also the position in the data."""
    step: int = 0
    """Steps made."""
    best_value: float = float("inf")
    """Smallest figure of validation so far."""
    best_images: int = -1
    """Where it was."""


def read_tensors(folder: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names start with one of the prefixes, on the CPU."""
    run = read_run(folder)
    try:
        for name, expected in run.get("sha256", {}).items():
            if _sha256(folder / name) != expected:
                raise ValueError(f"{name} is not what was written: its checksum differs")
        reader = HuggingFaceStorageReader(str(folder))
        known = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in known.items()
            if name.startswith(prefixes)
        }
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # DCP's is no Exception
        raise ValueError(f"{folder} cannot be read ({_cause(error)}): {_GO_BACK}") from error
    return {name: value.reshape(()) if name in run["scalars"] else value for name, value in tensors.items()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _AtomicWriter(HuggingFaceStorageWriter):
    """Writes into a temporary folder that gets its name when everything is in it and on the disk."""

    def __init__(self, temporary: Path, target: Path, run: dict[str, Any]) -> None:
        super().__init__(path=str(temporary))
        self._temporary, self._target, self._run = temporary, target, run

    def finish(self, metadata: Any, results: Any) -> None:
        super().finish(metadata, results)
        hashes = {path.name: _sha256(path) for path in sorted(self._temporary.iterdir())}
        (self._temporary / "run.json").write_text(json.dumps({**self._run, "sha256": hashes}, indent=1))
        for path in (*self._temporary.iterdir(), self._temporary):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        shutil.rmtree(self._target, ignore_errors=True)  # what somebody left of a folder, without its run.json
        os.replace(self._temporary, self._target)


class CheckpointFolder:
    """The checkpoints of a run in OUTPUT/checkpoints. Only the rank with `writes` touches the disk."""

    def __init__(self, output: Path, *, keep_last: int, writes: bool, inputs: Mapping[str, str] | None = None) -> None:
        """inputs: by name, what the run is made from, to be noted in its checkpoints."""
        self.root = output / "checkpoints"
        self.keep_last = keep_last
        self.writes = writes
        self.inputs = dict(inputs or {})
        self._inputs_before: Mapping[str, str] = {}
        self._pending: tuple[Future | None, str, RunState, RunState] | None = None
        self._best = RunState()  # whose best figure is that of a checkpoint on the disk
        if writes:
            for partial in self.root.glob(f"{_PARTIAL}*"):
                shutil.rmtree(partial, ignore_errors=True)

    def __enter__(self) -> CheckpointFolder:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """A checkpoint that is being written is finished, whatever ended the run."""
        self.finish()

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first. Copies that somebody keeps under longer names are none of the run's."""
        return sorted(path.parent.name for path in self.root.glob(f"images-{10 * '[0-9]'}/run.json"))

    def newest_name(self) -> str | None:
        """The one to resume from."""
        return max(self.names(), default=None)

    def best_name(self) -> str | None:
        """The best by validation; None if nothing was validated."""
        with contextlib.suppress(OSError):
            name = (self.root / "best").read_text().strip()
            return name if self._is_there(name) else None
        return None

    def _is_there(self, name: str) -> bool:
        return (self.root / name / "run.json").is_file()

    def restore(self, stage: Stage, recipe: Recipe, *, allow_other_recipe: bool = False) -> RunState:
        """Load the newest checkpoint into `stage`; a fresh state if there is none.

        Raises:
            ValueError: it is of another stage or recipe (unless allowed), or cannot be read.
        """
        folder = self.to_resume(stage, recipe, allow_other_recipe=allow_other_recipe)
        if folder is None:
            return RunState()
        run = read_run(folder)
        load_stage_tensors(stage, read_tensors(folder), folder)
        self._inputs_before = run.get("inputs", {})
        if self.writes:
            print(f"resuming from {folder}: {run['state']['images']:,} images", file=sys.stderr)
            if run["state"]["images"] < recipe.num_images:
                self._tell_other_inputs(self._inputs_before)
                for other in _other_judges(run, stage):
                    print(f"note: another network than until now: {other}", file=sys.stderr)
                _tell_other_length(run, recipe)
        state = RunState(**run["state"])
        if self.writes:
            self._name_best(state.best_images)
        data = self.inputs.get("data", "")
        is_alike = _is_same_place(data, self._inputs_before.get("data", data)) and recipe.validates_like(run["recipe"])
        if not is_alike or not self._is_there(name_at(state.best_images)):
            # Figures by other weights of losses, on other pairs, or of a lost checkpoint, measure nothing to come.
            state = dataclasses.replace(state, best_value=float("inf"), best_images=-1)
        self._best = dataclasses.replace(state)
        return state

    def to_resume(self, stage: Stage, recipe: Recipe, *, allow_other_recipe: bool = False) -> Path | None:
        """The newest checkpoint, where there is one. ValueError when `restore` would refuse it unread."""
        name = self.newest_name()
        if name is None:
            return None
        folder = self.root / name
        run = read_run(folder)
        if run["stage"] != stage.name:
            raise ValueError(
                f"{folder} is a checkpoint of stage {run['stage']!r}, not {stage.name!r}: use another --output"
            )
        differences = _other_judges(run, stage) + recipe.differences(run["recipe"])
        lacking = lacking_parts(stage, _tensor_names(folder))
        if differences and not allow_other_recipe:
            or_allow = "" if lacking else ", or --allow-other-recipe to continue with the new one"
            raise ValueError(
                f"{folder} was trained with another recipe ({'; '.join(differences[:6])}): use the same recipe, or "
                f"another --output{or_allow}"
            )
        if lacking:
            init = f"with --init {shlex.quote(str(self.root.parent))} and " if stage.name == "base" else "in "
            raise ValueError(
                f"{folder} cannot be continued with {' and '.join(lacking)}, which the run has not had so far: keep "
                f"{', '.join(lacking.values())}, or begin a new run {init}another --output"
            )
        return folder

    def _name_best(self, images: int) -> None:
        """Have `best` name the checkpoint at so many images, if there is one: a run that was killed between a
        checkpoint and this name would lose the checkpoint with the next one."""
        name = name_at(images)
        if name != self.best_name() and self._is_there(name):
            write_bytes_atomically(self.root / "best", name.encode())

    def note_clips(self, clips: str, state: RunState) -> None:
        """Note which clips the run is trained on. Others than before are told, and end the best figure."""
        before = self._inputs_before
        is_same_place = _is_same_place(self.inputs.get("data", ""), before.get("data", ""))
        if is_same_place and (old := before.get("clips", clips)) != clips:
            told = f"the data set has changed: this run was trained on {old}, from here on {clips}"
            print(f"note: {told}", file=sys.stderr)
            state.best_value, state.best_images = float("inf"), -1
            self._best = dataclasses.replace(state)
        self.inputs["clips"] = clips

    def _tell_other_inputs(self, before: Mapping[str, str]) -> None:
        data = self.inputs.get("data", "")
        if not _is_same_place(data, old := before.get("data", data)):
            print(f"note: until now this run was trained on {old}, from here on {data}", file=sys.stderr)
        if (init := self.inputs.get("init")) != (old := before.get("init", init)):
            given = f"--init {init} is not read" if init else "--init was not given, and is not needed"
            print(f"note: {given}: this run began from {old or 'random weights'}", file=sys.stderr)

    def save(self, stage: Stage, recipe: Recipe, state: RunState) -> None:
        """Start to write a checkpoint; one that is still being written is waited for first."""
        if not self.writes:
            return
        self.finish()
        name = name_at(state.images)
        future = None if self._is_there(name) else self._write(name, stage, recipe, state)  # there: at a run's end
        self._pending = (future, name, state, dataclasses.replace(state))

    def _write(self, name: str, stage: Stage, recipe: Recipe, state: RunState) -> Future:
        tensors = stage_tensors(stage)
        scalars = [key for key, value in tensors.items() if value.dim() == 0]
        run = {
            "version": CHECKPOINT_VERSION,
            "stage": stage.name,
            "state": dataclasses.asdict(state),
            "recipe_hash": recipe.hash,
            "recipe": flatten(dataclasses.asdict(recipe)),
            "model": dataclasses.asdict(recipe.model),
            "inputs": self.inputs,
            "judges": dict(stage.judges),
            "scalars": scalars,
        }
        # Slices of safetensors have at least one dimension.
        tensors = {key: value.reshape(1) if value.dim() == 0 else value for key, value in tensors.items()}
        temporary = self.root / f"{_PARTIAL}{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _quiet_dcp():
                writer = _AtomicWriter(temporary, self.root / name, run)
                return dcp.async_save(tensors, storage_writer=writer, no_dist=True)
        except OSError as error:
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def poll(self) -> None:
        """Take note of a checkpoint whose writing has ended, without waiting."""
        if self._pending is not None and (self._pending[0] is None or self._pending[0].done()):
            self.finish()

    def finish(self) -> bool:
        """Wait for the checkpoint that is being written. False if it failed, which is said; older ones are kept, and
        where it was to be the best, the state that was given to `save` has the best figure before it again."""
        if self._pending is None:
            return True
        (future, name, state, saved), self._pending = self._pending, None
        try:
            if future is not None:
                future.result()
            self._name_best(saved.best_images)
            self._best = saved
        except (Exception, CheckpointException) as error:  # DCP's is no Exception
            shutil.rmtree(self.root / f"{_PARTIAL}{name}", ignore_errors=True)
            if state.best_images == saved.best_images and not self._is_there(name_at(saved.best_images)):
                state.best_value, state.best_images = self._best.best_value, self._best.best_images
            kept = self.newest_name()
            print(
                f"error: checkpoint {name} could not be written ({_cause(error)}); "
                + (f"{kept} is kept, nothing saved before is lost" if kept else "there is none before it")
                + ". Make room in the output folder",
                file=sys.stderr,
            )
            return False
        self._remove_old()
        return True

    def save_last(self, stage: Stage, recipe: Recipe, state: RunState) -> bool:
        """Write the state at the end of a run and wait for it. Whether it is on the disk."""
        if not self.writes:
            return True
        self.finish()
        self.save(stage, recipe, state)
        return self.finish()

    def _remove_old(self) -> None:
        kept = {*self.names()[-self.keep_last :], self.best_name()}
        for name in self.names():
            if name not in kept:
                # Renamed first, so that a kill in the middle leaves no folder that looks complete.
                doomed = self.root / f"{_PARTIAL}old-{name}"
                os.replace(self.root / name, doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _other_judges(run: Mapping[str, Any], stage: Stage) -> list[str]:
    """Which of the networks that losses ask were others in the run so far."""
    before = run.get("judges", {})
    return [f"{name}: {before[name]} -> {now}" for name, now in stage.judges.items() if before.get(name, now) != now]


def _tell_other_length(run: Mapping[str, Any], recipe: Recipe) -> None:
    """Say so where another length of the run makes its learning rate jump: what decays ends with the run."""
    images, before = run["state"]["images"], run["recipe"].get("num_images", recipe.num_images)
    was, now = (recipe.optimizer.factor(images, length) for length in (before, recipe.num_images))
    if was != now:
        print(
            f"note: num_images was {before:,} and is {recipe.num_images:,}: the learning rate goes on at {now:.3g} of "
            f"its peak, not at {was:.3g}",
            file=sys.stderr,
        )


def name_at(images: int) -> str:
    """Name of the checkpoint at so many images."""
    return f"images-{images:010d}"


def _is_same_place(one: str, other: str) -> bool:
    """Whether two names of data sets mean one place, as far as can be told from here."""
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _tensor_names(folder: Path) -> set[str]:
    """Names of a checkpoint's tensors. ValueError if its index is damaged."""
    try:
        return {*json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} cannot be read ({error}): {_GO_BACK}") from error


def read_run(folder: Path) -> dict[str, Any]:
    """The contents of run.json. ValueError if it is damaged or of a newer program."""
    try:
        run = json.loads((folder / "run.json").read_text())
        if missing := sorted(_OF_RUNS - set(run)):
            raise ValueError(f"without {', '.join(missing)}")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder / 'run.json'} cannot be read ({error}): remove {folder} to go on from an earlier checkpoint"
        ) from error
    if run["version"] > CHECKPOINT_VERSION:
        raise ValueError(f"{folder} has version {run['version']}, this program knows up to {CHECKPOINT_VERSION}")
    return run


def _cause(error: BaseException) -> str:
    """The innermost message, on one line: what the operating system said."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    while (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__
    return " ".join(str(error).split())


@contextlib.contextmanager
def _quiet_dcp() -> Any:
    """Without DCP's log lines about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.checkpoint", "torch.distributed")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
