"""SIGTERM, as schedulers send it, and SIGHUP, of a closed terminal: they end a command in order, as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command as Ctrl-C does."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the main thread, so that unfinished files are removed.

    So does SIGHUP, where it is not ignored (`nohup`). A terminal's end sends it more than once: the first counts.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can signals be taken
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        raise Terminated

    is_deaf = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = (signal.SIGTERM,) if is_deaf else (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, terminate) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
