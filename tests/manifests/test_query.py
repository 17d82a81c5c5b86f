"""The named queries: documented as they are, and their figures against plain Python over the same rows."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from manifests.query import ask, check_reads_only, find_query, named_queries
from manifests.schema import TABLES, make_table
from manifests.store import Dataset, read_table, replace_table, write_parquet
from manifests.views import connect
from tests.benchmarks.paper_scale import Plan, write_dataset

NAMES = sorted(named_queries())
EXAMPLES = {"split": "train", "identity": "x", "source": "x", "clip": "x", "rule": "yaw", "limit": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Dataset:
    """60 sources, 1200 clips, 36000 frames of 10 people, in several files of frames."""
    return write_dataset(
        tmp_path_factory.mktemp("made"), Plan(num_sources=60, num_identities=10, seed=3), frames_per_file=1
    )


@pytest.fixture(scope="module")
def db(made):
    return connect(made.root)


@pytest.fixture(scope="module")
def clips(made) -> list[dict]:
    return read_table(made, "clips").to_pylist()


def answer(db, name: str, **values: object) -> list[dict]:
    relation = ask(db, name, **values)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


@pytest.fixture
def with_clips(tmp_path):
    """A function that makes a data set of the given rows of clips and connects to it."""

    def make(rows: list[dict], **others: list[dict]):
        dataset = Dataset(tmp_path / "rows")
        for name, content in {"clips": rows, **others}.items():
            replace_table(dataset, name, make_table(name, content))
        return connect(dataset.root)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_documentation_is_true(name, dataset, db):
    query = named_queries()[name]
    assert query.title.endswith(".")
    code = "\n".join(line for line in query.text.splitlines() if not line.startswith("--"))
    assert set(re.findall(r"\$(\w+)", code)) == set(query.parameters)
    assert set(query.parameters) <= set(EXAMPLES), "the command has an option for each"
    assert all(query.parameters.values())
    assert all(query.columns.values())
    check_reads_only(query.text)
    for connection in (db, connect(dataset.root)):
        required = {k: EXAMPLES[k] for k in query.required}
        for values in (required, {k: EXAMPLES[k] for k in query.parameters}):
            relation = ask(connection, name, **values)
            assert relation.columns == list(query.columns)
            relation.fetchall()


@pytest.mark.parametrize("name", NAMES)
def test_data_set_without_rows(name, tmp_path):
    (tmp_path / "manifests").mkdir()
    query = named_queries()[name]
    rows = answer(connect(tmp_path), name, **{k: EXAMPLES[k] for k in query.required})
    assert len(rows) == {"overview": 1, "storage": 2, "frame_quality": 0}.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_answers_come_in_the_same_order(name, db):
    values = {k: EXAMPLES[k] for k in named_queries()[name].required}
    if name != "frame_quality":  # approximate
        assert ask(db, name, **values).fetchall() == ask(db, name, **values).fetchall()


def test_no_limit_below_zero(db):
    with pytest.raises(ValueError, match="--limit is -1: expected 0 or more"):
        ask(db, "identities", limit=-1)


def test_names_that_are_near():
    with pytest.raises(ValueError, match="did you mean split_leaks"):
        find_query("splitleaks")
    with pytest.raises(ValueError, match=r"did you mean .*clips_of_identity"):
        find_query("of_identity")


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_pose_coverage(made, db, clips, split):
    kept = {c["clip_id"] for c in clips if c["decision"] == "keep" and split in (None, c["split"])}
    frames = read_table(made, "frames", ["clip_id", "yaw_deg", "pitch_deg"]).to_pylist()
    expected = Counter(
        (int(f["yaw_deg"] // 15 * 15), int(f["pitch_deg"] // 15 * 15)) for f in frames if f["clip_id"] in kept
    )
    rows = answer(db, "pose_coverage", split=split)
    assert {(r["yaw_deg"], r["pitch_deg"]): r["num_frames"] for r in rows} == dict(expected)
    assert sum(r["share"] for r in rows) == pytest.approx(1.0 if kept else 0.0, abs=1e-3)


def test_expression_coverage(made, db, clips):
    kept = {c["clip_id"] for c in clips if c["decision"] == "keep"}
    columns = ["clip_id", "eye_openness_right", "eye_openness_left", "lip_openness"]
    table = read_table(made, "frames", columns).to_pydict()
    inside = np.array([c in kept for c in table["clip_id"]])
    right, left, lips = (np.array(table[name], np.float32)[inside] for name in columns[1:])
    bins = np.floor((right + left) * 5).astype(int), np.floor(lips * 10).astype(int)
    expected = Counter((eyes / 10, lip / 10) for eyes, lip in zip(*bins, strict=True))
    rows = answer(db, "expression_coverage")
    assert {(r["eye_openness"], r["lip_openness"]): r["num_frames"] for r in rows} == dict(expected)


def test_frame_quality(made, db):
    median = {row["measure"]: row["p50"] for row in answer(db, "frame_quality")}
    assert median == pytest.approx({"sharpness": 0.16, "exposure": 0.5, "presence": 0.9, "motion": 0.15}, rel=0.03)


def test_identities_and_balance(db, clips):
    kept = defaultdict(list)
    for clip in clips:
        if clip["decision"] == "keep":
            kept[clip["identity_id"]].append(clip)
    rows = answer(db, "identities")
    assert {r["identity_id"]: r["num_kept"] for r in rows} == {name: len(found) for name, found in kept.items()}
    assert [r["hours"] for r in rows] == sorted((r["hours"] for r in rows), reverse=True)
    assert len(answer(db, "identities", limit=2)) == 2
    total = sum(c["weight"] for found in kept.values() for c in found if c["split"] == "train")
    for row in rows:
        found = kept[row["identity_id"]]
        assert row["num_sources"] == len({c["source_id"] for c in clips if c["identity_id"] == row["identity_id"]})
        if row["split"] == "train":
            assert row["draw_share"] == pytest.approx(sum(c["weight"] for c in found) / total, abs=1e-6)
    train = {name: found for name, found in kept.items() if found[0]["split"] == "train"}
    expected = Counter(2 ** int(np.log2(len(found))) for found in train.values())
    assert {r["from_clips"]: r["num_identities"] for r in answer(db, "balance")} == dict(expected)
    assert sum(r["clip_share"] for r in answer(db, "balance")) == pytest.approx(1, abs=1e-3)


def test_clips_without_identity_are_persons_of_their_own(with_clips):
    """As in their weights."""
    rows = [
        {"clip_id": f"c{k}", "source_id": f"s{k}", "decision": "keep", "split": "train", "weight": 1.0,
         "duration_s": 10.0, "identity_id": None if k < 4 else "a"}
        for k in range(6)
    ]  # fmt: skip
    db = with_clips(rows)
    told = ("from_clips", "num_identities", "num_clips", "draw_share")
    assert [tuple(row[name] for name in told) for row in answer(db, "balance")] == [
        (1, 4, 4, 0.6667),
        (2, 1, 2, 0.3333),
    ]
    assert [(row["identity_id"], row["draw_share"]) for row in answer(db, "identities")] == [("a", 0.333333)]


def test_clips_of_identity_and_their_frames(made, db, clips):
    clip = next(c for c in clips if c["decision"] == "keep")
    rows = answer(db, "clips_of_identity", identity=clip["identity_id"])
    assert [r["clip_id"] for r in rows] == [c["clip_id"] for c in clips if c["identity_id"] == clip["identity_id"]]
    frames = answer(db, "frames_of_clip", clip=clip["clip_id"])
    assert [f["frame"] for f in frames] == list(range(clip["num_frames"]))


def test_timeline_by_id_and_by_place(made, db, clips):
    source = read_table(made, "sources").to_pylist()[7]
    rows = answer(db, "timeline_of_source", source=source["source_id"])
    assert rows == answer(db, "timeline_of_source", source=source["uris"][0])
    found = [r for r in rows if r["what"] == "clip"]
    assert [r["id"] for r in found] == [c["clip_id"] for c in clips if c["source_id"] == source["source_id"]]
    assert len([r for r in rows if r["what"] == "track"]) == 10
    starts = [r["start_s"] for r in rows if r["start_s"] is not None]
    assert starts == sorted(starts)


def test_rejections(with_clips):
    rows = [
        {"clip_id": "a", "decision": "reject", "failed_rules": ["yaw", "blurred"], "duration_s": 36.0},
        {"clip_id": "b", "decision": "reject", "failed_rules": ["yaw"], "duration_s": 72.0},
        {"clip_id": "c", "decision": "reject", "failed_rules": ["yaw"], "duration_s": None},
        {"clip_id": "d", "decision": "keep", "failed_rules": [], "duration_s": 3600.0},
    ]
    db = with_clips(rows)
    assert [tuple(row.values()) for row in answer(db, "rejections")] == [
        ("yaw", 3, 0.03, 0.75, 2, 0.02),
        ("blurred", 1, 0.01, 0.25, 0, 0.0),
    ]
    assert [row["clip_id"] for row in answer(db, "rejections_only_rule")] == ["b", "c"]
    assert answer(db, "rejections_only_rule", rule="blurred") == []


def test_no_leaks_in_a_sound_data_set(db):
    assert answer(db, "split_leaks") == []


@pytest.mark.parametrize(
    ("what", "shared"),
    [
        ("identity", {"identity_id": "x"}),
        ("source", {"source_id": "x"}),
        ("group", {"split_group": "x"}),
        ("footage", {"duplicate_of": "x"}),
    ],
)
def test_leaks_are_found(with_clips, what, shared):
    train = {"clip_id": "x", "decision": "keep", "split": "train"}
    test = {"clip_id": "y", "decision": "keep", "split": "test"}
    train |= {} if what == "footage" else shared
    db = with_clips([train, test | shared, {**test, "clip_id": "z"}, {**train, "clip_id": "r", "decision": "reject"}])
    (row,) = answer(db, "split_leaks")
    assert (row["what"], row["id"], row["splits"]) == (what, "x", ["test", "train"])


def test_inconsistencies(made, db, tmp_path):
    assert answer(db, "inconsistencies") == []
    broken = Dataset(tmp_path / "broken")
    for name in TABLES:
        for file in made.table_files(name):
            target = broken.table_folder(name) / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    clips = read_table(made, "clips")
    frames = made.table_files("frames")[0]
    replace_table(broken, "clips", clips.slice(1))
    write_parquet(broken.table_folder("frames") / frames.name, read_table(made, "frames").slice(0, 35_990))
    found = answer(connect(broken.root), "inconsistencies")
    assert found[0] == {"what": "clip with fewer or more frames than it says", "id": clips["clip_id"][-1].as_py()}
    assert found[1] == {"what": "frames of a clip that is not there", "id": clips["clip_id"][0].as_py()}


def test_duplicates(with_clips):
    rows = [
        {"clip_id": "best", "source_id": "s1", "face_height_median_px": 300.0},
        {"clip_id": "copy", "source_id": "s2", "face_height_median_px": 100.0, "duplicate_of": "best"},
        {"clip_id": "other", "source_id": "s1"},
    ]
    sources = [{"source_id": "s1", "uris": ["/one"]}, {"source_id": "s2", "uris": ["/two"]}]
    (row,) = answer(with_clips(rows, sources=sources), "duplicates")
    assert (row["kept_clip_id"], row["clip_id"], row["is_same_source"]) == ("best", "copy", False)
    assert (row["kept_uri"], row["uri"], row["kept_face_height_px"]) == ("/one", "/two", 300.0)


def test_licences_of_sources_without_clips(with_clips):
    sources = [{"source_id": "a", "status": "ok", "licence": "CC0"}, {"source_id": "b", "status": "ok", "licence": ""}]
    clips = [{"clip_id": "c", "decision": "keep", "licence": "CC0", "duration_s": 36.0, "num_frames": 900}]
    rows = answer(with_clips(clips, sources=sources), "licences")
    assert [(r["licence"], r["num_sources"], r["num_clips"], r["hours"], r["share"]) for r in rows] == [
        ("CC0", 1, 1, 0.01, 1.0),
        ("unknown", 1, 0, 0.0, 0.0),
    ]


def test_sources_that_gave_nothing(with_clips):
    sources = [{"source_id": s, "uris": [f"/{s}"], "status": "ok", "duration_s": 1.0} for s in ("good", "bad", "none")]
    sources.append({"source_id": "broken", "uris": ["/broken"], "status": "rejected", "reason": "empty_file"})
    clips = [
        {"clip_id": "1", "source_id": "good", "decision": "keep"},
        {"clip_id": "2", "source_id": "bad", "decision": "reject", "failed_rules": ["yaw"]},
    ]
    failures = [{"stage": "scan", "unit": "u", "source_id": "none", "uri": "/none", "reason": "no_face"}]
    db = with_clips(clips, sources=sources, failures=failures)
    assert [(r["uri"], r["num_clips"], r["why"]) for r in answer(db, "sources_unused")] == [
        ("/bad", 1, ["yaw"]),
        ("/none", 0, ["no_face"]),
    ]
    assert [(r["stage"], r["reason"], r["uri"]) for r in answer(db, "sources_failed")] == [
        ("index", "empty_file", "/broken"),
        ("scan", "no_face", "/none"),
    ]


def test_problems_are_counted_by_piece_of_work(with_clips):
    """One that failed in several ways is one, as `status` counts them."""
    failures = [
        {"stage": stage, "unit": "u", "reason": "stopped_early", "message": message}
        for stage, message in (("scan", "a"), ("crop", "a"), ("crop", "b"))
    ]
    (row,) = answer(with_clips([], failures=failures), "overview")
    assert row["num_failures"] == 2


def test_storage_is_what_lies_on_disk(made, db):
    rows = {row["part"]: row for row in answer(db, "storage")}
    for name in TABLES:
        files: list[Path] = made.table_files(name)
        assert rows[name]["num_files"] == len(files)
        assert rows[name]["size_bytes"] == sum(file.stat().st_size for file in files)
        assert rows[name]["num_rows"] == len(read_table(made, name))
    assert rows["staging/"]["num_files"] == 0, "all kept clips are packed"


def test_splits_add_up(db, clips):
    rows = answer(db, "splits")
    kept = [c for c in clips if c["decision"] == "keep"]
    assert {r["split"]: r["num_clips"] for r in rows} == Counter(c["split"] for c in kept)
    assert sum(r["hours"] for r in rows) == pytest.approx(sum(c["duration_s"] for c in kept) / 3600, rel=1e-4)
    assert sum(r["num_shards"] for r in rows) == len(answer(db, "shards"))
