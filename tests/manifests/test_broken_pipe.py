"""Commands whose reader has gone, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from manifests.broken_pipe import STATUS, ending_quietly

ROOT = Path(__file__).resolve().parents[2]
MANY = "SELECT range AS n, repeat('x', 100) AS wide FROM range(20000)"


def status_without_reader(command: list[str]) -> int:
    """Of a command whose standard output was closed by its reader before anything came."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", *command], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True, timeout=100
    )
    os.close(writer)
    assert done.stderr == ""
    return done.returncode


@pytest.mark.parametrize(
    "arguments",
    [[], ["--list"], ["--help"], [MANY], [MANY, "--format", "csv"], ["SELECT 1 AS n", "--format", "csv"]],
    ids=["summary", "list", "help", "table", "csv", "short"],
)
def test_manifests(dataset, arguments):
    assert status_without_reader(["manifests", str(dataset.root), *arguments]) == STATUS


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["rules"]])
def test_curation(arguments):
    assert status_without_reader(["curation", *arguments]) == STATUS


def test_other_pipes_stay_errors(capfd):
    with pytest.raises(BrokenPipeError, match="to a worker"), ending_quietly():
        raise BrokenPipeError("to a worker")
    with pytest.raises(SystemExit) as error, ending_quietly():
        sys.exit(3)
    assert error.value.code == 3


def test_characters_that_a_terminal_has_none_for_are_escaped():
    command = [sys.executable, "-c", "from manifests.broken_pipe import *\nwith ending_quietly(): print('caf\\u00e9')"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9\n")
