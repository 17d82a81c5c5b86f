"""index: list the inputs, hash their content, probe what they are. One unit is one file.

A source is content, not a place: the same bytes found twice are one source with two URIs (see `places`).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from curation.fetching import copying_s, local_copy, version_of
from curation.left_out import LeftOut, ending_of
from curation.places import STATED, hash_file
from curation.recipe import IndexOptions, Recipe
from curation.source_lists import read_source_list
from curation.units import UnitResult
from manifests.errors import NoBucket, ObjectUnreachable
from manifests.storage import filesystem_of, full_path, map_places, printable
from model.stills import open_still
from model.video import VideoError, index_packets, probe_video

_LIST_EXTENSIONS = ("csv", "parquet")
_NO_FILE = "no_regular_file"
_GLOB_CHARACTERS = "*?["
_FIRST_COUNTS = ("MPO", "TIFF", "WEBP")
"""Files of several pictures of which the first is a still. Of an animation in WebP, too: FFmpeg does not read it."""


def list_inputs(inputs: list[str], options: IndexOptions) -> list[dict[str, Any]]:
    """One unit a file: name (a fingerprint of place, size, time and columns), uri, size_bytes, changed, columns.

    `inputs` are files, folders (searched below), globs, fsspec URLs of any of these, or lists: a CSV or Parquet file
    with a column `uri` (relative to the list; `~` is the home folder) and any further columns, which are None of a file
    that no list with further columns names; `uri`, `licence` (or
    `license`), `attribution` and `consent` may be written in any case. Data sets that are met in a search are left out,
    which is said on standard error: what they hold are results. So is what is hidden below a folder (`.Trash`,
    `.thumbnails`, `._copy.mp4`).

    Raises:
        ValueError: an input is empty, not there, a data set or no regular file; a folder or glob holds nothing; a list
            cannot be read (see `read_source_list`); or a file is listed twice with different licences, attributions or
            consents.
    """
    units: dict[str, dict[str, Any]] = {}
    left_out = LeftOut()
    for text in inputs:
        if not text.strip():
            raise ValueError("the name of an input is empty: for all below the current folder write .")
        for entry in _expand(text, options, left_out):
            known = units.setdefault(entry["uri"], entry)
            known["columns"] = _joined_columns(entry["uri"], known["columns"], entry["columns"])
    left_out.tell()
    for unit in units.values():
        size = unit["size_bytes"]
        said = [] if unit["columns"] is None else sorted(unit["columns"].items()) or "empty cells"
        mark = f"{unit['uri']}|{size}|{unit['changed']}|{said}"
        unit["expected_s"] = 0.02 + (size or 0) / 300e6 + copying_s([unit])
        unit["name"] = hashlib.sha256(mark.encode()).hexdigest()[:16]
    return [units[uri] for uri in sorted(units)]


def _joined_columns(uri: str, first: dict[str, str] | None, second: dict[str, str] | None) -> dict[str, str] | None:
    """What two inputs say of one file; of further columns the first counts."""
    if first is None or second is None:
        return second if first is None else first
    for name in STATED:
        if first.get(name, second.get(name)) != second.get(name, first.get(name)):
            raise ValueError(f"{uri} is listed twice, with the {name} {first[name]!r} and {second[name]!r}")
    return second | first


def _expand(text: str, options: IndexOptions, left_out: LeftOut) -> Iterator[dict[str, Any]]:
    filesystem, path = filesystem_of(os.path.expanduser(text))
    is_local = filesystem.protocol in ("file", ("file", "local"))
    if is_local:
        path = full_path(path)
    if path.rsplit(".", 1)[-1].lower() in _LIST_EXTENSIONS and filesystem.isfile(path):
        yield from _listed(text, filesystem, path)
        return
    datasets: list[str] = []
    why_nothing = "no file matches it"
    if any(c in path for c in _GLOB_CHARACTERS) and not filesystem.exists(path):
        found = filesystem.glob(path, detail=True)
        if "/" in path.removeprefix(_fixed_part(path)).strip("/"):  # it reaches into folders
            met = filesystem.find(_fixed_part(path), detail=True, withdirs=is_local)
            datasets = _datasets_among(met)
            if is_local:
                left_out.add_closed(met.values(), _fixed_part(path))
        wanted = _files_of(filesystem, found.values(), datasets)
    elif filesystem.isdir(path):
        endings = (*options.video_extensions, *options.still_extensions)
        met = filesystem.find(path, detail=True, withdirs=is_local)
        found = {name: info for name, info in met.items() if info["type"] != "directory"}
        datasets = _datasets_among(found)
        if is_local:
            left_out.add_closed(met.values(), path)
        shown = [f for f in found.values() if "/." not in f["name"].removeprefix(path.rstrip("/"))]
        of_media = {f["name"] for f in found.values() if ending_of(f["name"]) in endings}
        left_out.hidden.update(map(printable, of_media.difference(f["name"] for f in shown)))
        wanted = _files_of(filesystem, (f for f in shown if f["name"] in of_media), datasets)
        others = _files_of(filesystem, (f for f in shown if f["name"] not in of_media), datasets)
        left_out.others.update(f["name"] for f in others)
        apart = "hidden ones and those of data sets apart"
        why_nothing = f"no file with a known ending, {apart} ({len(found)} files in all)"
    elif filesystem.exists(path):
        wanted = [filesystem.info(path)]
        if (problem := _problem(wanted[0])) and problem[0] == _NO_FILE:
            raise ValueError(f"{text} cannot be curated: {problem[1]}")
    else:
        raise ValueError(f"no such file or folder: {text}")
    if path in datasets:
        raise ValueError(f"{text} is a data set: name the folder of its sources, or a folder in it")
    left_out.datasets.update(printable(name if is_local else filesystem.unstrip_protocol(name)) for name in datasets)
    if not wanted:
        left_out.tell()
        raise ValueError(f"nothing to curate in {text}: {why_nothing}")
    if is_local or all(info.get("size") is not None for info in wanted):
        for info in wanted:
            yield _entry(info["name"] if is_local else filesystem.unstrip_protocol(info["name"]), info, None)
    else:  # a web server's page of a folder says nothing of the files that it names
        uris = [filesystem.unstrip_protocol(info["name"]) for info in wanted]
        yield from map_places(lambda uri: _look_up(uri, None), uris)


def _datasets_among(names: Iterable[str]) -> list[str]:
    """Of all files below a folder, the folders with a recipe.toml and manifests/."""
    names = list(names)
    folders = {name.removesuffix("/recipe.toml") for name in names if name.endswith("/recipe.toml")}
    return sorted(f for f in folders if any(name.startswith(f"{f}/manifests/") for name in names))


def _fixed_part(pattern: str) -> str:
    """The folder that a glob searches."""
    return re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]


def _files_of(filesystem: Any, found: Iterable[dict[str, Any]], left_out: list[str]) -> list[dict[str, Any]]:
    """Of what was found, all but folders and what is in those that are left out; links are what they lead to. In a
    bucket an object `folder/` stands for a folder."""
    outside = tuple(f"{folder}/" for folder in left_out)
    found = [i for i in found if not i["name"].startswith(outside) and not i["name"].endswith("/")]
    followed = [info if info["type"] in ("file", "directory") else _follow(filesystem, info) for info in found]
    return [info for info in followed if info["type"] != "directory"]


def _follow(filesystem: Any, info: dict[str, Any]) -> dict[str, Any]:
    try:
        return filesystem.info(info["name"])
    except OSError:  # a link to nothing fails when it is read, as any missing file
        return info


def _problem(info: dict[str, Any]) -> tuple[str, str] | None:
    """Reason and message of a file that is not opened: a pipe would never end, and tables hold text, not any bytes."""
    try:
        info.get("name", "").encode()
    except UnicodeEncodeError:
        return "no_utf8_name", "the file's name is no UTF-8: rename the file"
    if info.get("type", "file") == "file" or _leads_nowhere(info):
        return None
    what = "a folder" if info["type"] == "directory" else "a pipe, a socket or a device"
    return _NO_FILE, f"expected a regular file, got {what}: leave it out or name a file"


def _leads_nowhere(info: dict[str, Any]) -> bool:
    return bool(info.get("islink")) and not os.path.exists(info["name"])


def _entry(uri: str, info: dict[str, Any], columns: dict[str, str] | None) -> dict[str, Any]:
    """A unit of `list_inputs`; its size is None where nothing is there."""
    size = None if _leads_nowhere(info) else info.get("size")
    entry = {"uri": printable(uri), "size_bytes": size, "changed": version_of(info), "columns": columns}
    problem = _problem(info)
    return entry | {"problem": problem} if problem else entry


def _listed(text: str, filesystem: Any, path: str) -> Iterator[dict[str, Any]]:
    """The entries of what a source list names."""
    listed = read_source_list(text, filesystem, path)
    refusals: list[PermissionError] = []

    def look_up(row: tuple[str, dict[str, str] | None]) -> dict[str, Any]:
        try:
            return _look_up(*row)
        except PermissionError as error:  # as one that is not there
            refusals.append(error)
            return _entry(row[0], {}, row[1])

    entries = map_places(look_up, listed, where=lambda row: row[0] if "://" in row[0] else Path(row[0]))
    if refusals and len(refusals) == len(entries):
        raise refusals[0]
    yield from entries


def _look_up(uri: str, columns: dict[str, str] | None) -> dict[str, Any]:
    """The entry of a listed file; one that is not there fails alone when it is read."""
    filesystem, path = filesystem_of(uri)
    if filesystem.protocol in ("file", ("file", "local")):
        path = full_path(path)
        return _entry(path, filesystem.info(path) if filesystem.exists(path) else {}, columns)
    try:
        return _entry(uri, filesystem.info(path), columns)
    except (FileNotFoundError, NoBucket, ObjectUnreachable):
        return _entry(uri, {}, columns)


class IndexStage:
    """Makes one row of `sources` of one file."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._options = recipe.index

    def process(self, unit: dict[str, Any]) -> UnitResult:
        """Hash and probe `unit["uri"]`; a file that cannot be used becomes a rejected row with its reason.

        A unit with a `problem` (reason, message) is not opened: it fails with that.
        """
        result = UnitResult()
        if problem := unit.get("problem"):
            result.fail("index", unit, *problem)
            return result
        try:
            with local_copy(unit["uri"], result) as path:
                digest = hash_file(path)
                row = _describe(path, self._options)
                result.rows["sources"] = [row]
        except (FileNotFoundError, NoBucket) as error:
            result.fail("index", unit, "not_found", f"there is no such file ({error.__cause__ or error})")
            return result
        place = {name: unit[name] for name in ("uri", "size_bytes", "changed", "columns")} | {"unit": unit["name"]}
        row |= {"source_id": digest[:16], "content_sha256": digest, "uris": [unit["uri"]], "places": [place]}
        return result


