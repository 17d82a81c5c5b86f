"""Decisions over hand-made clips, and what each rule costs."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from curation.decisions import keep_decisions
from curation.identities import name_identity
from curation.recipe import Recipe, SelectOptions
from curation.select import decide, rule_costs, select
from curation.summary import print_costs, print_summary, why_nothing
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table

GOOD = {
    "kind": "video", "duration_s": 3600.0, "num_frames": 90_000, "num_corrupt": 0, "face_height_px": 300.0,
    "face_height_median_px": 300.0, "upscale_factor": 1.0, "detection_score": 0.9, "presence_p10": 0.99,
    "yaw_abs_p95_deg": 10.0, "pitch_abs_p95_deg": 5.0, "roll_abs_p95_deg": 5.0, "sharpness": 0.2, "exposure": 0.5,
    "dark_fraction": 0.0, "bright_fraction": 0.0, "motion": 0.5, "landmark_jitter": 0.01, "outside_fraction": 0.0,
    "identity_similarity": 0.9,
}  # fmt: skip
ROWS = [
    {"clip_id": "a", "source_id": "s0", "embedding": [1.0, 0.0]},
    {"clip_id": "b", "source_id": "s1", "embedding": [0.0, 1.0], "yaw_abs_p95_deg": 70.0},
    {"clip_id": "c", "source_id": "s2", "embedding": [0.96, 0.28], "yaw_abs_p95_deg": 70.0, "sharpness": 0.01},
    {"clip_id": "d", "source_id": "s2", "embedding": None, "kind": "still", "duration_s": 0.0, "motion": None},
]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    made = Dataset(tmp_path)
    replace_table(made, "clips", make_table("clips", [GOOD | row for row in ROWS]))
    sources = [
        {"source_id": "s0", "uris": ["/v/a.mp4"], "kind": "video", "status": "ok", "duration_s": 7200.0},
        {"source_id": "s9", "uris": ["/v/z.mp4"], "kind": "video", "status": "rejected", "reason": "empty_file"},
    ]
    replace_table(made, "sources", make_table("sources", sources))
    return made


def costs_of(dataset: Dataset, recipe: Recipe) -> list[dict]:
    return rule_costs(dataset, recipe.select, decide(dataset, recipe, 0.4))


def test_decisions_keep_all_failed_rules(dataset, capsys):
    select(dataset, Recipe(), 0.4)
    assert "4 of 4 clips were cropped before face hashes were made" in capsys.readouterr().err
    rows = read_table(dataset, "clips").to_pylist()
    assert [(r["clip_id"], r["decision"], r["failed_rules"]) for r in rows] == [
        ("a", "keep", []),
        ("b", "reject", ["yaw"]),
        ("c", "reject", ["yaw", "blurred"]),
        ("d", "keep", []),
    ]
    assert [r["identity_id"] for r in rows] == [name_identity("a"), name_identity("b"), name_identity("a"), None]
    assert [r["split"] is None for r in rows] == [False, True, True, False]


def test_only_decisions_change(dataset):
    before = {r["clip_id"]: r for r in read_table(dataset, "clips").to_pylist()}
    select(dataset, Recipe(select=SelectOptions(max_yaw_deg=None)), 0.4)
    after = read_table(dataset, "clips").to_pylist()
    assert [r["decision"] for r in after] == ["keep", "keep", "reject", "keep"]
    for row in after:
        changed = {name for name, value in row.items() if value != before[row["clip_id"]][name]}
        assert changed <= {"decision", "failed_rules", "identity_id", "split", "split_group", "weight"}


def test_decisions_by_hand(dataset, capsys):
    options = replace(SelectOptions(), keep_clips=("b",), reject_clips=("a", "gone"))
    select(dataset, Recipe(select=options), 0.4)
    rows = {row["clip_id"]: row for row in read_table(dataset, "clips").to_pylist()}
    assert rows["a"]["failed_rules"] == ["rejected_by_hand"]
    assert rows["b"]["decision"] == "keep"
    assert "no clip is called gone" in capsys.readouterr().err


def test_corrected_licence_reaches_the_clips(dataset):
    """The source list was corrected after the clips had been cropped."""
    rows = [{"source_id": "s0", "status": "ok", "licence": "CC0", "attribution": "Jane", "provenance": {"show": "x"}}]
    replace_table(dataset, "sources", make_table("sources", rows))
    options = SelectOptions(require_licence=True)
    select(dataset, Recipe(select=options), 0.4)
    clips = {row["clip_id"]: row for row in read_table(dataset, "clips").to_pylist()}
    assert (clips["a"]["licence"], clips["a"]["attribution"]) == ("CC0", "Jane")
    assert dict(clips["a"]["provenance"]) == {"show": "x"}
    assert clips["a"]["decision"] == "keep"
    assert clips["d"]["failed_rules"] == ["no_licence"]
    assert {c["rule"]: c["clips_alone"] for c in costs_of(dataset, Recipe(select=options))}["no_licence"] == 3


def test_similarity_of_a_person_is_an_option(dataset):
    strict = decide(dataset, Recipe(select=SelectOptions(identity_similarity=0.99)), 0.4)
    assert strict["identity_id"].to_pylist() == [*map(name_identity, "abc"), None]


def test_selecting_again_changes_nothing(dataset):
    select(dataset, Recipe(), 0.4)
    first = read_table(dataset, "clips")
    select(dataset, Recipe(), 0.4)
    assert read_table(dataset, "clips") == first


SHARES = replace(SelectOptions(), val_share=0.3, test_share=0.3)


def people(name: str, **of_all: object) -> list[dict[str, object]]:
    """Twenty clips, each of another person in a source of its own."""
    embeddings = np.eye(20)
    return [
        GOOD | {"clip_id": f"{name}{k:02}", "source_id": f"s{k:02}", "embedding": embeddings[k]} | of_all
        for k in range(len(embeddings))
    ]


def decided(made: Dataset, rows: list[dict[str, object]], column: str, options: SelectOptions = SHARES) -> list:
    """A column of what select says about `rows`, in the order of the clips' ids."""
    replace_table(made, "clips", make_table("clips", rows).sort_by("clip_id"))
    select(made, Recipe(select=options), 0.5)
    return read_table(made, "clips", [column])[column].to_pylist()


