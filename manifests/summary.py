"""The summary of a data set: what `python -m manifests DATASET` shows, put together from the named queries."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import duckdb
from rich import box
from rich.console import Console
from rich.table import Table

from manifests.console import in_hours, make_console, shorten
from manifests.query import ask
from manifests.schema import SCHEMA_VERSION
from manifests.storage import Place, is_local, list_files
from manifests.store import Dataset

MAX_ROWS = 8
_MAX_CELL = 120  # characters; some licences are whole texts, and errors tell most at their beginning
_FOLDERS = ("shards", "manifests", "staging", "report")
_SECTIONS = {
    "splits": "Splits",
    "rejections": "Why clips were rejected",
    "licences": "Licences",
    "sources_status": "Sources",
    "costs": "Work",
    "runs": "Runs",
}


def print_summary(db: duckdb.DuckDBPyConnection, dataset: Dataset, console: Console | None = None) -> None:
    """Print what is in a data set: plain lines in a pipe, tables on a terminal."""
    console = console or make_console()
    command = f"python -m manifests {shlex.quote(str(dataset.root))}"
    (overview,) = rows_of(ask(db, "overview"))
    console.print(_heading(db, dataset, overview))
    for name, title in _SECTIONS.items():
        print_rows(console, title, rows_of(ask(db, name)), more=f"{command} {name}")
    sizes = [{"folder": f"{name}/", **folder_size(dataset.root / name)} for name in _FOLDERS]
    print_rows(console, "Disk", [row for row in sizes if row["num_files"]])
    if leaks := [row["what"] for row in rows_of(ask(db, "split_leaks"))]:
        console.print(f"LEAK: {', '.join(sorted(set(leaks)))} in two splits: {command} split_leaks", soft_wrap=True)


def _heading(db: duckdb.DuckDBPyConnection, dataset: Dataset, overview: dict[str, object]) -> Table:
    o = overview
    table = Table(title="Data set", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_row("folder", str(dataset.root))
    video = in_hours(o["source_hours"])
    table.add_row("sources", f"{o['num_usable']:,} usable of {o['num_sources']:,}, {video} of video")
    table.add_row("clips", f"{o['num_kept']:,} kept of {o['num_clips']:,}, {in_hours(o['kept_hours'])}")
    table.add_row("frames", f"{o['num_frames']:,} in kept clips, of which {o['num_stills']:,} are stills")
    table.add_row("identities", f"{o['num_identities']:,} persons in kept clips")
    table.add_row("duplicates", f"{o['num_duplicates']:,} clips show the footage of a kept clip")
    table.add_row(
        "problems",
        f"{o['num_failures']:,} units of work failed or found nothing (sources_failed: they and unusable files)",
    )
    if o["num_forgotten"]:
        table.add_row("forgotten", f"{o['num_forgotten']:,} tombstones keep out what was removed (forgotten)")
    analysers = {(row["analyser"], row["licence"]) for row in rows_of(ask(db, "analysers"))}
    for name, licence in sorted(analysers, key=str):
        table.add_row("analyser", f"{name} ({licence or 'licence unknown'})")
    table.add_row("schema", f"version {SCHEMA_VERSION}")
    return table


def print_rows(console: Console, title: str, rows: list[dict[str, object]], more: str = "") -> None:
    """Print rows as a titled table: at most `MAX_ROWS`, and the command `more` that shows all of them; long texts are
    shortened."""
    if not rows:
        return
    look = {"box": box.SIMPLE_HEAD} if console.is_terminal else {"box": None, "pad_edge": False}
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", **look)
    formats = {name: _format_of(name) for name in rows[0]}
    for name, value in rows[0].items():
        is_number = isinstance(value, (int, float)) or formats[name] is not str
        table.add_column(_header(name), justify="right" if is_number else "left", overflow="fold")
    for row in rows[:MAX_ROWS]:
        texts = ("" if value is None else formats[name](value) for name, value in row.items())
        table.add_row(*(shorten(text, _MAX_CELL) for text in texts))
    console.print()
    console.print(table)
    if len(rows) > MAX_ROWS:
        console.print(f"... and {len(rows) - MAX_ROWS} more: {more}", highlight=False, soft_wrap=True)


def rows_of(relation: duckdb.DuckDBPyRelation) -> list[dict[str, object]]:
    """The answer as a list of dicts."""
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def folder_size(folder: Place) -> dict[str, int]:
    """Number and bytes of the files below a folder."""
    if not is_local(folder):
        sizes = list_files(folder, below=True).values()
        return {"num_files": len(sizes), "size_bytes": sum(sizes)}
    num_files = size_bytes = 0
    pending = [folder] if folder.is_dir() else []
    while pending:
        with suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:  # a run may be at work there
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                with suppress(FileNotFoundError):
                    size_bytes += entry.stat(follow_symlinks=False).st_size
                    num_files += 1
    return {"num_files": num_files, "size_bytes": size_bytes}


def file_bytes(value: float) -> str:
    """A size with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.2f} TB"


def _format_of(column: str) -> Callable[[object], str]:
    if column.endswith("_bytes"):
        return file_bytes
    if column in ("hours", "hours_only", "worker_hours", "video_hours"):
        return in_hours
    if column.endswith("_s"):
        return lambda value: f"{value:.1f} s"
    if column == "share":
        return lambda value: f"{value:.1%}"
    if column.startswith("num_"):
        return lambda value: f"{value:,}"
    return str


def _header(column: str) -> str:
    """A column's name as a person would say it; the values carry their units."""
    known = {
        "hours": "time",
        "hours_only": "only it, time",
        "num_only": "only it",
        "size_bytes": "size",
        "shard_bytes": "size",
    }
    plain = column.removeprefix("num_").removesuffix("_bytes").removesuffix("_s")
    return known.get(column, plain.replace("hours", "time")).replace("_", " ")
