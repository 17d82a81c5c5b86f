"""What a run tells while it works: one line a stage, live on a terminal, plain in a log; and metrics.jsonl."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

from manifests.console import clock
from manifests.storage import Place, append_line

_PLAIN_EVERY_S = 10.0
_LIVE_EVERY_S = 0.2


class StageProgress:
    """Counts of one stage and their line. `add` takes the summary of a unit."""

    def __init__(self, stage: str, total: int, done: int, metrics: Place, out: TextIO | None = None) -> None:
        self.stage, self.total, self.done = stage, total, done
        self.num_frames = self.kept = self.rejected = self.failed = 0
        self.video_s = 0.0
        self._resumed = done
        self._metrics = metrics
        self._out = out or sys.stderr
        self._is_live = self._out.isatty()
        self._start = time.monotonic()
        self._last_line = 0.0

    def add(self, summary: dict[str, Any]) -> None:
        """Count a finished unit."""
        self.done += 1
        self.num_frames += summary.get("num_frames") or 0
        self.video_s += summary.get("video_s") or 0.0
        self.failed += bool(summary.get("failures"))
        self.rejected += summary.get("rejected", 0)
        self.kept += sum(summary.get("counts", {}).get(t, 0) for t in ("sources", "tracks", "clips", "shards"))
        for failure in summary.get("failures", []):
            self._say(f"{self.stage}: {failure['uri'] or summary['unit']}: {failure['message']}")
        now = time.monotonic()
        if self.done < self.total and now - self._last_line >= (_LIVE_EVERY_S if self._is_live else _PLAIN_EVERY_S):
            self._last_line = now
            self._show()

    def line(self) -> str:
        """done/total, rates, time to go, what came out of it (index: files, and several may be one source), failed."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        fresh = self.done - self._resumed
        eta = (self.total - self.done) * seconds / fresh if fresh else None
        parts = [f"{self.stage:<6} {self.done}/{self.total}"]
        if self.num_frames:
            parts.append(f"{self.num_frames / seconds:.0f} frames/s")
        if self.video_s:
            parts.append(f"{self.video_s / seconds:.1f} video-s/s")
        if self.done < self.total:
            parts.append(f"ETA {clock(eta)}" if eta is not None else "ETA -")
        else:
            parts.append(f"took {clock(seconds)}")
        nouns = {"index": "usable", "scan": "tracks", "crop": "clips", "pack": "shards"}  # recrop: pictures, no rows
        if self.stage in nouns:
            parts.append(f"{self.kept - self.rejected} {nouns[self.stage]}")
        if self._resumed:
            parts.append(f"{self._resumed} done before")
        if self.rejected:
            parts.append(f"{self.rejected} cannot be used")
        if self.failed:
            parts.append(f"{self.failed} with problems")
        return "  ".join(parts)

    def finish(self) -> None:
        """The last line, and a record in metrics.jsonl."""
        self._show(last=True)
        record = {
            "time": time.time(),
            "stage": self.stage,
            "units": self.done - self._resumed,
            "resumed": self._resumed,
            "num_frames": self.num_frames,
            "video_s": round(self.video_s, 3),
            "seconds": round(time.monotonic() - self._start, 3),
            "rejected": self.rejected,
            "failed": self.failed,
        }
        append_line(self._metrics, json.dumps(record))

    def _show(self, last: bool = False) -> None:
        if self._is_live:
            self._out.write("\r\x1b[2K" + self.line() + ("\n" if last else ""))
        else:
            self._out.write(self.line() + "\n")
        self._out.flush()

    def _say(self, text: str) -> None:
        self._out.write(("\r\x1b[2K" if self._is_live else "") + text + "\n")
        self._out.flush()
