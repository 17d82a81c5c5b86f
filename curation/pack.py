"""pack: join the kept clips to WebDataset shards. One unit is one shard, a pure function of its row of the plan.

New shards are complete under staging/ before the first of them moves to shards/, so that clips whose staged pictures
are gone can be copied from the shards they are in now.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.recipe import Recipe
from curation.samples import SampleWriter, encode_label, read_members, sample_key
from curation.units import UnitResult
from manifests.schema import CLIP_PLACES, CLIPS, make_table
from manifests.store import Dataset, read_table, replace_table

_LABEL_GROWTH_BYTES = 512  # a label grows by identity and split, at most into one more block
_END_BYTES = 1024


def plan_shards(clips: pa.Table, recipe: Recipe) -> list[dict[str, Any]]:
    """Rows of the plan: shard name, split, and its clips in order. A function of the kept clips, recipe and seed.

    Clips are ordered by a hash, so that neighbours in a shard come from everywhere; a split never crosses a shard.
    """
    kept = clips.filter(pc.equal(clips["decision"], "keep")).select(
        ["clip_id", "split", "identity_id", "staged_bytes", "num_frames"]
    )
    rows = kept.to_pylist()
    rows.sort(key=lambda r: hashlib.sha256(f"{recipe.seed} {r['clip_id']}".encode()).digest())
    shards = []
    for split in ("train", "val", "test"):
        members: list[dict[str, Any]] = []
        size = _END_BYTES
        groups = []
        for row in (r for r in rows if r["split"] == split):
            clip_bytes = row["staged_bytes"] + row["num_frames"] * _LABEL_GROWTH_BYTES
            if members and size + clip_bytes > recipe.pack.shard_bytes:
                groups.append(members)
                members, size = [], _END_BYTES
            size += clip_bytes
            members.append({"clip_id": row["clip_id"], "identity_id": row["identity_id"]})
        if members:
            groups.append(members)
        for number, group in enumerate(groups):
            shard = {"shard": f"{split}-{number:06d}.tar", "split": split, "clips": group}
            shard["plan_hash"] = hashlib.sha256(json.dumps([shard, recipe.stage_hash("crop")]).encode()).hexdigest()[
                :16
            ]
            shards.append(shard)
    return shards


def clips_without_pixels(dataset: Dataset, plan: list[dict[str, Any]], crop_folder: Path) -> set[str]:
    """Planned clips that are neither staged nor in a shard."""
    places = _current_places(dataset)
    wanted = {c["clip_id"] for shard in plan for c in shard["clips"]}
    staged = {p.stem for p in crop_folder.glob("*/*.tar")}
    return wanted - staged - {c for c, (shard, _) in places.items() if (dataset.shards / shard).is_file()}


def pack_units(dataset: Dataset, plan: list[dict[str, Any]], crop_folder: Path) -> list[dict[str, Any]]:
    """Units of the shards that are not on disk yet, each with the places of its clips' pictures."""
    places = _current_places(dataset)
    finished = dict(zip(*read_table(dataset, "shards", ["shard", "plan_hash"]).to_pydict().values(), strict=True))
    staged = {p.stem: str(p) for p in crop_folder.glob("*/*.tar")}
    units = []
    for shard in plan:
        in_place = all(places.get(c["clip_id"], ("", []))[0] == shard["shard"] for c in shard["clips"])
        is_finished = in_place and finished.get(shard["shard"]) == shard["plan_hash"]
        if is_finished and (dataset.shards / shard["shard"]).is_file():
            continue
        clips = []
        for clip in shard["clips"]:
            source: dict[str, Any] = {"staged": staged.get(clip["clip_id"])}
            if source["staged"] is None:
                name, ranges = places[clip["clip_id"]]
                source |= {"shard": str(dataset.shards / name), "ranges": ranges}
            clips.append(clip | source)
        units.append({"name": shard["plan_hash"], "shard": shard["shard"], "split": shard["split"], "clips": clips})
    return units


def _current_places(dataset: Dataset) -> dict[str, tuple[str, list[tuple[int, int, int, int]]]]:
    """Shard and (JPEG offset, JPEG size, label offset, label size) of every frame, of every packed clip."""
    table = read_table(dataset, "clips", ["clip_id", *(name for name, _ in CLIP_PLACES)])
    table = table.filter(pc.is_valid(table["shard"]))
    return {
        row["clip_id"]: (
            row["shard"],
            list(zip(*(row[name] for name, _ in CLIP_PLACES[1:]), strict=True)),
        )
        for row in table.to_pylist()
    }