def test_persons_and_splits_stay_when_sources_are_cut_elsewhere(tmp_path):
    """Other options of scan give clips other ids; what was for testing must not be trained on."""
    made = Dataset(tmp_path)
    place = {"crop_center_x_px": 300.0, "crop_center_y_px": 200.0, "crop_size_px": 400.0}
    splits = decided(made, people("a", start_s=0.0, end_s=4.0, **place), "split")
    names = read_table(made, "clips", ["identity_id"])["identity_id"].to_pylist()
    keep_decisions(made)
    assert decided(made, people("b", start_s=0.2, end_s=3.0, **place), "split") == splits
    assert read_table(made, "clips", ["identity_id"])["identity_id"].to_pylist() == names
    assert set(splits) == {"train", "val", "test"}
    keep_decisions(made)
    elsewhere = decided(made, people("c", start_s=5.0, end_s=8.0, **place), "identity_id")
    assert not set(elsewhere) & set(names), "nobody says that it is the same person"
    assert read_table(made, "clips", ["split"])["split"].to_pylist() == splits, "but it is the same source"
    keep_decisions(made)
    decided(made, people("d", pitch_abs_p95_deg=60.0, start_s=1.0, end_s=3.0, **place), "split")
    rows = [row | {"pitch_abs_p95_deg": 5.0} for row in read_table(made, "clips").to_pylist()]
    (tmp_path / "staging" / "decisions.parquet").unlink()  # as a run does at its end
    assert decided(made, rows, "split") == splits, "what was rejected then has the group of its source"


