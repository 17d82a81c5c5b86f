"""The figures of an evaluation as one dictionary: what evaluation.json holds and the page shows."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from training.evaluation.catalogue import METRICS, Part, metrics_of
from training.evaluation.control import Shoulders, Sweep
from training.evaluation.measuring import Tools, mean_of
from training.evaluation.reenactment import Reenacted

FORMAT_VERSION = 1
DIGITS = 6
SOURCE_KINDS = ("video", "still")
Row = dict[str, Any]
"""One clip, sweep, or pair."""
Figure = dict[str, Any]
"""One figure over rows: `result`, and what else is known of it."""
NO_FACE = "the analyser found no face in any of the frames that it needs"
NO_PICTURES = "fewer than two frames"
TOO_FEW_STEPS = "a rank correlation takes three steps that show a face, which no sweep has"
TOO_SHORT = "no clip has the three frames that a second difference takes"
ONE_IDENTITY = "the clips that were looked at are of one identity only; cross-reenactment needs two"
PACKAGES = ("torch", "torchmetrics", "numpy", "opencv-python", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute figures."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def section_of_clips(
    part: Part, clips: Sequence[Reenacted], totals: dict[str, float | None], tools: Tools
) -> dict[str, Any]:
    """Figures of a reenactment, of every clip and of all clips.

    A figure of all clips is the mean of the clips' means, so that long clips do not count more than short ones.
    totals: figures that exist for all clips together only (fid).
    """
    if not clips:
        return {"part": part, "missing": ONE_IDENTITY}
    wanted = [metric.key for metric in metrics_of(part, tools.groups)]
    rows = [
        {
            "clip_id": reenacted.clip.clip_id,
            "source_clip_id": reenacted.source.clip_id,
            "source_kind": reenacted.source.kind,
            "identity": reenacted.clip.identity_id,
            "num_frames": reenacted.num_frames,
            "num_measured": {key: n for key, n in reenacted.num_measured.items() if key in wanted},
            "result": _rounded({key: reenacted.result.get(key) for key in wanted if key in reenacted.result}),
            "copy_source": _rounded({k: reenacted.copy_source.get(k) for k in wanted if k in reenacted.copy_source}),
        }
        for reenacted in clips
    ]
    aggregate = {key: _aggregate(key, rows, totals, tools) for key in wanted}
    return {
        "part": part,
        "num_clips": len(rows),
        "num_frames": sum(row["num_frames"] for row in rows),
        "aggregate": aggregate,
        "clips": rows,
    }


def _aggregate(key: str, rows: list[dict[str, Any]], totals: dict[str, float | None], tools: Tools) -> dict[str, Any]:
    group = METRICS[key].group
    if group in tools.missing:
        return {"missing": tools.missing[group]}
    if key in totals:
        values = {"result": totals[key], "copy_source": totals.get(f"{key}_copy_source")}
        num_frames = sum(row["num_frames"] for row in rows)
        return (
            _rounded(values) | {"num_frames": num_frames} if values["result"] is not None else {"missing": NO_PICTURES}
        )
    is_too_short = group == "jitter" and all(row["num_frames"] < 3 for row in rows)
    return _by_source_kind(rows, lambda some: _mean(key, some) | _num_frames(key, some)) or {
        "missing": TOO_SHORT if is_too_short else NO_FACE
    }


def _num_frames(key: str, rows: list[Row]) -> dict[str, int]:
    measured = sum(row["num_measured"].get(key, row["num_frames"]) for row in rows)
    return {"num_clips": len(_known(key, rows)), "num_frames": measured}


def section_of_sweeps(sweeps: Sequence[Sweep], tools: Tools) -> dict[str, Any]:
    """Figures of the control of eyes and lips."""
    if "control" in tools.missing:
        return {"part": "control", "missing": tools.missing["control"]}
    rows = [
        {
            "clip_id": sweep.clip.clip_id,
            "source_kind": sweep.clip.kind,
            "region": sweep.region,
            "at_rest": _round(sweep.at_rest),
            "asked": [_round(value) for value in sweep.asked],
            "achieved": [_round(value) for value in sweep.achieved],
            "result": _rounded(sweep.figures),
            "copy_source": _rounded(sweep.copy_source),
        }
        for sweep in sweeps
    ]
    aggregate = {}
    for metric in metrics_of("control", tools.groups):
        concerned = [row for row in rows if metric.key in row["result"]]
        shows_face = any(value is not None for row in concerned for value in row["achieved"])
        aggregate[metric.key] = _by_source_kind(
            concerned, lambda some, key=metric.key: _mean(key, some) | {"num_sources": len(_known(key, some))}
        ) or {"missing": TOO_FEW_STEPS if shows_face else NO_FACE}
    return {
        "part": "control",
        "num_sources": len({row["clip_id"] for row in rows}),
        "aggregate": aggregate,
        "sweeps": rows,
    }


def section_of_shoulders(pairs: Sequence[Shoulders]) -> dict[str, Any]:
    """Figures of stitching."""
    if not pairs:
        return {"part": "shoulders", "missing": ONE_IDENTITY}
    rows = [
        {
            "clip_id": pair.clip.clip_id,
            "source_clip_id": pair.source.clip_id,
            "source_kind": pair.source.kind,
            "num_frames": pair.num_frames,
            "result": _rounded(pair.figures),
        }
        for pair in pairs
    ]
    if not _known("shoulders_plain", rows):
        return {"part": "shoulders", "missing": "no source shows shoulders below the chin"}
    aggregate = {
        key: _by_source_kind(rows, lambda some, key=key: _shoulders(key, some))
        or {"missing": "the shoulders do not move, so there is nothing to correct"}
        for key in ("shoulders_plain", "shoulders_stitched", "shoulders_ratio")
    }
    return {"part": "shoulders", "num_pairs": len(rows), "aggregate": aggregate, "pairs": rows}


def _shoulders(key: str, rows: list[Row]) -> Figure:
    """Means over the pairs that show shoulders, and the quotient of the means."""
    plain, stitched = (
        mean_of([row["result"][name] for row in rows]) for name in ("shoulders_plain", "shoulders_stitched")
    )
    ratio = stitched / plain if plain else None
    value = {"shoulders_plain": plain, "shoulders_stitched": stitched, "shoulders_ratio": ratio}[key]
    return {"result": _round(value), "num_pairs": len(_known("shoulders_plain", rows))}


def _by_source_kind(rows: list[Row], figure_of: Callable[[list[Row]], Figure]) -> Figure | None:
    """The figure of all rows, with those of each kind of source apart where there are two; None without a value.

    A model that learned from videos only answers otherwise to stills, which one mean over both would hide.
    """
    figure = figure_of(rows)
    kinds = {kind: figure_of([row for row in rows if row["source_kind"] == kind]) for kind in SOURCE_KINDS}
    kinds = {kind: part for kind, part in kinds.items() if part["result"] is not None}
    if figure["result"] is None:
        return None
    return figure | ({"by_source_kind": kinds} if len(kinds) > 1 else {})


def _mean(key: str, rows: list[Row]) -> Figure:
    """Means of both columns over the rows that have them, and the spread of the result."""
    known = _known(key, rows)
    copy = mean_of([row["copy_source"].get(key) for row in rows])
    return _rounded({"result": mean_of(known), "copy_source": copy, "std": statistics.pstdev(known) if known else None})


def _known(key: str, rows: list[Row]) -> list[float]:
    return [row["result"][key] for row in rows if row["result"].get(key) is not None]


def list_missing(sections: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """Every figure that was asked for and is not there, with the reason."""
    missing = []
    for name, section in sections.items():
        if "missing" in section:
            missing.append({"section": name, "metric": "all", "reason": section["missing"]})
        for key, entry in section.get("aggregate", {}).items():
            if "missing" in entry:
                missing.append({"section": name, "metric": key, "reason": entry["missing"]})
    return missing


def to_json(results: dict[str, Any]) -> bytes:
    """The bytes of evaluation.json: the same figures give the same bytes."""
    return (json.dumps(results, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {key: _round(value) for key, value in values.items()}


def _round(value: float | None) -> float | None:
    return round(float(value), DIGITS) if value is not None and math.isfinite(value) else None
