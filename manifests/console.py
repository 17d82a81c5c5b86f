"""Where summaries and tables are printed, and how numbers and times are written there."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console


def shorten(text: str, most: int) -> str:
    """A text of source lists as one line of at most so many characters; "…" at its end where that is not all of it."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def make_console() -> Console:
    """Standard output, with texts as they are: `[x]` and `:cat:` are parts of names. A log file is taken to be wide."""
    as_it_is = {"markup": False, "emoji": False, "highlight": False}
    console = Console(**as_it_is)
    return console if console.is_terminal else Console(width=180, **as_it_is)


def amount(number: int, one: str, many: str = "") -> str:
    """`1 clip`, `2,000 clips`; many: the plural where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def few(names: Sequence[str], most: int = 4) -> str:
    """The first names of a list and how many more there are: `a, b, c, d and 2 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def clock(seconds: float) -> str:
    """`9:05`, `1:02:03` or `5 d 3 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def in_hours(value: float) -> str:
    """A length of video in hours; a short one in minutes or seconds."""
    if value >= 1:
        return f"{value:,.2f} h"
    return f"{value * 60:.1f} min" if value >= 1 / 60 else f"{value * 3600:.1f} s"
