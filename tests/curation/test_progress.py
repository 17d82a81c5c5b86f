"""What a run tells, in a log and on a terminal."""

from __future__ import annotations

import io
import json

import pytest

from curation import progress
from curation.progress import StageProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

        def time(self) -> float:
            return 1.7e9 + self.now

    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def summary(k: int, **more) -> dict:
    return {"unit": f"u{k}", "num_frames": 100, "video_s": 4.0, "counts": {"tracks": 2}, "failures": []} | more


def test_plain_lines(tmp_path, clock):
    out = io.StringIO()
    stage = StageProgress("scan", 4, 1, tmp_path / "metrics.jsonl", out)
    clock.now += 10
    stage.add(summary(1))
    clock.now += 5
    stage.add(summary(2, failures=[{"uri": "/v/x.mp4", "message": "no face was found", "reason": "no_face"}]))
    clock.now += 5
    stage.add(summary(3))
    stage.finish()
    assert out.getvalue().splitlines() == [
        "scan   2/4  10 frames/s  0.4 video-s/s  ETA 0:20  2 tracks  1 done before",
        "scan: /v/x.mp4: no face was found",
        "scan   4/4  15 frames/s  0.6 video-s/s  took 0:20  6 tracks  1 done before  1 with problems",
    ], "a log gets a line every ten seconds, each problem and the end"
    assert "\r" not in out.getvalue()


def test_terminal_has_one_line_that_is_refreshed(tmp_path, clock):
    out = Terminal()
    stage = StageProgress("crop", 30, 0, tmp_path / "metrics.jsonl", out)
    for k in range(30):
        clock.now += 0.1
        stage.add(summary(k, counts={"clips": 1}))
    stage.finish()
    shown = out.getvalue()
    assert shown.count("\n") == 1
    assert 10 <= shown.count("\r\x1b[2K") <= 17, "five times a second at most"
    assert "30/30" in shown.rsplit("\r", 1)[1]


def test_rejected_sources_are_not_counted_as_kept(tmp_path, clock):
    stage = StageProgress("index", 3, 0, tmp_path / "metrics.jsonl", io.StringIO())
    for rejected in (0, 1, 0):
        stage.add({"unit": "u", "counts": {"sources": 1}, "rejected": rejected})
    clock.now += 3725
    assert stage.line() == "index  3/3  took 1:02:05  2 usable  1 cannot be used"


def test_before_the_first_unit_there_is_no_estimate(tmp_path, clock):
    assert "ETA -" in StageProgress("pack", 3, 1, tmp_path / "metrics.jsonl", io.StringIO()).line()


def test_metrics_are_one_record_a_stage(tmp_path, clock):
    path = tmp_path / "metrics.jsonl"
    for stage in ("scan", "crop"):
        counted = StageProgress(stage, 2, 1, path, io.StringIO())
        clock.now += 2
        counted.add(summary(1))
        counted.finish()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["stage"] for r in records] == ["scan", "crop"]
    wanted = {"units": 1, "resumed": 1, "num_frames": 100, "video_s": 4.0, "seconds": 2.0, "rejected": 0, "failed": 0}
    assert records[0] | wanted == records[0]
    assert [r["time"] for r in records] == [1.7e9 + 1002, 1.7e9 + 1004]
