"""Commands whose reader has gone (`... | head -1`) end without a word, as the tools of the system do, and a name that
cannot be written in the encoding of a terminal fails none."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 141  # what a shell says of a process that SIGPIPE ended


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Around all that a command does and prints: exits with `STATUS` when nobody reads standard output any more.

    A broken pipe to anything else (a worker, a store) stays the error that it is. Characters that standard output has
    none for are escaped, as on standard error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        except SystemExit:  # after help, which may still be in the buffer
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # Rich, which prints help, exits by itself and has then put another file in the place of standard output.
        was_rich = isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
        if not was_rich and not (isinstance(error, BrokenPipeError) and _has_lost_reader()):
            raise
        _discard_the_rest()
        raise SystemExit(STATUS) from None


def _has_lost_reader() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(1, 0)  # errors are told unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_the_rest() -> None:
    """Standard output goes nowhere from now on, so that what is still in the buffer is no error at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