def _describe(path: str, options: IndexOptions) -> dict[str, Any]:
    size = os.path.getsize(path)
    row: dict[str, Any] = {"kind": "video", "size_bytes": size}
    if size == 0:
        return row | {"status": "rejected", "reason": "empty_file", "detail": "the file has 0 bytes"}
    still = _describe_still(path)
    if still is not None:
        return row | still
    try:
        info = probe_video(path)
    except VideoError as error:
        if error.reason == "still_image":  # which Pillow could not open
            row |= {"kind": "still"}
            error = VideoError("damaged_still", "a picture that cannot be read; save it again, as JPEG or PNG")
        return row | {"status": "rejected", "reason": error.reason, "detail": str(error)}
    return row | {
        "status": "ok",
        "container": info.container,
        "codec": info.codec,
        "pix_fmt": info.pix_fmt,
        "width_px": info.width,
        "height_px": info.height,
        "coded_width_px": info.coded_width,
        "coded_height_px": info.coded_height,
        "pixel_aspect": float(info.sar),
        "rotation_deg": info.rotation_deg,
        "fps": info.fps,
        "is_variable_fps": info.is_vfr,
        "duration_s": info.duration_s,
        "num_frames": info.num_frames_in_header,
        "has_audio": info.has_audio,
        "audio_codec": info.audio_codec,
        "spans": _make_spans(path, info.duration_s, options.max_span_s),
    }


