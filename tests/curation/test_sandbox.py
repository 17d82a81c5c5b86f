"""The sandbox survives what its worker does not."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time

import pytest

from curation.sandbox import FatalError, Sandbox, SandboxError
from manifests import object_store
from manifests.storage import place, read_bytes


def _make_worker():
    calls = []

    def work(argument):
        calls.append(argument)
        if argument == "segfault":
            ctypes.string_at(0)
        if argument == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if argument == "hang":
            time.sleep(60)
        if argument == "raise":
            raise KeyError("no such thing")
        if argument == "large":
            raise MemoryError("Unable to allocate 99 GiB")
        if argument == "refused":
            raise PermissionError(13, "Permission denied", "a.mp4")
        return os.getpid(), len(calls)

    return work


def _make_reader():
    object_store.PATIENCE_S = 0.0  # of the child
    return lambda url: read_bytes(place(url))


def test_what_a_store_denies_or_has_lost_is_unreadable(s3, flaky_s3):
    """And so tried again by the next run, as is an object whose body never comes while the store answers."""
    flaky_s3.failed_share = 0.0
    sandbox = Sandbox(_make_reader, deadline_s=60)
    try:
        for flaky_s3.denied, said in (((), "there is no s3://data/a.mp4"), (("GET",), "Access Denied")):
            with pytest.raises(SandboxError, match=said) as refused:
                sandbox("s3://data/a.mp4")
            assert refused.value.reason == "unreadable"
        flaky_s3.denied = ()
        flaky_s3.cut_next(1)
        s3.put_object(Bucket="data", Key="a.mp4", Body=b"0123")
        with pytest.raises(SandboxError, match=r"s3://data/a.mp4 has not come in 0 s, though the store") as refused:
            sandbox("s3://data/a.mp4")
        assert refused.value.reason == "unreadable"
        flaky_s3.throttle(60)
        with pytest.raises(FatalError, match="the object store has failed every call"):
            sandbox("s3://data/a.mp4")
    finally:
        sandbox.close()


def test_crash_hang_and_exception_cost_one_argument_each():
    sandbox = Sandbox(_make_worker, deadline_s=20)
    try:
        first_pid, _ = sandbox("a")
        assert sandbox("b") == (first_pid, 2), "one child serves many arguments"
        with pytest.raises(RuntimeError, match="KeyError"):
            sandbox("raise")
        with pytest.raises(SandboxError, match=r"Permission denied: 'a.mp4'") as refused:
            sandbox("refused")
        assert refused.value.reason == "unreadable"
        with pytest.raises(SandboxError, match="MemoryError: Unable to allocate") as large:
            sandbox("large")
        assert large.value.reason == "killed"
        assert sandbox("c") == (first_pid, 6), "an exception does not cost the child"
        with pytest.raises(SandboxError, match="SIGSEGV") as crash:
            sandbox("segfault")
        assert crash.value.reason == "crashed"
        second_pid, num_calls = sandbox("d")
        assert second_pid != first_pid
        assert num_calls == 1
        with pytest.raises(SandboxError, match="longer than 1 s") as hang:
            sandbox("hang", deadline_s=1)
        assert hang.value.reason == "deadline"
        assert sandbox("e")[1] == 1
        with pytest.raises(SandboxError, match=r"SIGKILL .*short of memory: fewer --workers") as killed:
            sandbox("killed")
        assert killed.value.reason == "killed"
    finally:
        sandbox.close()


def test_a_system_without_room_for_a_process_blames_no_argument(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", refuse)
    with pytest.raises(FatalError, match=r"cannot start a worker process: .*Resource temporarily unavailable"):
        Sandbox(_make_worker, deadline_s=20)("a")
