"""A child process that does the dangerous work: decoding foreign files and running foreign networks.

A file that crashes a decoder or hangs it costs that file alone: the child is ended, a new one started, and the caller
gets a `SandboxError` instead of a result. The child ends itself when its parent is gone.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from manifests.storage import StoreUnreachable

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class SandboxError(Exception):
    """The child died or overran its deadline. `reason` is a short code, the message says it in words."""

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
        self._process: Any = None
        self._pipe: Connection | None = None

    def __call__(self, argument: Any, deadline_s: float | None = None) -> Any:
        """The worker's result.

        Raises:
            SandboxError: the child died ("crashed") or took longer than the deadline ("deadline").
            FatalError: no argument can work: the worker cannot be built, or the object store is out of reach.
            NoSpaceError: the disk is full or read-only.
            RuntimeError: what the worker itself raised, as words.
        """
        if self._process is None:
            self._start()
        assert self._pipe is not None
        deadline_s = deadline_s or self._deadline_s
        try:
            self._pipe.send(argument)
            if not self._pipe.poll(deadline_s):
                self.close()
                raise SandboxError("deadline", f"took longer than {deadline_s:.0f} s and was ended")
            status, value = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join(5)
            code = self._process.exitcode
            self.close()
            raise SandboxError("crashed", f"the worker process died: {_describe_exit(code)}") from error
        if status == "no_space":
            raise NoSpaceError(value)
        if status == "fatal":
            raise FatalError(value)
        if status == "error":
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        """End the child at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            assert self._pipe is not None
            self._pipe.close()
        self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        life, child_life = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(self._make, child_pipe, life), daemon=True)
        self._process.start()
        child_pipe.close()
        life.close()
        self._life = child_life  # held open: its closing tells the child that this process is gone


def _serve(make: Callable[[], Callable[[Any], Any]], pipe: Connection, life: Connection) -> None:
    """The child: build the worker, then answer until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
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
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return "no_space"
    # A foreign web server that breaks off costs the file that it serves.
    return "fatal" if isinstance(error, StoreUnreachable) else "error"


def _end_with_parent(life: Connection) -> None:
    try:
        life.recv()
    except (EOFError, OSError):
        os._exit(1)


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "no exit status"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"
