"""What a run says of a data set that was there before."""

from __future__ import annotations

from pathlib import Path

from curation.changes import Contents, describe_change, read_contents
from manifests.store import Dataset


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
