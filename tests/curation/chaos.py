"""Faults for a job on a cluster, drawn by a seed: when each comes, and whom it meets."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.curation.ray_nodes import RayNodes
from tests.flaky_store import FlakyStore

_COMMIT = re.compile(r"/staging/(?:index|scan|crop)-\w+/[^/]+\.json(?:\?|$)")
THROTTLED_S = 10.0


@dataclass(slots=True)
class Fault:
    """One line of the table."""

    name: str
    after_units: int
    """It comes when so many units have been committed."""
    met: str = ""
    outcome: str = ""


class Chaos:
    """Brings the planned faults over a job, one after the other: the next only when the job has recovered."""

    def __init__(
        self, nodes: RayNodes, store: FlakyStore, submit: Callable[[], None], *, num_units: int, seed: int
    ) -> None:
        """num_units: of index, scan and crop of the whole job. submit: starts the job, which it returns without."""
        self._nodes, self._store, self._submit = nodes, store, submit
        self._chance = random.Random(seed)
        names = ["worker killed"] * 5 + ["node lost", "store throttled", "driver killed"]
        self._chance.shuffle(names)
        times = sorted(self._chance.sample(range(1, int(0.8 * num_units)), len(names)))
        self.faults = [Fault(name, after) for name, after in zip(names, times, strict=True)]

    def num_committed(self) -> int:
        """Units whose marker has been put at least once."""
        return len({path for method, path in self._store.requests if method == "PUT" and _COMMIT.search(path)})

    def inject(self, is_over: Callable[[], bool]) -> None:
        """All faults in their order; returns early when the job is over before."""
        for fault in self.faults:
            while self.num_committed() < fault.after_units or not self._strike(fault):
                if is_over():
                    return
                time.sleep(0.05)
            before, start = self.num_committed(), time.monotonic()
            while self.num_committed() == before:
                if is_over():
                    fault.outcome = "the job went on to its end"
                    return
                time.sleep(0.05)
            fault.outcome = f"next unit committed after {time.monotonic() - start:.1f} s"

    def _strike(self, fault: Fault) -> bool:
        """Do it; False while there is nobody to meet."""
        done = self.num_committed()
        if fault.name == "worker killed":
            met = self._kill(self._nodes.actors())
        elif fault.name == "driver killed":
            met = self._kill(self._nodes.drivers())
            if met:
                self._submit()
        elif fault.name == "node lost":
            met = self._remove_node()
        else:
            met = f"everything for {THROTTLED_S:.0f} s"
            self._store.throttle(THROTTLED_S)
        fault.met = f"{met}, after {done} units" if met else ""
        return bool(met)

    def _remove_node(self) -> str:
        """A node that works, and is not the head, where the driver is."""
        busy = [name for name in map(node_of, self._nodes.actors()) if name not in ("", "head")]
        if not busy:
            return ""
        name = self._chance.choice(sorted(set(busy)))
        self._nodes.remove(name)
        return f"{name} with {busy.count(name)} workers"

    def _kill(self, processes: list[psutil.Process]) -> str:
        if not processes:
            return ""
        process = self._chance.choice(sorted(processes, key=lambda p: p.pid))
        try:
            met = f"{process.cmdline()[0].split()[0]} on {node_of(process)}, process {process.pid}"
            process.kill()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            return ""
        return met


def node_of(process: psutil.Process) -> str:
    """Name of the node that a process belongs to."""
    try:
        return Path(process.environ().get("TMPDIR", "")).name
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def table_of(lines: list[tuple[str, str, str]]) -> str:
    """Three columns as text."""
    widths = [max(len(line[k]) for line in lines) for k in range(2)]
    return os.linesep.join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in lines)
