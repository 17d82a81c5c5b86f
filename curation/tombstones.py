"""What was forgotten and must not come back: which sources, stretches of sources and faces are refused.

A tombstone names content, never a place: a source by the hash of its bytes, a clip by its source, its time and its
square in the picture, the track of a face by its source and its time. It holds nothing biometric, unless the embedding
of a face was kept on purpose so that new material of the same person is refused too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from curation.shard_plan import planned_bytes
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table

_SAME_PLACE = 0.45
"""Two squares show the same face when their centres are closer than this share of the larger side: a face strays up to
scan.reach (0.2) from the centre of each, and another person's face is outside the square altogether."""
_SQUARE = ("crop_center_x_px", "crop_center_y_px", "crop_size_px")
STRETCH = ("start_s", "end_s", *_SQUARE)
"""Columns of `clips` that tell where in a source a clip is."""


def source_tombstone(source: dict[str, Any]) -> dict[str, Any]:
    """Refuses the whole content of a source. source: its row of `sources`."""
    return _named({"kind": "source", "content_sha256": source["content_sha256"], "source_id": source["source_id"]})


def clip_tombstone(clip: dict[str, Any], content_sha256: str | None) -> dict[str, Any]:
    """Refuses one face in a stretch of a source. clip: its row of `clips`, or a candidate with its source_id."""
    row = {"kind": "clip", "content_sha256": content_sha256}
    row |= {name: clip[name] for name in ("source_id", "clip_id", *STRETCH)}
    if clip.get("split") is not None:
        row |= {"split": clip["split"], "planned_bytes": planned_bytes(clip)}
    return _named(row)


def track_tombstone(track: dict[str, Any], content_sha256: str | None) -> dict[str, Any]:
    """Refuses all faces in the time of a track; its place in the picture is not known. track: its row of `tracks`."""
    row = {name: track[name] for name in ("source_id", "start_s", "end_s")}
    return _named({"kind": "track", "content_sha256": content_sha256} | row)


def face_tombstone(embedding: np.ndarray, analyser: str, min_similarity: float) -> dict[str, Any]:
    """Refuses this face in whatever is scanned later. embedding: float32 [D], unit length."""
    values = [float(x) for x in embedding]
    return _named({"kind": "face", "embedding": values, "analyser": analyser, "min_similarity": min_similarity})