@pytest.mark.parametrize("gone", [False, True])
def test_clips_that_come_to_be_kept_follow_those_that_were(tmp_path, gone):
    """The first clip of each person is kept, then the second one only; in between all may have been cropped again."""
    made = Dataset(tmp_path)
    first, second = people("a"), people("b", source_id="other")
    for k, row in enumerate(second):
        row["source_id"] = f"t{k:02}"
    tilted, upright = {"pitch_abs_p95_deg": 60.0}, {"pitch_abs_p95_deg": 5.0}
    splits = decided(made, [row | upright for row in first] + [row | tilted for row in second], "split")[:20]
    assert set(splits) == {"train", "val", "test"}
    rows = read_table(made, "clips").to_pylist()
    if gone:
        keep_decisions(made)
        rows = rows[20:]
    rows = [row | (tilted if row["clip_id"] < "b" else upright) for row in rows]
    assert decided(made, rows, "split")[-20:] == splits


def test_a_clip_that_was_never_kept_links_nobody(tmp_path):
    rows = people("a")[:3]
    rows[1] |= {"source_id": "s00", "embedding": rows[2]["embedding"], "pitch_abs_p95_deg": 60.0}
    first, rejected, last = decided(Dataset(tmp_path), rows, "split_group")
    assert rejected is None
    assert first != last


def test_clips_that_were_cropped_again_keep_what_was_decided(tmp_path):
    made = Dataset(tmp_path)
    rows = [row | {"identity_id": f"id_{k}", "split_group": f"g_{k}"} for k, row in enumerate(people("a"))]
    replace_table(made, "clips", make_table("clips", rows))
    keep_decisions(made)
    assert decided(made, people("a"), "identity_id") == [f"id_{k}" for k in range(20)]
    assert read_table(made, "clips", ["split_group"])["split_group"].to_pylist() == [f"g_{k}" for k in range(20)]


def test_splits_without_groups_stay(tmp_path):
    splits = [("train", "val", "test")[k % 3] for k in range(20)]
    rows = [row | {"split": split} for row, split in zip(people("a"), splits, strict=True)]
    assert decided(Dataset(tmp_path), rows, "split") == splits


def test_weights_are_one_on_average_in_each_split(tmp_path):
    made = Dataset(tmp_path)
    weights = decided(made, [row | {"duration_s": 2.0**k} for k, row in enumerate(people("a"))], "weight")
    splits = read_table(made, "clips", ["split"])["split"].to_pylist()
    for split in ("train", "val", "test"):
        mine = [weight for weight, where in zip(weights, splits, strict=True) if where == split]
        assert np.mean(mine) == pytest.approx(1.0)
        assert np.std(mine) > 0.01


@pytest.mark.parametrize(
    ("better", "worse", "of_better", "of_worse"),
    [
        ({"face_height_median_px": 400.0}, {"sharpness": 0.9}, {}, {}),
        ({}, {}, {"size_bytes": 1000, "duration_s": 10.0}, {"size_bytes": 1500, "duration_s": 30.0}),
    ],
    ids=["by the face", "by bits a second"],
)
def test_the_better_of_two_copies_is_kept(tmp_path, better, worse, of_better, of_worse):
    made = Dataset(tmp_path)
    hashes = np.random.default_rng(0).integers(1 << 63, size=60, dtype=np.uint64)
    copy = GOOD | {"embedding": [1.0, 0.0], "face_hashes": hashes}
    sources = [{"source_id": "s0", "status": "ok"} | of_worse, {"source_id": "s1", "status": "ok"} | of_better]
    replace_table(made, "sources", make_table("sources", sources))
    rows = [copy | worse | {"clip_id": "a", "source_id": "s0"}, copy | better | {"clip_id": "b", "source_id": "s1"}]
    assert decided(made, rows, "duplicate_of") == ["b", None]


def test_overlap_of_copies_is_an_option(tmp_path):
    """Two thirds of `a` are in `b`, which is better."""
    hashes = np.random.default_rng(0).integers(1 << 63, size=60, dtype=np.uint64)
    rows = [
        GOOD | {"clip_id": name, "source_id": name, "embedding": [1.0, 0.0], "face_hashes": words} | more
        for name, words, more in (("a", hashes, {}), ("b", hashes[:40], {"face_height_median_px": 400.0}))
    ]
    for overlap, expected in ((0.6, ["b", None]), (0.7, [None, None])):
        options = replace(SelectOptions(), duplicate_overlap=overlap)
        assert decided(Dataset(tmp_path), rows, "duplicate_of", options) == expected


