"""Where summaries and tables are printed."""

from __future__ import annotations

from rich.console import Console


def make_console() -> Console:
    """Standard output, with texts as they are: `[x]` and `:cat:` are parts of names. A log file is taken to be wide."""
    as_it_is = {"markup": False, "emoji": False, "highlight": False}
    console = Console(**as_it_is)
    return console if console.is_terminal else Console(width=180, **as_it_is)
