"""The counters that the workers show to Prometheus: what is counted, and that a real Ray exposes it."""

from __future__ import annotations

from collections import Counter

import pytest

from curation import metrics
from curation.metrics import count_unit


@pytest.fixture
def counted(monkeypatch) -> Counter:
    """(name, *tags) -> sum, of counters that only add up."""
    sums: Counter = Counter()

    class Sum:
        def __init__(self, name: str) -> None:
            self.name = name

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0, "Ray refuses anything else"
            sums[self.name.removeprefix("curation_"), *tags.values()] += value

    monkeypatch.setattr(metrics, "_counter", Sum)
    return sums


def test_scanned_unit(counted):
    unit = {"name": "a-0000", "width_px": 640, "height_px": 360}
    summary = {"num_frames": 10, "video_s": 0.4, "wall_s": 2.0, "failures": [], "counts": {"tracks": 3}}
    assert count_unit("scan", unit, summary) is summary
    count_unit("scan", unit, summary | {"failures": [{"reason": "no_face"}, {"reason": "stopped_early"}]})
    assert counted == {
        ("units_total", "scan"): 2,
        ("frames_total", "scan"): 20,
        ("video_seconds_total", "scan"): 0.8,
        ("worker_seconds_total", "scan"): 4.0,
        ("decoded_bytes_total", "scan"): 20 * 640 * 360 * 1.5,
        ("failures_total", "scan", "no_face"): 1,
        ("failures_total", "scan", "stopped_early"): 1,
    }


def test_bytes_are_read_by_index_and_written_by_crop_and_pack(counted):
    for stage, counts in (("index", {"sources": 1}), ("crop", {"clips": 2, "frames": 90}), ("pack", {"places": 5})):
        count_unit(stage, {"name": "x"}, {"counts": counts, "size_bytes": 1000, "failures": []})
    assert {key: value for key, value in counted.items() if key[0] != "units_total"} == {
        ("read_bytes_total", "index"): 1000,
        ("written_bytes_total", "crop"): 1000,
        ("written_bytes_total", "pack"): 1000,
        ("clips_total", "crop"): 2,
        ("clips_total", "pack"): 5,
    }


def test_unit_that_only_made_pictures_again_has_no_ledger_row(counted):
    count_unit("crop", {"name": "x"}, {"unit": "x", "num_frames": 3, "video_s": 0.1, "failures": []})
    assert counted == {("units_total", "crop"): 1, ("frames_total", "crop"): 3, ("video_seconds_total", "crop"): 0.1}
