"""What a run changed in a data set that was there before: kept clips and shards, in words."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow.compute as pc

from curation.recipe import Recipe, recipe_of
from manifests.store import Dataset, read_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a data set holds at one moment."""

    recipe_hash: str | None = None
    """None: there is no data set yet; "damaged": its recipe cannot be read."""
    recipe: Recipe | None = field(default=None, compare=False)
    num_kept: int = 0
    """Clips."""
    shards: dict[str, str] = field(default_factory=dict)
    """Hash of what each is made from, by its name."""


def read_contents(dataset: Dataset) -> Contents:
    """Look now; the caller holds the lock."""
    if not dataset.recipe_file.exists():
        return Contents()
    kept = pc.sum(pc.equal(read_table(dataset, "clips", ["decision"])["decision"], "keep")).as_py()
    shards = read_table(dataset, "shards", ["shard", "plan_hash"]).to_pylist()
    recipe = None
    with suppress(ValueError):  # a run replaces it
        recipe = recipe_of(dataset.root)
    return Contents(
        recipe_hash="damaged" if recipe is None else recipe.stage_hash("pack"),
        recipe=recipe,
        num_kept=kept or 0,
        shards={row["shard"]: row["plan_hash"] for row in shards},
    )


def describe_change(before: Contents, after: Contents) -> str:
    """One line; empty where nothing changed, or where there was no data set before."""
    if before.recipe_hash is None or before == after:
        return ""
    written = sum(before.shards.get(name) != plan_hash for name, plan_hash in after.shards.items())
    removed = len(before.shards.keys() - after.shards.keys())
    return (
        f"changed: {before.num_kept} clips kept before, {after.num_kept} now; {written} shards written,"
        f" {removed} removed, {len(after.shards) - written} left as they were"
    )