class PackStage:
    """Writes one shard into the stage's folder."""

    tables = ("shards",)

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._folder = folder

    def process(self, unit: dict[str, Any]) -> UnitResult:
        """Write the shard of `unit`; its rows say where each frame is."""
        path = self._folder / f"{unit['name']}.tar"
        temporary = self._folder / f".{unit['name']}.{os.getpid()}.tmp"
        places = []
        num_samples = 0
        try:
            with open(temporary, "wb") as file:
                writer = SampleWriter(file)
                for clip in unit["clips"]:
                    place = {name: [] for name, _ in CLIP_PLACES[1:]}
                    for frame, (jpeg, label) in enumerate(_clip_samples(clip)):
                        content = json.loads(label) | {"identity": clip["identity_id"], "split": unit["split"]}
                        label = encode_label(content)
                        key = sample_key(clip["clip_id"], frame)
                        place["frame_offsets"].append(writer.add(f"{key}.jpg", jpeg))
                        place["frame_sizes"].append(len(jpeg))
                        place["label_offsets"].append(writer.add(f"{key}.json", label))
                        place["label_sizes"].append(len(label))
                        num_samples += 1
                    places.append({"clip_id": clip["clip_id"], "shard": unit["shard"], **place})
                size = writer.finish()
            with open(temporary, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        row = {
            "shard": unit["shard"],
            "split": unit["split"],
            "num_clips": len(unit["clips"]),
            "num_samples": num_samples,
            "size_bytes": size,
            "sha256": digest,
            "plan_hash": unit["name"],
        }
        return UnitResult(rows={"shards": [row], "places": places}, num_frames=num_samples)


def _clip_samples(clip: dict[str, Any]) -> Any:
    """(JPEG, label) of every frame of a clip, from its staged tar or from the shard that it is in."""
    if clip["staged"] is not None:
        members = read_members(Path(clip["staged"]).read_bytes())
        for frame in range(len(members) // 2):
            key = sample_key(clip["clip_id"], frame)
            yield members[f"{key}.jpg"], members[f"{key}.json"]
        return
    with open(clip["shard"], "rb") as file:
        for jpeg_offset, jpeg_size, label_offset, label_size in clip["ranges"]:
            yield os.pread(file.fileno(), jpeg_size, jpeg_offset), os.pread(file.fileno(), label_size, label_offset)


def publish(dataset: Dataset, plan: list[dict[str, Any]], folder: Path) -> None:
    """Move finished shards into place, then write `shards` and the places in `clips`. May be repeated after a crash.

    Shards that are not in the plan any more are removed last.
    """
    rows, places = [], {}
    dataset.shards.mkdir(parents=True, exist_ok=True)
    _forget_replaced(dataset, plan, folder)
    old = {row["shard"]: row for row in read_table(dataset, "shards").to_pylist()}
    current = _current_place_rows(dataset)
    for shard in plan:
        commit = folder / f"{shard['plan_hash']}.json"
        if commit.is_file():
            content = json.loads(commit.read_bytes())["rows"]
            rows += content["shards"]
            places |= {place["clip_id"]: place for place in content["places"]}
            staged = folder / f"{shard['plan_hash']}.tar"
            if staged.is_file():
                os.replace(staged, dataset.shards / shard["shard"])
        else:
            rows.append(old[shard["shard"]])
            places |= {c["clip_id"]: current[c["clip_id"]] for c in shard["clips"]}
    clips = read_table(dataset, "clips")
    ids = clips["clip_id"].to_pylist()
    for name, kind in CLIP_PLACES:
        values = pa.array([places[i][name] if i in places else None for i in ids], kind)
        clips = clips.set_column(CLIPS.get_field_index(name), CLIPS.field(name), values)
    replace_table(dataset, "clips", clips)
    replace_table(dataset, "shards", make_table("shards", rows).sort_by("shard"))
    names = {shard["shard"] for shard in plan}
    for file in dataset.shards.glob("*.tar"):
        if file.name not in names:
            file.unlink()


def _forget_replaced(dataset: Dataset, plan: list[dict[str, Any]], folder: Path) -> None:
    """Drop what the manifests say of shards that are about to be overwritten.

    Otherwise a run that dies in between, and is followed by one with other thresholds, would take the new file for the
    old one.
    """
    replaced = pa.array([s["shard"] for s in plan if (folder / f"{s['plan_hash']}.tar").is_file()], pa.string())
    shards = read_table(dataset, "shards")
    replace_table(dataset, "shards", shards.filter(pc.invert(pc.is_in(shards["shard"], replaced))))
    clips = read_table(dataset, "clips")
    stale = pc.is_in(clips["shard"], replaced)
    if pc.any(stale).as_py():
        for name, kind in CLIP_PLACES:
            values = pc.if_else(stale, pa.scalar(None, kind), clips[name])
            clips = clips.set_column(CLIPS.get_field_index(name), CLIPS.field(name), values)
        replace_table(dataset, "clips", clips)


def _current_place_rows(dataset: Dataset) -> dict[str, dict[str, Any]]:
    table = read_table(dataset, "clips", ["clip_id", *(name for name, _ in CLIP_PLACES)])
    return {row["clip_id"]: row for row in table.filter(pc.is_valid(table["shard"])).to_pylist()}
