"""Counters of the work for Prometheus, through Ray's own metrics: every node of a cluster shows those of its workers.

Ray puts `ray_` before the names: `ray_curation_frames_total{stage="scan"}`, and says in `Component`, `NodeAddress` and
`WorkerId` whose they are. Sum over workers, and take rates: `sum by (stage) (rate(ray_curation_frames_total[5m]))`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_COUNTERS = {
    "curation_units_total": "Units of work that are finished, failed ones too.",
    "curation_frames_total": "Frames decoded (scan), cropped (crop) or packed (pack).",
    "curation_video_seconds_total": "Length of the video that was looked at.",
    "curation_worker_seconds_total": "Time that the workers spent on units.",
    "curation_clips_total": "Clips cropped (crop) or packed (pack).",
    "curation_read_bytes_total": "Size of the sources that were hashed and probed (index).",
    "curation_decoded_bytes_total": "Size of the decoded frames as 8-bit 4:2:0 pictures (scan).",
    "curation_written_bytes_total": "Pictures and labels written: of staged clips (crop) and of shards (pack).",
}
_FAILURES = "curation_failures_total"


def count_unit(stage: str, unit: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Count a finished unit, in its actor or in the driver; returns its summary as it is."""
    for name, value in _amounts(stage, unit, summary).items():
        if value > 0:
            _counter(name).inc(value, {"stage": stage})
    for failure in summary["failures"]:
        _counter(_FAILURES).inc(1, {"stage": stage, "reason": failure["reason"]})
    return summary


def _amounts(stage: str, unit: dict[str, Any], summary: dict[str, Any]) -> dict[str, float]:
    num_frames = summary.get("num_frames") or 0
    counts, size_bytes = summary.get("counts", {}), summary.get("size_bytes", 0)
    frame_bytes = 1.5 * (unit.get("width_px") or 0) * (unit.get("height_px") or 0)
    values = (
        1,
        num_frames,
        summary.get("video_s") or 0.0,
        summary.get("wall_s") or 0.0,
        counts.get("clips", counts.get("places", 0)),
        size_bytes if stage == "index" else 0,
        num_frames * frame_bytes if stage == "scan" else 0,
        size_bytes if stage != "index" else 0,
    )
    return dict(zip(_COUNTERS, values, strict=True))


@cache
def _counter(name: str) -> Any:
    from ray.util.metrics import Counter

    if name == _FAILURES:
        return Counter(name, "Problems of units and of parts of them.", tag_keys=("stage", "reason"))
    return Counter(name, _COUNTERS[name], tag_keys=("stage",))
