"""How a run gets its Ray: it joins a cluster, or starts one inside this process with all files in one folder."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curation.sandbox import FatalError
from manifests.scratch import Scratch
from model.termination import Terminated

_START_ATTEMPTS = 3
_LATE_S = 20.0
_NOT_JOINED = "still waiting for the Ray cluster: is its address that of `ray start --head`, with the port 6379?\n"
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
_RAY_FOLDER = "portrait-ray-"
_MAX_PARENT_LENGTH = 16
_MIN_FREE_BYTES = 2 << 20
_BYTES_OF_RUN, _BYTES_OF_WORKER = 0.9e9, 0.7e9
"""Measured: Ray and the driver take 0.9 GB together; a worker with its child 0.45 GB, of 4K video 0.65 GB."""


def import_ray() -> None:
    """Import Ray and Ray Data so that they keep to themselves what is told in other words."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray.data  # noqa: F401  (whose loggers are silenced)

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("ray"):
            # Of an error in a worker Ray Data writes pages, where it is raised here or its units are done again.
            is_told_otherwise = name.startswith("ray.data")
            logging.getLogger(name).setLevel(logging.CRITICAL if is_told_otherwise else logging.ERROR)


def join(address: str) -> None:
    """Join a cluster; an empty address: what this process has joined already.

    Raises:
        FatalError: it has other versions of Ray or Python than this process.
    """
    import ray

    try:
        with _quiet_stderr(late=_NOT_JOINED):
            ray.init(address=address or None, runtime_env=_runtime_env(), ignore_reinit_error=True, **_QUIET)
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise FatalError(f"{' '.join(str(error).split())}; install on this machine what the nodes have") from error


def start_embedded(folder: str, num_cpus: int) -> None:
    """Start Ray inside this process.

    Raises:
        FatalError: it cannot be started.
    """
    import ray

    root = str(Path(__file__).resolve().parents[1])  # so that workers find these packages from any folder
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray would keep one in the home folder
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            with _quiet_stderr():
                ray.init(
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    object_store_memory=200_000_000,
                    _temp_dir=folder,
                    **_QUIET,
                )
            return
        except Exception as error:  # Ray raises nothing more precise, also where a busy machine takes over 30 s
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                raise FatalError(f"Ray cannot be started on this machine: {error}") from error
            print("Ray could not be started: trying again", file=sys.stderr)


def workers_with_memory() -> int:
    """For how many workers memory was free when an embedded Ray started, on its machine or in its container; 1 at
    least."""
    return max(int((_free_bytes() - _BYTES_OF_RUN) // _BYTES_OF_WORKER), 1)


def tell_of_little_memory(num_workers: int) -> None:
    """Tell where it is not enough for so many workers."""
    enough, free = workers_with_memory(), _free_bytes()
    if free < _BYTES_OF_RUN + _BYTES_OF_WORKER:
        needs = f"a run with one worker needs about {(_BYTES_OF_RUN + _BYTES_OF_WORKER) / 1e9:.1f}"
        print(f"warning: {free / 1e9:.1f} GB of memory are free, and {needs}: workers may be killed", file=sys.stderr)
    elif enough < num_workers:
        so_many = f"memory is free for {enough} of {num_workers} workers: so many start"
        print(f"{so_many} (--workers sets another number)", file=sys.stderr)


def _free_bytes() -> float:
    import ray

    return ray.cluster_resources().get("memory", sys.maxsize)


def make_ray_folder() -> Scratch:
    """A folder for the files of an embedded Ray."""
    # Ray puts sockets below this folder, and a socket's path may have 107 characters.
    is_short = len(tempfile.gettempdir()) <= _MAX_PARENT_LENGTH or not os.path.isdir("/tmp")
    return Scratch(_RAY_FOLDER, Path(tempfile.gettempdir() if is_short else "/tmp"))


def require_room(ray_folder: Path) -> None:
    """FatalError where its disk is full: workers of Ray would die while they start, again and again."""
    if shutil.disk_usage(ray_folder).free < _MIN_FREE_BYTES:
        raise FatalError(
            f"the disk of {ray_folder.parent}, where Ray keeps its files, is full: free some of it, or set"
            f" TMPDIR to a folder on another, whose path has at most {_MAX_PARENT_LENGTH} characters, and run again"
        )


@contextmanager
def sigterm_kept_from_ray() -> Iterator[None]:
    """Around `ray.init`, which installs a handler of SIGTERM that ends the process in the middle of everything."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:
            raise
        raise Terminated from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def no_deprecation_warnings() -> Iterator[None]:
    """Around two options that Ray Data announces to remove without naming what takes their place."""
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield


def _runtime_env() -> dict[str, Any] | None:
    """These packages for all nodes of a cluster that this process joins; a submitted job has brought them."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    root = Path(__file__).resolve().parents[1]
    return {"py_modules": [str(root / name) for name in ("curation", "manifests", "model")]}


@contextmanager
def _quiet_stderr(late: str = "") -> Iterator[None]:
    """Hide what Ray's C++ parts print while they start; errors come as exceptions. Says `late` when it takes long."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    timer = threading.Timer(_LATE_S, os.write, (saved, late.encode()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
