"""A child process that does the dangerous work: decoding foreign files and running foreign networks.

A file that crashes a decoder or hangs it costs that file alone: the child is ended, a new one started, and the caller
gets a `SandboxError` instead of a result. The child ends itself when its parent is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from manifests.errors import ObjectUnreachable, StoreUnreachable
from manifests.scratch import tells_of_no_room


class SandboxError(Exception):
    """The child died, overran its deadline or was refused a file or memory. `reason` is a short code, the message says
    it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class FatalError(Exception):
    """Work cannot go on, whatever the argument. The message says why and what to do."""


class NoSpaceError(FatalError):
    """A disk is full or read-only."""


class Sandbox:
    """Runs `make()(argument)` for many arguments in one child process that is replaced when it dies.

    `make` is a picklable function without arguments that builds the worker function in the child, once per child.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], deadline_s: float) -> None:
        self._make = make
        self._deadline_s = deadline_s
        self._process: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    def __call__(self, argument: Any, deadline_s: float | None = None) -> Any:
        """The worker's result.

        Raises:
            SandboxError: the child died ("crashed") or was killed, as by a system that is short of memory, or got no
                memory ("killed"), took longer than the deadline ("deadline"), or was refused a file by the system or a
                store ("unreadable").
            FatalError: no argument can work: the child cannot be started, or the worker not be built, or the object
                store is out of reach.
            NoSpaceError: the disk is full or read-only.
            RuntimeError: what the worker itself raised, as words.
        """
        deadline_s = deadline_s or self._deadline_s
        try:
            if self._process is None:
                self._start()
            assert self._pipe is not None
            self._pipe.send(argument)
            if not self._pipe.poll(deadline_s):
                self.close()
                raise SandboxError("deadline", f"took longer than {deadline_s:.0f} s and was ended")
            status, value = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            code = self._exit_code()
            self.close()
            reason = "killed" if code == -signal.SIGKILL else "crashed"
            raise SandboxError(reason, f"the worker process died: {_describe_exit(code)}") from error
        if status == "no_space":
            raise NoSpaceError(value)
        if status == "fatal":
            raise FatalError(value)
        if status in ("unreadable", "killed"):
            raise SandboxError(status, value)
        if status == "error":
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        """End the child at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._pipe is not None
            self._pipe.close()
            self._life.close()
        self._process = self._pipe = None

    def _exit_code(self) -> int | None:
        assert self._process is not None
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:
            return None

    def _start(self) -> None:
        try:
            self._launch()
        except OSError as error:  # the system has no process or no file left for it
            raise FatalError(f"cannot start a worker process: {error}") from error
        assert self._pipe is not None
        self._pipe.send(self._make)

    def _launch(self) -> None:
        # Not by multiprocessing, whose children import the main module first: in an actor that is Ray, half a second.
        self._pipe, child_pipe = multiprocessing.Pipe()
        life, self._life = multiprocessing.Pipe(duplex=False)  # its closing tells the child that this process is gone
        places = [path or os.getcwd() for path in sys.path]
        with child_pipe, life:
            ends = child_pipe.fileno(), life.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from curation.sandbox import serve; serve{ends}"],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
                pass_fds=ends,
            )


def serve(pipe_end: int, life_end: int) -> None:
    """The child: build the worker, then answer until the parent is gone. It gets the ends of two pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    life = Connection(life_end, writable=False)
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
    pipe = Connection(pipe_end)
    make: Callable[[], Callable[[Any], Any]] = pipe.recv()
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        try:
            work = work or make()
        except Exception as error:
            pipe.send(("fatal", f"cannot start: {error}"))
            return
        try:
            answer = ("ok", work(argument))
        except Exception as error:
            answer = (_weigh(error), f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _weigh(error: Exception) -> str:
    if tells_of_no_room(error):
        return "no_space"
    if isinstance(error, MemoryError):
        return "killed"
    # A foreign web server that breaks off costs the file that it serves.
    if isinstance(error, StoreUnreachable):
        return "fatal"
    # Of a store that refuses a file or has none there is a sentence, but no number.
    is_of_place = isinstance(error, (ObjectUnreachable, TimeoutError, PermissionError, FileNotFoundError))
    is_of_system = isinstance(error, OSError) and error.errno is not None
    return "unreadable" if is_of_place or is_of_system else "error"


def _end_with_parent(life: Connection) -> None:
    try:
        life.recv()
    except (EOFError, OSError):
        os._exit(1)


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "no exit status"
    if code < 0:
        short = " (what a system does that is short of memory: fewer --workers need less)"
        return f"signal {signal.Signals(-code).name}{short if -code == signal.SIGKILL else ''}"
    return f"exit status {code}"