def test_no_clips_at_all(tmp_path):
    dataset = Dataset(tmp_path)
    replace_table(dataset, "clips", make_table("clips", []))
    select(dataset, Recipe(), 0.4)
    assert len(read_table(dataset, "clips")) == 0


def test_costs_are_those_of_the_copies_that_would_be_found(dataset):
    """Of two copies the better one fails another rule, so the other one is kept: no clip is lost as a copy."""
    hashes = np.random.default_rng(0).integers(1 << 63, size=60, dtype=np.uint64)
    copy = GOOD | {"embedding": [1.0, 0.0], "face_hashes": hashes}
    rows = [copy | {"clip_id": "a", "source_id": "s0"}, copy | {"clip_id": "b", "source_id": "s1"}]
    rows[0] |= {"face_height_median_px": 400.0, "pitch_abs_p95_deg": 16.0}
    replace_table(dataset, "clips", make_table("clips", rows))

    def lost(options: SelectOptions) -> tuple[int, int]:
        costs = {row["rule"]: row for row in costs_of(dataset, Recipe(select=options))}
        return costs["duplicate"]["clips_only"], sum(row["clips_in_order"] for row in costs.values())

    assert lost(SelectOptions()) == (1, 1), "also before anything was selected"
    select(dataset, Recipe(), 0.4)
    assert lost(replace(SelectOptions(), max_pitch_deg=10.0)) == (0, 1)


def test_costs_alone_only_and_in_order(dataset):
    costs = {row["rule"]: row for row in costs_of(dataset, Recipe())}
    assert set(costs) == {r for r in costs if r not in ("too_long", "low_quality")}, "rules that are off cost nothing"
    yaw, blurred = costs["yaw"], costs["blurred"]
    assert (yaw["clips_alone"], yaw["clips_only"], yaw["clips_in_order"]) == (2, 1, 2)
    assert (yaw["hours_alone"], yaw["hours_only"], yaw["hours_in_order"]) == (2.0, 1.0, 2.0)
    assert (blurred["clips_alone"], blurred["clips_only"], blurred["clips_in_order"]) == (1, 0, 0)
    assert (blurred["hours_alone"], blurred["hours_only"], blurred["hours_in_order"]) == (1.0, 0.0, 0.0)
    assert sum(row["clips_in_order"] for row in costs.values()) == 2, "as many as are rejected"
    tight = replace(SelectOptions(), max_pitch_deg=1.0)
    assert {row["rule"]: row for row in costs_of(dataset, Recipe(select=tight))}["pitch"]["clips_alone"] == 4


def shown(draw) -> str:
    console = Console(file=io.StringIO(), width=180)
    draw(console)
    return console.file.getvalue()


def test_summary_says_what_went_in_and_why_the_rest_went(dataset):
    select(dataset, Recipe(), 0.4)
    text = shown(lambda console: print_summary(dataset, SelectOptions(), console))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "sources 1 usable of 2 (0 stills), 2.00 h of video" in lines
    assert "clips 2 kept of 4 candidates, 1.00 h, 180000 frames, 1 identities" in lines
    assert "clip yaw 2 7200.0 yaw_abs_p95_deg <= 50.0" in lines
    assert "clip blurred 1 3600.0 sharpness >= 0.055" in lines
    assert "source empty_file 1 /v/z.mp4" in lines
    assert any(line.startswith("shards ") and line.endswith("/shards/") for line in lines)


