"""SIGTERM, as a scheduler sends it before it takes a machine away: a run ends in order and can be continued."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from manifests.store import Dataset, read_table

ROOT = Path(__file__).resolve().parents[2]


def test_sigterm_ends_a_run_in_order(demo_dataset: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "dataset", tmp_path / "log"
    videos = demo_dataset.parent / f"{demo_dataset.name}_videos"
    command = [sys.executable, "-m", "curation", "run", str(videos), "--output", str(output), "--workers", "1"]
    with open(log, "w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    deadline = time.monotonic() + 120
    while "\nscan " not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert log.read_text().splitlines()[-1] == "interrupted; the same command continues"
    assert "SIGTERM" not in log.read_text()
    (run,) = read_table(Dataset(output), "runs").to_pylist()
    assert (run["status"], run["last_error"]) == ("killed", "interrupted")
    assert not (output / ".lock").exists()
