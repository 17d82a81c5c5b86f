"""A run that another has taken the lock on a bucket from ends, however it was started, and says so."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from curation import lock
from curation.sandbox import FatalError
from manifests.store import Dataset

PROJECT = Path(__file__).resolve().parents[2]
ROOT = "s3://data/sets/portraits"


def _take_away(s3) -> None:
    """Another run takes the lock over."""
    s3.put_object(Bucket="data", Key="sets/portraits/.lock", Body=b"{}")


def test_a_run_that_lost_its_lock_ends(s3, monkeypatch):
    """It was out of touch, and another run has taken over."""
    monkeypatch.setattr(lock, "RENEW_S", 0.1)
    (Dataset(ROOT).root / "recipe.toml").write_text("")

    def work() -> None:
        with lock.only_run(Dataset(ROOT)):
            _take_away(s3)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                time.sleep(0.05)

    with pytest.raises(FatalError, match="has taken over"):
        work()
    assert s3.get_object(Bucket="data", Key="sets/portraits/.lock")["Body"].read() == b"{}", "left to the other run"


def test_a_run_in_the_background_that_lost_its_lock_ends(s3):
    """A shell's script starts it with &, and then it ignores SIGINT."""
    program = (
        "import signal, sys, time; from curation import lock; from manifests.store import Dataset\n"
        "from model.termination import sigterm_interrupts\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN; lock.RENEW_S = 0.1\n"
        "with sigterm_interrupts(), lock.only_run(Dataset(sys.argv[1])):\n"
        "    print('held', flush=True); end = time.monotonic() + 30\n"
        "    while time.monotonic() < end: time.sleep(0.05)\n"
        "    print('worked on')"
    )
    command = ["sh", "-c", '"$@" & wait $!', "sh", sys.executable, "-c", program, ROOT]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        _take_away(s3)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert "has taken over" in err


@pytest.mark.parametrize("error", [None, FileNotFoundError("shards/train-000000.tar")])
def test_a_lock_that_was_lost_is_told_in_the_end(s3, monkeypatch, error):
    """Where nothing could interrupt the work; the other run may have removed what it needed."""
    monkeypatch.setattr(lock, "RENEW_S", 0.1)
    monkeypatch.setattr(lock._thread, "interrupt_main", lambda number: None)

    def work() -> None:
        with lock.only_run(Dataset(ROOT)):
            (renewal,) = (thread for thread in threading.enumerate() if "_renew" in thread.name)
            _take_away(s3)
            renewal.join(60)
            if error is not None:
                raise error

    with pytest.raises(FatalError, match="has taken over"):
        work()