def test_summary_tells_clips_that_are_kept_from_those_in_the_shards(dataset):
    """Decided again, and not packed yet."""
    select(dataset, Recipe(), 0.4)
    row = {"shard": "train-000000.tar", "split": "train", "num_clips": 2, "num_samples": 9, "size_bytes": 2_000_000}
    others = {"sha256": "", "plan_hash": "", "licences": []}
    replace_table(dataset, "shards", make_table("shards", [row | others]))
    text = shown(lambda console: print_summary(dataset, SelectOptions(), console))
    assert "train 2 clips, 9 samples, 2.0 MB" in " ".join(text.split())
    select(dataset, Recipe(select=SelectOptions(min_sharpness=0.9)), 0.4)
    text = " ".join(shown(lambda console: print_summary(dataset, SelectOptions(), console)).split())
    assert "clips 0 kept of 4" in text
    assert "train 0 clips, the shards still hold 2 clips, 9 samples, 2.0 MB, until the next run" in text


def test_summary_warns_when_nothing_is_kept(dataset):
    options = replace(SelectOptions(), licences=("cc-by-40",))
    sources = read_table(dataset, "sources").to_pylist()
    replace_table(dataset, "sources", make_table("sources", [row | {"licence": "cc-by-4.0"} for row in sources]))
    select(dataset, Recipe(select=options), 0.4)
    lines = shown(lambda console: print_summary(dataset, options, console)).splitlines()
    (warning,) = [line for line in lines if line.startswith("warning: no clip is kept")]
    assert "licence_not_allowed 4, yaw 2" in warning
    assert warning.endswith("--select.licences allows cc-by-40, and the sources have cc-by-4.0")


def test_summary_warns_of_an_empty_train_split(dataset):
    for val_share, test_share, is_empty in ((0.5, 0.499999, True), (0.0, 0.0, False)):
        options = SelectOptions(val_share=val_share, test_share=test_share)
        select(dataset, Recipe(select=options), 0.4)
        text = shown(lambda console: print_summary(dataset, SelectOptions(), console))
        warnings = [line for line in text.splitlines() if line.startswith("warning: ")]
        assert len(warnings) == is_empty
        if is_empty:
            assert "the train split is empty: all 2 kept clips" in warnings[0]
            assert "--seed" in warnings[0]
            assert "--select.test-share" in warnings[0]
    select(dataset, Recipe(select=SelectOptions(min_sharpness=0.9)), 0.4)
    assert "train split" not in shown(lambda console: print_summary(dataset, SelectOptions(), console))


def test_summary_says_what_another_try_would_do_again(dataset):
    reasons = ["killed", "crashed", "deadline", "no_face"]
    rows = [{"stage": "scan", "unit": f"u{n}", "reason": reason} for n, reason in enumerate(reasons)]
    replace_table(dataset, "failures", make_table("failures", rows))
    lines = shown(lambda console: print_summary(dataset, SelectOptions(), console)).splitlines()
    assert "the same command does these 1 again: killed" in lines
    assert "the same command with --retry-failed does these 2 again: crashed, deadline" in lines
    assert sum("again" in line for line in lines) == 2


def test_a_run_was_in_vain_where_nothing_was_usable_or_all_that_failed_left_no_clip(dataset):
    assert why_nothing(dataset) == ""
    failures = [
        {"stage": "scan", "unit": "s0", "reason": "killed"},
        {"stage": "scan", "unit": "s1", "reason": "no_face"},
    ]
    replace_table(dataset, "failures", make_table("failures", failures))
    assert why_nothing(dataset) == "", "there are clips"
    replace_table(dataset, "clips", make_table("clips", []))
    assert "on 1 sources" in why_nothing(dataset)
    replace_table(dataset, "failures", make_table("failures", failures[1:]))
    assert why_nothing(dataset) == "", "it was looked at, and there is no face in it"
    replace_table(dataset, "sources", make_table("sources", []))
    assert "none of the inputs" in why_nothing(dataset)


def test_table_of_costs(dataset):
    text = shown(lambda console: print_costs(costs_of(dataset, Recipe()), console))
    yaw = next(line.split() for line in text.splitlines() if line.startswith("yaw"))
    assert yaw[-9:] == ["2", "2.00", "h", "1", "1.00", "h", "2", "2.00", "h"]
