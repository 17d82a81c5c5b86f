"""SIGTERM while Ray starts, which takes it for itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from model.termination import Terminated


@contextmanager
def sigterm_kept_from_ray() -> Iterator[None]:
    """Around `ray.init`, which installs a handler that ends the process in the middle of everything."""
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
