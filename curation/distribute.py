"""Units of work over Ray: one row of a Ray Data pipeline is a bundle of units, an actor of its pool does them in place.

Only descriptions travel through the object store, never pictures. Each actor hands the units to a child process that
may die (see `sandbox`), so a poisonous file costs its unit and nothing else.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.metrics import count_unit
from curation.recipe import Recipe
from curation.sandbox import FatalError, Sandbox, SandboxError
from curation.units import UnitResult, commit_unit
from manifests.storage import Place, make_folder

ATTEMPTS = 2
_BUNDLES_PER_WORKER = 6
_MIN_BUNDLE_COST_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """Where the work runs."""

    workers: int = 0
    """Actors that work side by side; 0: one a core of this machine, or all cores but one of a cluster."""
    address: str = ""
    """Ray cluster to use ("auto", ray://...); empty: RAY_ADDRESS if set, else Ray is started inside this process."""
    deadline_s: float = 0.0
    """Longest time for one unit of work before it is ended; 0: 5 minutes and 20 times the video's length."""


def stage_class(name: str) -> Any:
    """The class that does the work of a stage; imported only where it runs."""
    if name == "index":
        from curation.index import IndexStage as Stage
    elif name == "scan":
        from curation.scan import ScanStage as Stage
    elif name == "crop":
        from curation.crop import CropStage as Stage
    else:
        assert name == "pack", name
        from curation.pack import PackStage as Stage
    return Stage


def make_unit_worker(stage: str, recipe: Recipe, folder: Place) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What the child process runs: do a unit, commit it, return its ledger row and its failures."""
    import cv2

    cv2.setNumThreads(1)
    work = stage_class(stage)(recipe, folder)

    def do(unit: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        result = work.process(unit)
        if unit.get("pixels_only"):
            return {"unit": unit["name"], "num_frames": result.num_frames, "video_s": result.video_s, "failures": []}
        row = commit_unit(folder, stage, unit, result, time.perf_counter() - start, _worker_name())
        return _summary(row, result)

    return do


def _summary(row: dict[str, Any], result: UnitResult) -> dict[str, Any]:
    failures = [{k: f[k] for k in ("reason", "message", "uri")} for f in result.rows.get("failures", [])]
    rejected = sum(r.get("status") == "rejected" for r in result.rows.get("sources", []))
    counts = {table: len(rows) for table, rows in result.rows.items() if table != "failures"}
    measured = [r for table in ("sources", "clips", "shards") for r in result.rows.get(table, [])]
    size_bytes = sum(r.get("staged_bytes") or r.get("size_bytes") or 0 for r in measured)
    return {**row, "failures": failures, "rejected": rejected, "counts": counts, "size_bytes": size_bytes}


def _worker_name() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


class UnitWorker:
    """The actor: does bundles of units in its sandbox and accounts for those that fail."""

    def __init__(self, *, stage: str, recipe: Recipe, folder: Place, deadline_s: float) -> None:
        self._stage, self._folder, self._deadline_s = stage, folder, deadline_s
        make_folder(folder)
        self._sandbox = Sandbox(functools.partial(make_unit_worker, stage, recipe, folder), deadline_s=3600)

    def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """`row["units"]`: a bundle as JSON; returns one row with a summary, as JSON, for each unit."""
        try:
            summaries = [self._do(unit) for unit in json.loads(row["units"])]
        except FatalError as error:
            summaries = [{"fatal": str(error)}]
        return [{"summary": json.dumps(summary)} for summary in summaries]

    def _do(self, unit: dict[str, Any]) -> dict[str, Any]:
        deadline_s = self._deadline_s or 300 + 20 * unit.get("expected_s", 0.0)
        attempts = 0
        while attempts < ATTEMPTS:
            attempts += 1
            try:
                return count_unit(self._stage, unit, self._sandbox(unit, deadline_s))
            except SandboxError as error:
                reason, message = error.reason, str(error)
            except RuntimeError as error:
                reason, message = "error", str(error)
                break  # an exception is no accident: the same again would give the same
        result = UnitResult()
        result.fail(self._stage, unit, reason, message, attempts)
        row = commit_unit(self._folder, self._stage, unit, result, 0.0, _worker_name())
        return count_unit(self._stage, unit, _summary(row, result))


def bundle(units: list[dict[str, Any]], workers: int) -> list[list[dict[str, Any]]]:
    """Units put together by expected cost, the expensive ones first and alone, so that no worker ends much later.

    A row of Ray Data costs about 10 ms and its scheduling; bundles of at least a second make that small.
    """
    ordered = sorted(units, key=lambda u: (-u.get("expected_s", 0.0), u["name"]))
    total = sum(u.get("expected_s", 0.0) for u in ordered)
    limit = max(_MIN_BUNDLE_COST_S, total / (workers * _BUNDLES_PER_WORKER))
    bundles: list[list[dict[str, Any]]] = []
    cost = 0.0
    for unit in ordered:
        if not bundles or cost + unit.get("expected_s", 0.0) > limit:
            bundles.append([])
            cost = 0.0
        bundles[-1].append(unit)
        cost += unit.get("expected_s", 0.0)
    return bundles


class Cluster:
    """Ray, connected to when the first unit needs it."""

    def __init__(self, options: ClusterOptions) -> None:
        self._options = options
        self._folder: str | None = None
        self.is_connected = False
        self.startup_s = 0.0

    def connect(self) -> None:
        """Join the cluster or start an embedded one."""
        if self.is_connected:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray
        import ray.data

        for name in list(logging.root.manager.loggerDict):
            if name.startswith("ray"):
                logging.getLogger(name).setLevel(logging.ERROR)

        start = time.perf_counter()
        address = self._options.address or os.environ.get("RAY_ADDRESS", "")
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        if address or ray.is_initialized():
            with _quiet_stderr():
                ray.init(address=address or None, ignore_reinit_error=True, **quiet)
            self.workers = self._options.workers or max(1, int(ray.cluster_resources().get("CPU", 2)) - 1)
        else:
            self.workers = self._options.workers or os.cpu_count() or 1
            self._folder = _make_ray_folder()
            root = str(Path(__file__).resolve().parents[1])  # so that workers find these packages from any folder
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            with _quiet_stderr():
                ray.init(
                    num_cpus=self.workers + 1,  # one more than the actors take, so that Ray Data's own tasks always run
                    include_dashboard=False,
                    object_store_memory=200_000_000,
                    _temp_dir=self._folder,
                    **quiet,
                )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        context.execution_options.preserve_order = False
        context.print_on_execution_start = False
        self.is_connected = True
        self.startup_s = time.perf_counter() - start

    def close(self) -> None:
        """Leave the cluster; an embedded one is ended and its temporary files removed."""
        if not self.is_connected:
            return
        import ray

        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self.is_connected = False

    def run(self, stage: str, recipe: Recipe, folder: Place, units: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Do all units; yields a summary of each as it finishes, in any order.

        Raises:
            FatalError: no unit can be done (the stage cannot start, the disk is full).
        """
        self.connect()
        import ray

        bundles = bundle(units, self.workers)
        workers = min(self.workers, len(bundles))
        rows = [{"units": json.dumps(units_of_bundle)} for units_of_bundle in bundles]
        worker = type(stage.capitalize(), (UnitWorker,), {})  # the operator's name on the dashboard
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
            worker,
            fn_constructor_kwargs={
                "stage": stage,
                "recipe": recipe,
                "folder": folder,
                "deadline_s": self._options.deadline_s,
            },
            compute=ray.data.ActorPoolStrategy(min_size=workers, max_size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
        )
        for row in results.iter_rows():
            summary = json.loads(row["summary"])
            if "fatal" in summary:
                raise FatalError(summary["fatal"])
            yield summary


_RAY_FOLDER = "portrait-ray-"


def _make_ray_folder() -> str:
    """A folder for the files of an embedded Ray; those that killed runs left behind are removed first."""
    # Ray puts sockets below this folder, and a socket's path may have 107 characters.
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 16 or not os.path.isdir("/tmp") else "/tmp"
    for entry in Path(parent).glob(f"{_RAY_FOLDER}*"):
        owner = entry.name.removeprefix(_RAY_FOLDER).split("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}") and os.path.isdir("/proc/self"):
            shutil.rmtree(entry, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_RAY_FOLDER}{os.getpid()}-", dir=parent)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what Ray's C++ parts print while they start; errors come as exceptions."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@contextmanager
def cluster(options: ClusterOptions) -> Iterator[Cluster]:
    """A `Cluster` that is closed at the end."""
    made = Cluster(options)
    try:
        yield made
    finally:
        made.close()
