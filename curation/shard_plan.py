"""Which clips lie in which shard, and in which order: decided before anything is written."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.recipe import Recipe
from curation.samples import BLOCK_BYTES, END_BYTES, encode_label

OF_CLIPS = ("clip_id", "identity_id", "licence", "attribution", "consent")
"""What the plan says of a clip; all but the first become part of its labels. Free columns of the source list stay in
the table `clips`: they may hold what is not meant to be published with every frame."""
PLANNED_FROM = [*OF_CLIPS, "unit", "decision", "split", "staged_bytes", "num_frames"]
"""Columns of `clips`."""


def plan_shards(clips: pa.Table, recipe: Recipe, tombstones: pa.Table | None = None) -> list[dict[str, Any]]:
    """Rows of the plan: shard name, split, and its clips in order.

    A function of the kept clips, of those that were forgotten, of recipe and seed. Clips are ordered by a hash, so that
    neighbours in a shard come from everywhere; a split never crosses a shard. A forgotten clip leaves its room empty,
    so that all other clips stay in the shards where they are.
    """
    kept = clips.filter(pc.equal(clips["decision"], "keep"))
    rows = kept.select([*OF_CLIPS, "split", "staged_bytes", "num_frames"]).to_pylist()
    for row in rows:
        row["planned_bytes"] = planned_bytes(row)
    if tombstones is not None:
        present = {row["clip_id"] for row in rows}
        left = tombstones.filter(pc.is_valid(tombstones["split"])).select(["clip_id", "split", "planned_bytes"])
        rows += [row | {"is_forgotten": True} for row in left.to_pylist() if row["clip_id"] not in present]
    rows.sort(key=lambda r: hashlib.sha256(f"{recipe.seed} {r['clip_id']}".encode()).digest())
    shards = []
    for split in ("train", "val", "test"):
        groups: list[list[dict[str, Any]]] = []
        size = END_BYTES
        for row in (r for r in rows if r["split"] == split):
            if not groups or size + row["planned_bytes"] > recipe.pack.shard_bytes:
                groups.append([])
                size = END_BYTES
            size += row["planned_bytes"]
            groups[-1].append(row)
        for number, group in enumerate(groups):
            members = [{name: row[name] for name in OF_CLIPS} for row in group if "is_forgotten" not in row]
            if members:
                shards.append(plan_row(f"{split}-{number:06d}.tar", split, members, recipe))
    return shards


def plan_row(name: str, split: str, clips: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """The row of the plan of one shard; its `plan_hash` covers all that the file is made from."""
    shard = {"shard": name, "split": split, "clips": clips}
    digest = hashlib.sha256(json.dumps([shard, recipe.stage_hash("crop")]).encode()).hexdigest()
    return shard | {"plan_hash": digest[:16]}


def planned_bytes(clip: dict[str, Any]) -> int:
    """The most that a clip takes in a shard: as staged, and what its labels grow by, in full blocks."""
    growth = encode_label(label_addition(clip, clip["split"] or "train"))
    return clip["staged_bytes"] + clip["num_frames"] * -(-len(growth) // BLOCK_BYTES) * BLOCK_BYTES


def label_addition(clip: dict[str, Any], split: str) -> dict[str, Any]:
    """What pack adds to the labels of a clip's frames."""
    return {"identity": clip["identity_id"], "split": split} | {name: clip[name] for name in OF_CLIPS[2:]}
