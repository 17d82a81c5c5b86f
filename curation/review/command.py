"""The command: builds the page under the data set's lock, with a line of progress, and opens it."""

from __future__ import annotations

import os
import sys
import time
import webbrowser
from pathlib import Path

from curation.lock import only_run_where_allowed
from curation.review.build import build
from manifests.storage import Place, require_local
from manifests.store import Dataset

_EVERY_S = 0.5


def review(folder: str | Place, output: Path | None, *, open_page: bool, read_sources: bool, max_clips: int) -> Path:
    """Build the page of the data set in `folder`, print where it is, and open it where there is a screen."""
    dataset = Dataset(folder)
    if output is not None:
        require_local(output, "name a local folder for the page; --output")
    with only_run_where_allowed(dataset):  # or a page could show what is being forgotten
        path = build(
            dataset,
            None if output is None else output.expanduser(),
            read_sources=read_sources,
            max_clips=max_clips,
            progress=_Line(),
        )
    print(path)
    if open_page and _has_screen():
        webbrowser.open(path.resolve().as_uri())
    return path


class _Line:
    """One refreshed line on a terminal, nothing in a log."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last = self._start

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or (done < total and now - self._last < _EVERY_S):
            return
        self._last = now
        rate = done / max(now - self._start, 1e-6)
        end = "\n" if done == total else ""
        rest = f"  ETA {(total - done) / rate:.0f} s" if done < total else ""
        sys.stderr.write(f"\r\x1b[2Kstrips {done}/{total}  {rate:.0f}/s{rest}{end}")
        sys.stderr.flush()


def _has_screen() -> bool:
    """Whether a browser has somewhere to show itself; text browsers in the terminal are not meant."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY"))
