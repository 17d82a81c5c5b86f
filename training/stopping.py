"""How a run is asked to stop: by SIGTERM or Ctrl-C, after the step that it is at."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class StopRequest:
    """Whether somebody asked this process to stop."""

    made: bool = False
    by: int = 0
    """The signal."""


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """SIGTERM and SIGINT set the flag; a second SIGINT interrupts at once."""
    request = StopRequest()

    def handle(number: int, frame: Any) -> None:
        if request.made and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.made, request.by = True, number

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
