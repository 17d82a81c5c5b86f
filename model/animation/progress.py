"""Progress of an animation: a bar on a terminal, lines in a log, or whatever a caller wants to do with the numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Report = Callable[[str, int, int | None], None]
"""(stage, frames done, frames in all or None)."""

LOG_EVERY_S = 10.0


def ignore(stage: str, done: int, total: int | None) -> None:
    """Report to nobody."""


def counted(items: Iterable[Item], stage: str, total: int | None, report: Report) -> Iterator[Item]:
    """Pass items on and report each one."""
    report(stage, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        report(stage, done, total)


class TerminalReport:
    """One refreshed line a stage on a terminal, else a line every ten seconds; on stderr."""

    def __init__(self) -> None:
        self._stage = ""
        self._start = self._last = 0.0
        self._is_terminal = sys.stderr.isatty()
        self._has_open_line = False

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._start, self._last = stage, now, now - (LOG_EVERY_S if self._is_terminal else 0)
        is_last = total is not None and done >= total
        if not is_last and now - self._last < (0.1 if self._is_terminal else LOG_EVERY_S):
            return
        self._last = now
        rate = done / (now - self._start) if now > self._start else 0.0
        line = f"{stage}: {done}" + (f"/{total}" if total else "") + (f" frames, {rate:.2g} frames/s" if done else "")
        if total and rate and not is_last:
            line += f", {(total - done) / rate:.0f} s left"
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            self._has_open_line = True
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line that is being refreshed."""
        if self._has_open_line:
            sys.stderr.write("\n")
            self._has_open_line = False
