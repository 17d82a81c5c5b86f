"""`python -m manifests`, as a process for its status and output, else in this process."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from manifests.__main__ import main
from manifests.query import named_queries
from manifests.schema import make_table
from manifests.store import replace_table

QUERY = "SELECT clip_id, split, duration_s, failed_rules FROM clips ORDER BY clip_id"


def test_process(dataset):
    command = [sys.executable, "-m", "manifests", str(dataset.root), "SELECT count(*) AS n FROM clips"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([*command, "--format", "csv"], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "n\n3\n", "")


def test_summary(dataset, capfd):
    (dataset.shards).mkdir()
    (dataset.shards / "train-000000.tar").write_bytes(b"x" * 1500)
    assert main([str(dataset.root)]) == 0
    shown = capfd.readouterr().out
    assert "\x1b" not in shown, "no colours in a pipe"
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.split()}
    assert lines["sources"] == ["sources", "1", "usable", "of", "2,", "1.5", "min", "of", "video"]
    assert lines["clips"] == ["clips", "1", "kept", "of", "3,", "2.0", "s"]
    assert lines["frames"][1] == "50"
    assert lines["train"][:4] == ["train", "1", "100.0%", "50"]
    assert lines["yaw"] == ["yaw", "2", "6.0", "s", "66.7%", "1", "6.0", "s"]
    assert lines["blurred"][1:2] + lines["blurred"][-3:-2] == ["1", "0"]
    assert "empty_file" in lines["video"] or "empty_file" in shown
    assert lines["unknown"][:3] == ["unknown", "1", "1"]
    assert lines["shards/"] == ["shards/", "1", "1.5", "kB"]
    assert "LEAK" not in shown


def test_summary_names_leaks_and_what_more_there_is(dataset, capfd):
    rows = [
        {"clip_id": f"c{k}", "decision": "keep", "split": split, "identity_id": "id_a", "duration_s": 1.0}
        for k, split in enumerate(("train", "test"))
    ]
    rows += [{"clip_id": f"r{k}", "decision": "reject", "failed_rules": [f"rule[{k}]"]} for k in range(10)]
    replace_table(dataset, "clips", make_table("clips", rows))
    assert main([str(dataset.root)]) == 0
    shown = capfd.readouterr().out
    assert "LEAK: identity in two splits" in shown
    assert "rule[3]" in shown, "brackets are no markup"
    assert f"... and 2 more: python -m manifests {shlex.quote(str(dataset.root))} rejections" in shown
    assert f"in two splits: python -m manifests {shlex.quote(str(dataset.root))} split_leaks" in shown


def test_summary_shortens_texts(dataset, capfd):
    rows = [{"clip_id": "c", "decision": "keep", "licence": "MIT License\n\nPermission is hereby granted " * 100}]
    replace_table(dataset, "clips", make_table("clips", rows))
    assert main([str(dataset.root)]) == 0
    lines = capfd.readouterr().out.splitlines()
    (shown,) = [line for line in lines if "Permission" in line]
    assert shown.startswith("MIT License Permission is hereby granted MIT")
    assert len(shown.split("…")[0]) == 119


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


def test_pivot_as_its_message_says(dataset, capfd):
    sql = "PIVOT (SELECT decision, kind FROM clips) ON decision IN ('keep', 'reject') USING count(*)"
    assert main([str(dataset.root), sql, "--format", "csv"]) == 0
    assert capfd.readouterr().out.splitlines()[0] == "kind,keep,reject"


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


@pytest.mark.parametrize(
    ("name", "first", "num_lines"),
    [
        ("answer.csv", "n", 3001),
        ("answer.CSV", "n", 3001),
        ("answer.txt", "n", 3001),
        ("answer", "n", 3001),
        ("answer.jsonl", '{"n":0}', 3000),
        ("answer.json", "[", 3002),
    ],
)
def test_file_gets_every_row_in_the_format_of_its_ending(dataset, tmp_path, name, first, num_lines):
    path = tmp_path / name
    assert main([str(dataset.root), "SELECT range AS n FROM range(3000)", "--output", str(path)]) == 0
    lines = path.read_text().splitlines()
    assert (lines[0], len(lines)) == (first, num_lines)


def test_whole_table_goes_to_a_file(dataset, tmp_path, capfd):
    path = tmp_path / "answer.csv"
    sql = "SELECT range AS n, repeat('x', 300) AS wide FROM range(3000)"
    assert main([str(dataset.root), sql, "--format", "table", "--output", str(path)]) == 0
    text = path.read_text()
    assert text.count("x" * 300) == 3000
    assert "shown" not in text
    assert capfd.readouterr().out == ""


def test_parquet_by_its_ending(dataset, tmp_path):
    path = tmp_path / "answer.parquet"
    assert main([str(dataset.root), QUERY, "--output", str(path)]) == 0
    assert pq.read_table(path).num_rows == 3


def test_output_may_begin_at_home(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([str(dataset.root), QUERY, "--output=~/answer.csv"]) == 0
    assert "a_2" in (tmp_path / "answer.csv").read_text()


def test_list(dataset, capfd):
    assert main([str(dataset.root), "--list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(named_queries())
    assert lines[1].strip() == next(iter(named_queries().values())).title
    assert "frames_of_clip        --clip" in lines
    assert main([str(dataset.root), "rejections", "--list"]) == 0
    shown = capfd.readouterr().out
    assert shown.startswith("-- Why clips were rejected")
    assert "FROM clips" in shown


@pytest.mark.parametrize(("split", "share"), [(None, 1.0), ("train", 1.0), ("val", None)])
def test_named_query(dataset, capfd, split, share):
    options = ["--split", split] if split else []
    assert main([str(dataset.root), "attributions", *options, "--format", "json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [row["num_clips"] for row in rows] == ([share] if share else [])


@pytest.mark.parametrize("name", ["a" * 16, "/v/a.mp4", "/v/x/../a.mp4", "a.mp4"])
def test_source_by_any_of_its_names(dataset, capfd, name):
    assert main([str(dataset.root), "timeline_of_source", "--source", name, "--format", "json"]) == 0
    shown = capfd.readouterr()
    assert {row["id"] for row in json.loads(shown.out)} == {"a_0", "a_1", "a_2"}
    assert shown.err == ""


@pytest.mark.parametrize("format", ["table", "csv"])
def test_values_that_match_nothing_are_pointed_out(dataset, capfd, format):
    assert main([str(dataset.root), "frames_of_clip", "--clip", "a_7", "--format", format]) == 0
    assert capfd.readouterr().err == "note: nothing in the data set matches --clip a_7\n"
    assert main([str(dataset.root), "FROM clips WHERE clip_id = 'a_7'", "--format", format]) == 0
    assert capfd.readouterr().err == "", "nobody can say what SQL was meant to find"


def test_file_name_of_several_sources(dataset, capfd):
    rows = [{"source_id": k * 16, "uris": [f"/v/{k}/same.mp4"]} for k in "ab"]
    replace_table(dataset, "sources", make_table("sources", rows))
    assert main([str(dataset.root), "timeline_of_source", "--source", "same.mp4"]) == 2
    assert "same.mp4 names 2 sources: /v/a/same.mp4, /v/b/same.mp4; give one URI" in capfd.readouterr().err


def test_named_query_goes_to_a_file(dataset, tmp_path):
    path = tmp_path / "answer.parquet"
    command = [str(dataset.root), "rejections_only_rule", "--rule", "yaw", "--limit", "5"]
    assert main([*command, "--format", "parquet", "--output", str(path)]) == 0
    assert pq.read_table(path)["clip_id"].to_pylist() == ["a_2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pose_covrage"], "no query is called 'pose_covrage'; did you mean pose_coverage"),
        (["clips"], 'clips is a view, not a query: try "FROM clips LIMIT 10"'),
        (["rejections", "--split", "val"], "query rejections has no --split; it takes no option"),
        (["identities", "--clip", "a"], "query identities has no --clip; it takes --split, --limit"),
        (["clips_of_identity"], "query clips_of_identity needs --identity"),
        (
            ["timeline_of_source", "--source", "c.mp4"],
            "no source is called 'c.mp4': SELECT source_id, uris FROM sources",
        ),
        (["PIVOT clips ON decision USING count(*)"], "ON decision IN ('keep', 'reject') USING count(*)"),
        (["EXPLAIN FROM clips"], "expected one query that only reads (SELECT, FROM, DESCRIBE, ...), got EXPLAIN"),
        (["FROM clips", "--split", "val"], "--split is for named queries"),
        (["--limit", "3"], "--limit is for named queries"),
        (["--output", "answer.csv"], "--output is for answers to queries; the summary is printed as it is"),
        (["--format", "json"], "--format is for answers to queries; the summary is printed as it is"),
        (["--list", "--format", "json"], "--format is for answers to queries; --list is printed as it is"),
        (["nothing_like_this_at_all", "--list"], "--list shows all"),
    ],
)
def test_wrong_use_is_explained(dataset, capfd, arguments, words):
    assert main([str(dataset.root), *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert words in captured.err


@pytest.mark.parametrize("format", ["table", "csv"])
@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{victim}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{victim}'",
        "SELECT 1; COPY (SELECT 1) TO '{victim}'",
        "SELECT 1) TO '{victim}'; COPY (SELECT 1",
        "ATTACH '{victim}.db'",
        "CREATE TABLE clips AS SELECT 1",
        "",
        "-- nothing",
    ],
)
def test_sql_cannot_write(dataset, capfd, sql, format):
    victim = dataset.table_folder("clips") / "clips.parquet"
    before = victim.read_bytes()
    files = set(dataset.root.rglob("*"))
    status = main([str(dataset.root), sql.format(victim=str(victim).replace("'", "''")), "--format", format])
    assert status == 2
    assert victim.read_bytes() == before
    assert set(dataset.root.rglob("*")) == files


def test_output_does_not_go_into_the_data_set(dataset, capfd):
    victim = dataset.table_folder("clips") / "clips.parquet"
    before = victim.read_bytes()
    assert main([str(dataset.root), QUERY, "--format", "parquet", "--output", str(victim)]) == 2
    assert "is inside the data set" in capfd.readouterr().err
    assert victim.read_bytes() == before
    assert main([str(dataset.root), QUERY, "--output", "s3://bucket/answer.csv"]) == 2
    assert "--output s3:/bucket/answer.csv is on an object store" in capfd.readouterr().err


def test_query_sees_no_variables_of_the_program(dataset, capfd):
    assert main([str(dataset.root), "SELECT * FROM query"]) == 2
    assert "query" in capfd.readouterr().err


@pytest.mark.parametrize("end", [" -- one", "; -- one", ";", ";\n/* one; */ ;\n", " -- one;"])
def test_trailing_comment(dataset, capfd, end):
    assert main([str(dataset.root), f"SELECT 'ä;' AS n{end}", "--format", "csv"]) == 0
    assert capfd.readouterr().out == "n\nä;\n"


@pytest.mark.parametrize("format", ["table", "csv"])
@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT colour FROM clips", "SELECT * FROM people"])
def test_bad_sql(dataset, capfd, sql, format):
    assert main([str(dataset.root), sql, "--format", format]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("format", ["table", "csv"])
@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("absent/answer", "cannot write absent/answer: its folder does not exist"),
        ("", "cannot write .: it is a folder"),
        ("/proc/answer", "cannot write /proc/answer: No such file or directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_output_that_cannot_be_written(dataset, tmp_path, monkeypatch, capfd, format, output, said):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(dataset.root), QUERY, "--format", format, "--output", output]) == 2
    shown = capfd.readouterr().err
    assert shown.startswith("error: cannot write ")
    assert shown.rstrip().endswith(said)
    assert not list((tmp_path / "here").iterdir())


def test_no_data_set(tmp_path, capfd):
    assert main([str(tmp_path / "none"), "SELECT 1"]) == 2
    assert "expected a folder with manifests/ in it" in capfd.readouterr().err