def _named(row: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps({k: v for k, v in row.items() if k not in ("split", "planned_bytes")}, sort_keys=True)
    return {"tombstone_id": hashlib.sha256(content.encode()).hexdigest()[:16]} | row


def add_tombstones(dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    """Add those that are not there yet."""
    old = read_table(dataset, "tombstones").to_pylist()
    known = {row["tombstone_id"] for row in old}
    merged = old + [row for row in rows if row["tombstone_id"] not in known]
    replace_table(dataset, "tombstones", make_table("tombstones", merged).sort_by("tombstone_id"))


def refused_contents(tombstones: list[dict[str, Any]]) -> set[str]:
    """SHA-256 of every source that is refused as a whole."""
    return {row["content_sha256"] for row in tombstones if row["kind"] == "source"}


def forgets(tombstones: list[dict[str, Any]]) -> Callable[[str], bool]:
    """Whether a name is the clip_id of a forgotten clip, or of any clip that a forgotten source ever had."""
    clips = {row["clip_id"] for row in tombstones if row["kind"] == "clip"}
    sources = {row["source_id"] for row in tombstones if row["kind"] == "source"}
    return lambda name: name in clips or name.split("_")[0] in sources


class Refusals:
    """What must not be taken from one source, as its unit of the scan carries it."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._stretches = [row for row in rows if row["kind"] == "clip"]
        self._times = [row for row in rows if row["kind"] == "track"]
        self._faces = [row for row in rows if row["kind"] == "face"]

    def refuses(self, candidate: dict[str, Any], analyser: str) -> bool:
        """Whether a candidate clip shows what was forgotten.

        Its bounds may differ a little, because the recipe has changed: overlap in time and place decides.
        """
        if any(same_stretch(candidate, row) for row in self._stretches) or self.refuses_time(candidate):
            return True
        embedding = candidate["embedding"]
        return embedding is not None and any(
            row["analyser"] == analyser and float(np.dot(row["embedding"], embedding)) >= row["min_similarity"]
            for row in self._faces
        )

    def refuses_time(self, stretch: dict[str, Any]) -> bool:
        """Whether all faces of some time in a stretch, or a track, of the source are refused."""
        return any(_same_time(stretch, row) for row in self._times)


def refusals_of(tombstones: list[dict[str, Any]]) -> dict[str | None, list[dict[str, Any]]]:
    """By source_id the tombstones that its scan must know, plain enough for JSON; None: those of faces."""
    columns = ("kind", *STRETCH, "embedding", "analyser", "min_similarity")
    found: dict[str | None, list[dict[str, Any]]] = {None: []}
    for row in tombstones:
        if row["kind"] != "source":
            found.setdefault(row["source_id"], []).append({name: row[name] for name in columns})
    return found


class LateRows:
    """Takes what was forgotten out of what units have committed: a worker may outlive its driver, and commit after
    `forget` what it had in hand before."""

    def __init__(self, tombstones: list[dict[str, Any]]) -> None:
        self._sources = {row["source_id"] for row in tombstones if row["kind"] == "source"}
        self._refused = refusals_of(tombstones)
        self._clips: dict[str, set[str]] = {}
        for row in tombstones:
            if row["kind"] == "clip":
                self._clips.setdefault(row["source_id"], set()).add(row["clip_id"])

    def take_out(self, rows: dict[str, list[dict[str, Any]]], source_id: str | None) -> set[str] | None:
        """Take it out of the rows, by table, of one unit of a source. Returns ids of clips that must not be there, of
        other units of the source too; None: nothing of the source may be."""
        if source_id in self._sources:
            return None
        stones = self._refused[None] + self._refused.get(source_id, [])
        if not stones:
            return set()
        refusals, gone = Refusals(stones), set(self._clips.get(source_id, ()))
        gone |= {row["clip_id"] for row in rows.get("clips", []) if refusals.refuses(row, row["analyser"])}
        for row in rows.get("tracks", []):
            gone |= {c["clip_id"] for c in row["candidates"] if refusals.refuses(c, row["analyser"])}
        if "tracks" in rows:
            rows["tracks"] = strip_tracks(rows["tracks"], lambda c: c["clip_id"] in gone, refusals.refuses_time)
        for name in {"clips", "frames"} & rows.keys():
            rows[name] = [row for row in rows[name] if row["clip_id"] not in gone]
        if "failures" in rows:
            rows["failures"] = [row for row in rows["failures"] if not names_any(row["message"], gone)]
        return gone


def names_any(text: str | None, clip_ids: set[str]) -> bool:
    """Whether a text names one of the clips."""
    return not clip_ids.isdisjoint(re.findall(r"\w+", text or ""))


def strip_tracks(
    rows: list[dict[str, Any]],
    is_gone: Callable[[dict[str, Any]], bool],
    is_refused: Callable[[dict[str, Any]], bool],
) -> list[dict[str, Any]]:
    """Rows of `tracks` without the candidates for which `is_gone` holds, without tracks that were nothing else, and
    without those that had no candidate where `is_refused` holds."""
    kept = []
    for row in rows:
        left = [candidate for candidate in row["candidates"] or [] if not is_gone(candidate)]
        if len(left) == len(row["candidates"] or []):
            kept += [row] if left or not is_refused(row) else []
        elif left:
            reasons = sorted({*(row["reasons"] or []), "forgotten"})
            kept.append(row | {"candidates": left, "num_clips": len(left), "reasons": reasons})
    return kept


def same_stretch(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two clips of one source, as `STRETCH` tells, show the same face."""
    return _same_time(one, other) and _same_place(one, other)


def _same_time(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two stretches overlap; a still is an instant at 0 s."""
    if one["start_s"] == other["start_s"]:
        return True
    return one["start_s"] < other["end_s"] and other["start_s"] < one["end_s"]


def _same_place(one: dict[str, Any], other: dict[str, Any]) -> bool:
    away = max(abs(one[axis] - other[axis]) for axis in _SQUARE[:2])
    return away < _SAME_PLACE * max(one["crop_size_px"], other["crop_size_px"])
