"""Builds the review page of a data set: strips of pictures first, `index.html` last, in one rename each."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from curation.recipe import recipe_of
from curation.review.content import page_content, read_clips
from curation.review.strips import STRIPS_FOLDER, make_strips, remove_strips_except
from manifests.storage import require_local
from manifests.store import Dataset, write_bytes_atomically

MAX_CLIPS = 50_000
_MARK = '<meta name="generator" content="portrait curation review">'
_SCRIPTS = (
    *("data.js", "format.js", "elements.js", "strip.js", "rules.js", "plots.js", "virtual.js", "overview.js"),
    *("filters.js", "clips.js", "detail.js", "sliders.js", "thresholds.js", "groups.js", "main.js"),
)


def build(
    dataset: Dataset,
    output: Path | None = None,
    *,
    read_sources: bool = True,
    max_clips: int = MAX_CLIPS,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the page of a data set; returns the path of its index.html. The same data set gives the same bytes.

    Strips that are there already are kept, strips of clips that the page does not show any more are removed. A build
    that is killed leaves the page as it was before.

    Args:
        output: folder of the page; default: report/ of the data set.
        read_sources: draw rejected clips from their sources when their crops are not staged any more.
        max_clips: of a larger data set the page shows this many clips, drawn evenly; totals are of all.
        progress: called with strips done and strips to do.

    Raises:
        ValueError: there is no data set, it has no clips yet, `output` holds other things, or max_clips is less
            than 1.
    """
    if max_clips < 1:
        raise ValueError(f"--max-clips is {max_clips}, expected 1 or more")
    if output is None:
        require_local(dataset.root, "name a local folder for the page with --output:")
    folder = dataset.report if output is None else output
    recipe = recipe_of(dataset.root)
    _check_output(folder, is_report=output is None)
    clips, num_all = read_clips(dataset, max_clips)
    if num_all == 0:
        raise ValueError(f"{dataset.root} has no clips yet, so there is nothing to look at: `run` makes them")
    strips = make_strips(dataset, clips, recipe, folder, read_sources=read_sources, progress=progress)
    content = page_content(dataset, recipe, clips, strips)
    path = folder / "index.html"
    write_bytes_atomically(path, render_page(content).encode())
    remove_strips_except(folder / STRIPS_FOLDER, {strip.name for strip in strips if strip.name})
    return path


def render_page(content: dict[str, Any]) -> str:
    """The page as one HTML document around its content.

    Its policy forbids every connection and every script but its own, whatever the data set's texts say.
    """
    package = resources.files("curation.review") / "page"
    script = "(() => {\n'use strict';\n" + "\n".join((package / name).read_text("utf-8") for name in _SCRIPTS) + "})();"
    style = (package / "page.css").read_text("utf-8")
    data = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src 'self' file: data:; "
        f"script-src 'sha256-{_digest(script)}'; style-src 'sha256-{_digest(style)}'"
    )
    parts = {
        "MARK": _MARK,
        "POLICY": policy,
        "STYLE": style,
        "SCRIPT": script,
        "DATA": data.replace("<", "\\u003c"),  # nothing in it can end the element that it stands in
    }
    template = (package / "page.html").read_text("utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], template)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _check_output(folder: Path, *, is_report: bool) -> None:
    """is_report: the data set's own folder, where other reports lie, too."""
    page = folder / "index.html"
    if page.is_file():
        if _MARK.encode() not in page.read_bytes()[:2000]:
            raise ValueError(f"{page} is a page of something else and would be overwritten: choose another --output")
    elif not is_report and folder.is_dir() and any(map(_is_of_others, folder.iterdir())):
        raise ValueError(f"{folder} holds other things and no page of a data set: choose another --output")


def _is_of_others(path: Path) -> bool:
    """Whether a build that was killed before it had a page did not leave this."""
    return path.name != STRIPS_FOLDER and not path.name.startswith(".index.html.")
