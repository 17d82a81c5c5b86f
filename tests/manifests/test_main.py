"""`python -m manifests`, as a process for its status and output, else in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from manifests.__main__ import main

QUERY = "SELECT clip_id, split, duration_s, failed_rules FROM clips ORDER BY clip_id"


def test_process(dataset):
    command = [sys.executable, "-m", "manifests", str(dataset.root), "SELECT count(*) AS n FROM clips"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([*command, "--format", "csv"], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "n\n3\n", "")


def test_summary(dataset, capfd):
    assert main([str(dataset.root)]) == 0
    shown = capfd.readouterr().out
    for word in ("why clips were rejected", "blurred", "empty_file", "unknown", "1.5"):
        assert word in shown


def test_table(dataset, capfd):
    assert main([str(dataset.root), QUERY]) == 0
    shown = capfd.readouterr().out
    assert "a_0" in shown
    assert "[yaw, blurred]" in shown


def test_csv_and_json(dataset, capfd):
    query = "SELECT clip_id, split, duration_s FROM clips ORDER BY clip_id"
    assert main([str(dataset.root), query, "--format", "csv"]) == 0
    assert capfd.readouterr().out == "clip_id,split,duration_s\na_0,train,2.0\na_1,,\na_2,,6.0\n"
    assert main([str(dataset.root), QUERY + ";", "--format", "json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert rows[1] == {"clip_id": "a_1", "split": None, "duration_s": None, "failed_rules": ["yaw", "blurred"]}


def test_parquet(dataset, tmp_path, capfd):
    path = tmp_path / "answer.parquet"
    assert main([str(dataset.root), QUERY, "--format", "parquet", "--output", str(path)]) == 0
    assert pq.read_table(path)["clip_id"].to_pylist() == ["a_0", "a_1", "a_2"]
    assert main([str(dataset.root), QUERY, "--format", "parquet"]) == 2
    assert capfd.readouterr().err == "error: --format parquet needs --output FILE\n"


@pytest.mark.parametrize("format", ["table", "csv", "json"])
def test_answer_goes_to_a_file(dataset, tmp_path, capfd, format):
    path = tmp_path / "answer"
    assert main([str(dataset.root), QUERY, "--format", format, "--output", str(path)]) == 0
    assert "a_2" in path.read_text()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("format", ["table", "csv"])
@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT colour FROM clips", "SELECT * FROM people"])
def test_bad_sql(dataset, capfd, sql, format):
    assert main([str(dataset.root), sql, "--format", format]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("format", ["table", "csv"])
def test_output_that_cannot_be_written(dataset, tmp_path, capfd, format):
    path = tmp_path / "no" / "such" / "folder" / "answer"
    assert main([str(dataset.root), QUERY, "--format", format, "--output", str(path)]) == 2
    assert capfd.readouterr().err.startswith("error: ")


def test_no_data_set(tmp_path, capfd):
    assert main([str(tmp_path / "none"), "SELECT 1"]) == 2
    assert "expected a folder with manifests/ in it" in capfd.readouterr().err
