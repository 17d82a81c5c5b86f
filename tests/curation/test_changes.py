"""What a run says of a data set that was there before."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.changes import Contents, Selection, compare_decisions, describe_change, read_contents, require_own_file
from curation.decisions import keep_decisions, kept_decisions
from manifests.schema import make_table
from manifests.store import Dataset, replace_table


def test_nothing_is_said_of_a_new_data_set_or_of_an_equal_one(tmp_path: Path) -> None:
    assert read_contents(Dataset(tmp_path)) == Contents()
    now = Contents(recipe_hash="a", num_kept=2, shards={"s": "1"})
    assert describe_change(Contents(), now) == ""
    assert describe_change(now, now) == ""


def test_shards_are_told_apart_by_what_they_are_made_from() -> None:
    before = Contents(recipe_hash="a", num_kept=3, shards={"kept": "1", "changed": "1", "gone": "1"})
    after = Contents(recipe_hash="b", num_kept=2, shards={"kept": "1", "changed": "2", "new": "1"})
    assert describe_change(before, after) == (
        "changed: 3 clips kept before, 2 now; 2 shards written, 1 removed, 1 left as they were"
    )


def test_a_recipe_that_cannot_be_read_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("max_yaw_deg = Infinity")
    assert read_contents(Dataset(tmp_path)) == Contents(recipe_hash="damaged")


def make_clips(rows: dict[str, str | list[str] | None]) -> pa.Table:
    """Clips that were kept for a split, or that failed some rules, or about which nothing was decided."""
    clips = [
        {
            "clip_id": clip_id,
            "decision": value and ("keep" if isinstance(value, str) else "reject"),
            "split": value if isinstance(value, str) else None,
            "split_group": value if isinstance(value, str) else None,
            "failed_rules": [] if isinstance(value, str) else value,
        }
        for clip_id, value in rows.items()
    ]
    return make_table("clips", clips)


def compare(dataset: Dataset, before: dict, now: dict) -> Selection:
    return compare_decisions(make_clips(before), kept_decisions(dataset), make_clips(now))


def test_clips_of_another_decision_or_split_are_told(tmp_path: Path) -> None:
    before = {"a": "train", "b": "train", "c": "test", "d": "test", "e": ["yaw", "blurred"], "f": ["yaw"], "g": "val"}
    now = {
        "a": ["yaw"],
        "b": "train",
        "c": "train",
        "d": "train",
        "e": "train",
        "f": ["pitch"],
        "g": "test",
        "n": "val",
    }
    selection = compare(Dataset(tmp_path), before | {"n": None, "o": None}, now | {"o": ["yaw"]})
    assert selection.describe() == [
        "kept clips: 5 before, 6 now",
        "  newly rejected: 1 (yaw 1)",
        "  newly kept: 1 (failed before: blurred 1, yaw 1)",
        "  new: 2, of which 1 are kept",
        "  2 clips move from test to train: figures on test before and from now on are not of the same clips",
        "  1 clip moves from val to test: figures on val before and from now on are not of the same clips",
    ]
    rows = {row["clip_id"]: row for row in selection.flips.to_pylist()}
    assert list(rows) == ["a", "c", "d", "e", "g", "n", "o"]
    assert rows["e"] == {
        "clip_id": "e", "decision_before": "reject", "decision_now": "keep", "split_before": None, "split_now": "train",
        "failed_before": ["yaw", "blurred"], "failed_now": [],
    }  # fmt: skip


def test_an_exchange_of_equally_many_is_seen(tmp_path: Path) -> None:
    before, now = {"a": "train", "b": ["yaw"], "c": "train"}, {"a": ["duplicate"], "b": "train", "c": "test"}
    assert compare(Dataset(tmp_path), before, now).describe() == [
        "kept clips: 2 before, 2 now",
        "  newly rejected: 1 (duplicate 1)",
        "  newly kept: 1 (failed before: yaw 1)",
        "  1 clip moves from train to test, which networks may have been trained on",
    ]


def test_nothing_is_said_where_nothing_was_decided_or_nothing_changed(tmp_path: Path) -> None:
    first = compare(Dataset(tmp_path), {"a": None, "b": None}, {"a": "train", "b": ["yaw"]})
    assert (first.num_kept_before, first.num_kept, len(first.flips), first.describe()) == (None, 1, 0, [])
    same = compare(Dataset(tmp_path), {"a": "train", "b": ["yaw"]}, {"a": "train", "b": ["yaw", "roll"]})
    assert (same.num_kept_before, same.num_kept, len(same.flips), same.describe()) == (1, 1, 0, [])


def test_clips_that_were_cropped_again_are_compared_with_what_was_put_aside(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    replace_table(dataset, "clips", make_clips({"a": "test", "b": "train", "gone": "train"}))
    keep_decisions(dataset)
    now = {"a": "train", "b": ["yaw"]}
    assert compare(dataset, {"a": None, "b": None}, now).describe() == [
        "kept clips: 3 before, 1 now",
        "  newly rejected: 1 (yaw 1)",
        "  kept before, and no longer there: 1",
        "  1 clip moves from test to train: figures on test before and from now on are not of the same clips",
    ]
    assert compare(dataset, now, now).describe() == [], "what was put aside may stay with --keep-staging"


def test_changes_are_written_as_the_ending_says(tmp_path: Path) -> None:
    selection = compare(Dataset(tmp_path / "dataset"), {"a": "train", "b": "val"}, {"a": ["yaw", "roll"], "b": "val"})
    selection.write(tmp_path / "changes.parquet")
    assert pq.read_table(tmp_path / "changes.parquet").to_pylist() == selection.flips.to_pylist()
    selection.write(tmp_path / "it's.csv")
    rows = duckdb.read_csv(str(tmp_path / "it's.csv")).fetchall()
    assert rows == [("a", "keep", "reject", "train", None, "[]", "[yaw, roll]")]


def test_changes_are_not_written_into_the_data_set_or_nowhere(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "dataset")
    require_own_file(tmp_path / "changes.csv", dataset)
    for output, why in (
        (dataset.root / "manifests" / "clips.parquet", "is inside the data set"),
        (tmp_path / "nowhere" / "changes.csv", "a folder that is there"),
        (tmp_path, "a folder that is there"),
        (Path("s3:/bucket/changes.csv"), "is on an object store"),
    ):
        with pytest.raises(ValueError, match=why):
            require_own_file(output, dataset)
