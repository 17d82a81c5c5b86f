"""A Ray cluster of several nodes on this machine: each node has its own processes, ports and temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]

_START_S = 400


class RayNodes:
    """A head without room for actors but one, with the job server, and worker nodes that come and go.

    All processes are children of this one, and only they are ended.
    """

    def __init__(self, *, head_cpus: int = 1, env: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rn-", dir="/tmp"))  # short: sockets have long names below it
        self._nodes: dict[str, subprocess.Popen] = {}
        self._started: dict[str, tuple[Any, ...]] = {}
        self._scratch: dict[str, Path] = {}
        self._env = dict(env or os.environ) | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),  # a job's `python`
            "RAY_worker_niceness": "0",  # else whatever else the machine does goes first, and the job hardly moves
            "RAY_raylet_start_wait_time_s": "120",
        }
        self._env.pop("RAY_ADDRESS", None)
        port, dashboard, client = (_free_port() for _ in range(3))
        self.address, self.job_server = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self._start(
            "head",
            head_cpus,
            *("--head", "--port", port, "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard),
            *("--ray-client-server-port", client),
        )
        try:
            self.wait_for(1)
        except BaseException:
            self.close()
            raise

    @property
    def env(self) -> dict[str, str]:
        """What a client of this cluster needs in its environment."""
        return self._env

    def add(self, name: str, cpus: int, *, scratch: Path | None = None) -> None:
        """Start a worker node; returns when the cluster knows it. scratch: its temporary folder, if not one of ours."""
        known = self.count()
        if scratch is not None:
            self._scratch[name] = scratch
        self._start(name, cpus, "--address", self.address)
        self.wait_for(known + 1)

    def remove(self, name: str) -> None:
        """End a node with all its processes at once, as a machine that loses power."""
        _end(self._nodes.pop(name))

    def processes(self) -> list[psutil.Process]:
        """All processes of all nodes."""
        found = []
        for node in self._nodes.values():
            try:
                found += psutil.Process(node.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
        return found

    def actors(self) -> list[psutil.Process]:
        """The processes of the actors that do units."""
        found = []
        for process in self.processes():
            try:
                title = " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if title.startswith("ray::") and any(stage in title for stage in ("Index", "Scan", "Crop", "Pack")):
                found.append(process)
        return found

    def drivers(self) -> list[psutil.Process]:
        """The processes of submitted `python -m curation run`, without the shells that they were started by."""
        found = []
        for process in self.processes():
            try:
                command = process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if command[1:4] == ["-m", "curation", "run"]:
                found.append(process)
        return found

    def count(self) -> int:
        """Nodes that are alive, as the head's server says."""
        try:
            with urllib.request.urlopen(f"{self.job_server}/api/v0/nodes", timeout=20) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # it is still starting
        return sum(node["state"] == "ALIVE" for node in nodes)

    def wait_for(self, num_nodes: int) -> None:
        """Wait until so many nodes are alive."""
        deadline = time.monotonic() + _START_S
        while self.count() != num_nodes:
            assert time.monotonic() < deadline, f"no {num_nodes} nodes after {_START_S} s: {self._log()}"
            for name, node in list(self._nodes.items()):
                if node.poll() is not None:  # on a busy machine the 30 s that Ray gives a node may be too few
                    self._start(name, *self._started[name])
            time.sleep(0.5)

    def submit(self, runtime_env: dict[str, Any], *command: object, timeout_s: float = 1200) -> str:
        """Submit `python -m curation COMMAND` with the working tree as `ray job submit` does; returns what it says.

        The call fails unless the job succeeds.
        """
        submit = [
            *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", self.job_server),
            *("--working-dir", ROOT, "--runtime-env-json", json.dumps(runtime_env), "--"),
            *("python", "-m", "curation", *command),
        ]
        deadline = time.monotonic() + _START_S
        while True:
            done = subprocess.run(
                [str(word) for word in submit], env=self._env, capture_output=True, text=True, timeout=timeout_s
            )
            if "No available agent" not in done.stderr or time.monotonic() > deadline:  # the head is still starting
                break
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def close(self) -> None:
        """End all nodes and remove their files."""
        for name in list(self._nodes):
            self.remove(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, cpus: int, *options: object) -> None:
        self._started[name] = (cpus, *options)
        temporary = self.folder / name
        temporary.mkdir(exist_ok=True)
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *("--num-cpus", cpus, "--object-store-memory", 100_000_000, "--temp-dir", temporary / "ray"),
            # An address of its own for every node: a driver joins the node that has the address of its machine.
            *("--node-ip-address", f"127.0.0.{1 + list(self._started).index(name)}"),
            # Ports that are not chosen here the agents must tell in 15 s, or the node ends.
            *("--dashboard-agent-listen-port", _free_port(), "--dashboard-agent-grpc-port", _free_port()),
            *("--metrics-export-port", _free_port(), "--runtime-env-agent-port", _free_port(), *options),
        ]
        log = open(self.folder / f"{name}.log", "w")  # noqa: SIM115  (the node's for all its life)
        self._nodes[name] = subprocess.Popen(
            [str(word) for word in command],
            env=self._env | {"TMPDIR": str(self._scratch.get(name, temporary))},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _log(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _end(node: subprocess.Popen) -> None:
    try:
        below = psutil.Process(node.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    node.kill()
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    node.wait()
    psutil.wait_procs(below, timeout=10)
