"""What a search for sources met and did not take, and how that is told."""

from __future__ import annotations

import os
import posixpath
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from manifests.console import few
from manifests.storage import printable


def ending_of(name: str) -> str:
    """Of a file, in lower case without the dot; empty where it has none."""
    return posixpath.splitext(posixpath.basename(name))[1].lower().removeprefix(".")


@dataclass(slots=True)
class LeftOut:
    """Names of files and folders, as text."""

    datasets: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    """Files with endings that are not searched for."""
    closed: set[str] = field(default_factory=set)
    """Folders that may not be read."""
    links: set[str] = field(default_factory=set)
    """Links to folders, which are not followed."""

    def add_closed(self, entries: Iterable[dict[str, Any]], folder: str) -> None:
        """Of the entries of a search below a local `folder` those that it could not look into or did not follow."""
        for entry in entries:
            name = entry["name"]
            if name == folder or "/." in name.removeprefix(folder):
                continue
            if entry["type"] == "directory" and not os.access(name, os.R_OK | os.X_OK):
                self.closed.add(printable(name))
            elif entry.get("islink") and os.path.isdir(name):
                self.links.add(printable(name))

    def tell(self) -> None:
        """A line of each kind on standard error."""
        if self.datasets:
            _say(f"data sets among the inputs are left out: {few(sorted(self.datasets), 3)}")
        if self.closed:
            _say(f"{len(self.closed)} folders may not be read and are left out, such as {min(self.closed)}")
        if self.links:
            such = f"{len(self.links)} links to folders are left out, such as {min(self.links)}"
            _say(f"{such}; name a link itself to have what it leads to")
        if self.hidden:
            _say(f"{len(self.hidden)} hidden files are left out, such as {min(self.hidden)}")
        if self.others:
            counts = Counter(f".{ending}" if (ending := ending_of(name)) else "none" for name in self.others)
            common = sorted(counts, key=lambda ending: (-counts[ending], ending))
            told = ", ".join(f"{ending} ({counts[ending]})" for ending in common[:5])
            more = f" and {len(common) - 5} more endings" if len(common) > 5 else ""
            _say(
                f"{len(self.others)} files are left out for their endings: {told}{more}; name a file itself to have it,"
                " or its ending with --index.video-extensions or --index.still-extensions"
            )


def _say(line: str) -> None:
    print(line, file=sys.stderr)
