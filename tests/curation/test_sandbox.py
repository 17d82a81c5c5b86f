"""The sandbox survives what its worker does not."""

from __future__ import annotations

import ctypes
import os
import time

import pytest

from curation.sandbox import Sandbox, SandboxError


def _make_worker():
    calls = []

    def work(argument):
        calls.append(argument)
        if argument == "segfault":
            ctypes.string_at(0)
        if argument == "hang":
            time.sleep(60)
        if argument == "raise":
            raise KeyError("no such thing")
        if argument == "refused":
            raise PermissionError(13, "Permission denied", "a.mp4")
        return os.getpid(), len(calls)

    return work


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
        assert sandbox("c") == (first_pid, 5), "an exception does not cost the child"
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
    finally:
        sandbox.close()