def _make_spans(path: str, duration_s: float | None, max_span_s: float) -> list[dict[str, Any]]:
    """Even pieces of a video of at most `max_span_s`, but for those without frames. The whole has open ends (None).

    Frame numbers come from the packets' time stamps, without decoding. Raises nothing: a file without time stamps is
    one span.
    """
    whole = {"start_frame": 0, "start_pts": None, "end_pts": None}
    if duration_s is not None and duration_s <= max_span_s:
        return [whole]
    packets = index_packets(path)
    if len(packets.pts) < 2:
        return [whole]
    count = math.ceil((packets.pts_s[-1] - packets.pts_s[0]) / max_span_s - 1e-6)
    edges = np.linspace(packets.pts[0], packets.pts[-1], max(count, 1) + 1)[1:-1]
    frames = np.unique([0, *np.searchsorted(packets.pts, edges)]).tolist()
    starts = [None, *(int(packets.pts[frame]) for frame in frames[1:])]
    ends = [*starts[1:], None]
    return [
        {"start_frame": frame, "start_pts": start, "end_pts": end}
        for frame, start, end in zip(frames, starts, ends, strict=True)
    ]


def _describe_still(path: str) -> dict[str, Any] | None:
    """A row for a picture, rejected where Pillow cannot read all of it; None for what is no picture or moves."""
    try:
        with open_still(path) as image:
            kind = image.format or ""
            if getattr(image, "n_frames", 1) > 1 and kind not in _FIRST_COUNTS:
                return None  # an animation: for the video reader
            mode, coded = image.mode, image.size
            picture = ImageOps.exif_transpose(image)
            picture.load()
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        return {"kind": "still", "status": "rejected", "reason": "too_large", "detail": f"scale it down: {error}"}
    except (OSError, SyntaxError, ValueError) as error:
        return {"kind": "still", "status": "rejected", "reason": "damaged_still", "detail": str(error)}
    return {
        "kind": "still",
        "status": "ok",
        "container": kind.lower(),
        "codec": kind.lower(),
        "pix_fmt": mode,
        "width_px": picture.width,
        "height_px": picture.height,
        "coded_width_px": coded[0],
        "coded_height_px": coded[1],
        "pixel_aspect": 1.0,
        "rotation_deg": 0,
        "num_frames": 1,
        "has_audio": False,
        "spans": [{"start_frame": 0, "start_pts": None, "end_pts": None}],
    }
