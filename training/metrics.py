"""What a run tells: one console line at intervals, TensorBoard, and metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

from manifests.console import amount, clock
from training.distributed import Process
from training.recipe import Recipe

SHOWN_LOSSES = 6


class Reporter:
    """Means of what steps told since the last line; the first rank writes them."""

    def __init__(
        self, output: Path, recipe: Recipe, process: Process, *, first_image: int, out: TextIO | None = None
    ) -> None:
        self._recipe, self._process = recipe, process
        self._out = out or sys.stderr
        self._path = output / "metrics.jsonl"
        self._totals: dict[str, list[float]] = {}
        self._wait_s = self._paused_s = 0.0
        self._num_skipped = self._num_lost = 0
        self._line_images = first_image
        self._line_time = self._start = time.perf_counter()
        self._board: Any = None
        if process.is_main:
            from torch.utils.tensorboard import SummaryWriter

            output.mkdir(parents=True, exist_ok=True)
            self._board = SummaryWriter(str(output / "tensorboard"), purge_step=first_image)
            # Also at 0 where there are rows: of a start that ended before its first checkpoint.
            if first_image or (self._path.is_file() and self._path.stat().st_size):
                self._record({"kind": "resumed", "images": first_image, "time": time.time()})

    def __enter__(self) -> Reporter:
        self._hook, threading.excepthook = threading.excepthook, _without_tensorboard(threading.excepthook)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._draw("close")
        threading.excepthook = self._hook

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; time spent waiting for them is counted."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator)
            self._wait_s += time.perf_counter() - start
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within is neither training nor waiting."""
        start = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - start

    def add(
        self, losses: Mapping[str, float], images: int, step: int, *, num_skipped: int, is_lost: bool = False
    ) -> None:
        """Take in one step; a line is due at multiples of the recipe's interval. Lost steps count as such alone."""
        for name, value in ({} if is_lost else losses).items():
            self._totals.setdefault(name, []).append(value)
        self._num_skipped += num_skipped
        self._num_lost += is_lost
        every, batch_size = self._recipe.reports.log_every_images, self._recipe.batch_size
        if images // every > (images - batch_size) // every or images >= self._recipe.num_images:
            self._line(images, step)

    def _line(self, images: int, step: int) -> None:
        now = time.perf_counter()
        seconds = max(now - self._line_time - self._paused_s, 1e-9)
        means = {name: math.fsum(values) / len(values) for name, values in self._totals.items()}
        skipped = self._process.sum({"skipped": (float(self._num_skipped), 1)})["skipped"][0]
        means = self._process.mean(means) if means else {}  # none where all steps since the last line were lost
        speed = (images - self._line_images) / seconds
        performance = {
            "images_per_s": speed,
            "data_wait_percent": 100 * self._wait_s / seconds,
            "memory_gib": peak_memory_gib(self._process.device),
        }
        counts = {"skipped": skipped, "lost_steps": self._num_lost}  # since the start
        self._totals, self._wait_s, self._paused_s = {}, 0.0, 0.0
        self._line_images, self._line_time = images, now
        if not self._process.is_main:
            return
        left_s = (self._recipe.num_images - images) / speed
        # The total and what counts for it; gradient norms and the like are in the files.
        losses = {name: value for name, value in means.items() if "/" not in name}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in list(losses.items())[: SHOWN_LOSSES + 1])
        shown += " ..." if len(losses) > SHOWN_LOSSES + 1 else ""
        parts = [
            f"step {step}",
            f"images {images:,}",
            shown,
            f"{speed:.3g} images/s",
            f"wait {performance['data_wait_percent']:.1f} %",
            f"{performance['memory_gib']:.2f} GiB",
            f"ETA {clock(left_s)}",
        ]
        if skipped:
            parts.append(f"{amount(round(skipped), 'sample')} skipped")
        if counts["lost_steps"]:
            parts.append(f"{amount(counts['lost_steps'], 'step')} lost")
        self._say("  ".join(part for part in parts if part))
        record = {"images": images, "step": step, "time": time.time(), **means, **performance, **counts}
        self._write("train", record, {**means, **{f"performance/{k}": v for k, v in performance.items()}}, images)

    def validation(self, figures: Mapping[str, float], images: int) -> None:
        """Figures of held-out pairs."""
        if self._process.is_main and figures:
            self._say(f"images {images:,}  held out: " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()))
            record = {"images": images, "time": time.time(), **figures}
            self._write("validation", record, {f"validation/{k}": v for k, v in figures.items()}, images)

    def picture(self, grid: Any, images: int) -> None:
        """A sample grid uint8 [H, W, 3] for TensorBoard."""
        self._draw("add_image", "samples", grid, images, dataformats="HWC")

    def last(self, images: int, *, interrupted: bool, saved: bool) -> None:
        """The closing line."""
        if self._process.is_main:
            took = clock(time.perf_counter() - self._start)
            how = "stopped as asked; the same command continues" if interrupted else "finished"
            self._say(f"{how} at {images:,} images after {took}" + ("" if saved else "; the last state is NOT saved"))

    def _write(self, kind: str, record: dict[str, Any], scalars: Mapping[str, float], images: int) -> None:
        self._record({"kind": kind, **record})
        for name, value in scalars.items():
            self._draw("add_scalar", name, value, images)

    # A full disk must not end a run whose weights are fine.

    def _record(self, record: dict[str, Any]) -> None:
        try:
            with open(self._path, "ab+") as file:
                if (size := file.seek(0, os.SEEK_END)) and os.pread(file.fileno(), 1, size - 1) != b"\n":
                    file.write(b"\n")  # the last row was cut off, by a kill or a full disk: it must not spoil this one
                file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            self._say(f"error: figures could not be written to {self._path} ({error})")

    def _draw(self, what: str, *arguments: Any, **options: Any) -> None:
        """Call a method of TensorBoard's writer, which cannot be used any more once it has failed."""
        if self._board is None:
            return
        try:
            getattr(self._board, what)(*arguments, **options)
        except OSError as error:
            self._board = None
            self._say(f"error: TensorBoard's files could not be written ({error}): this run writes no more of them")

    def _say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def _without_tensorboard(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`threading.excepthook` that passes over TensorBoard's own thread: its writer raises the error again."""

    def tell(problem: Any) -> None:
        if type(problem.thread).__name__ != "_AsyncWriterThread":
            hook(problem)

    return tell


def peak_memory_gib(device: torch.device) -> float:
    """Most memory in use so far: of the device, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, else KiB
