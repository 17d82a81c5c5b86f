"""A curation command with its driver timed phase by phase, in a process of its own.

    python -m tests.benchmarks.phases REPORT.json [--here] run VIDEOS --output DATASET ...

Writes of each phase, without the phases inside it: wall seconds, CPU-seconds of this process and of all below it, and
the peak of this process's resident memory. --here: no Ray; this process does the units itself. Linux only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from curation import distribute, index, pack, pipeline, shard_plan, summary
from curation.__main__ import main as curation
from curation.distribute import Cluster
from curation.recipe import Recipe
from curation.units import Ledger
from curation.worker import make_unit_worker
from manifests.storage import Place, make_folder

_SAMPLE_S = 0.05
_SAMPLE_FAMILY_S = 1.0


class Phases:
    """Times and peak memory by phase; phases may be nested, a second belongs to the innermost."""

    def __init__(self) -> None:
        self.wall_s: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}
        self.family_cpu_s: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}
        self._stack = ["rest"]
        self._family = Family()
        self._since = (time.perf_counter(), time.process_time(), 0.0)

    def wrap(self, owner: Any, name: str, label: Callable[..., str] | str) -> None:
        """Time every call of `owner.name`; `label` names the phase, from the call's arguments if it is a function."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(label if isinstance(label, str) else label(*args))
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        setattr(owner, name, timed)

    def _enter(self, label: str) -> None:
        self._settle()
        self._stack.append(label)

    def _leave(self) -> None:
        self._settle()
        self._stack.pop()

    def _settle(self) -> None:
        label = self._stack[-1]
        now = (time.perf_counter(), time.process_time(), self._family.cpu_s())
        for figures, value, before in zip((self.wall_s, self.cpu_s, self.family_cpu_s), now, self._since, strict=True):
            figures[label] = figures.get(label, 0.0) + value - before
        self._since = now
        self._sample()

    def _sample(self) -> None:
        label = self._stack[-1]
        self.peak_mb[label] = max(self.peak_mb.get(label, 0.0), resident_mb())

    def watch(self) -> None:
        """Sample memory and CPU time from a thread until the process ends."""

        def sample() -> None:
            while True:
                self._sample()
                self._family.look()
                time.sleep(_SAMPLE_S)

        threading.Thread(target=sample, daemon=True).start()

    def report(self) -> dict[str, dict[str, float]]:
        self._settle()
        return {name: getattr(self, name) for name in ("wall_s", "cpu_s", "family_cpu_s", "peak_mb")}


class Family:
    """All processes below this one, as they come and go."""

    def __init__(self) -> None:
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._lock = threading.Lock()
        self._last = -_SAMPLE_FAMILY_S

    def look(self, now: bool = False) -> None:
        """Read the CPU times of those that are there, once a second or now."""
        with self._lock:
            if not now and time.perf_counter() - self._last < _SAMPLE_FAMILY_S:
                return
            self._last = time.perf_counter()
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._cpu_s[process.pid, process.create_time()] = times.user + times.system

    def cpu_s(self) -> float:
        self.look(now=True)
        return sum(self._cpu_s.values())


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def wrap_curation(phases: Phases) -> None:
    """Put timers around what the driver of a run does."""
    phases.wrap(index, "list_inputs", "list inputs")
    phases.wrap(pipeline, "check_networks", "check networks")
    phases.wrap(Cluster, "connect", "start Ray")
    phases.wrap(Ledger, "finished_units", "plan: finished units")
    for stage in ("scan", "crop"):
        phases.wrap(pipeline._Job, f"{stage}_names", f"plan: {stage}")
    phases.wrap(distribute, "Plan", lambda folder, *rest: folder.name.replace("-", ": "))
    phases.wrap(pipeline._Job, "work", lambda job, stage, *rest: f"{stage}: work")
    phases.wrap(Ledger, "absorb", lambda ledger, *rest: f"{ledger.stage}: absorb")
    phases.wrap(pipeline, "select", "select")
    for owner, name in ((shard_plan, "plan_shards"), (pack, "clips_without_pixels"), (pack, "pack_units")):
        phases.wrap(owner, name, "plan: pack")
    phases.wrap(pack, "publish", "pack: publish")
    phases.wrap(Cluster, "close", "end Ray")
    phases.wrap(summary, "print_summary", "print summary")


class Here:
    """In the place of the cluster: does the units in this process."""

    workers = 1

    def connect(self) -> None:
        pass

    def check(self, do: Callable[[], None], needs_gpu: bool) -> None:
        pass

    def close(self) -> None:
        pass

    def run(self, stage: str, recipe: Recipe, folder: Place, units: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        make_folder(folder)
        return map(make_unit_worker(stage, recipe, folder), units)


def main() -> int:
    """Run the command line after the report's name."""
    is_help = sys.argv[1:2] in (["-h"], ["--help"])
    if len(sys.argv) < 3 or is_help:
        print(__doc__)
        return 0 if is_help else 2
    phases = Phases()
    phases.watch()
    report, *command = sys.argv[1:]
    if command[0] == "--here":
        del command[0]
        pipeline.cluster = lambda options: contextlib.nullcontext(Here())
    wrap_curation(phases)
    status = curation(command)
    Path(report).write_text(json.dumps(phases.report()))
    return status


if __name__ == "__main__":
    sys.exit(main())
