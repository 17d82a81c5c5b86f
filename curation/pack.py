"""pack: join the kept clips to WebDataset shards. One unit is one shard, a pure function of its row of the plan.

New shards are complete under staging/ before the first of them moves to shards/, so that clips whose staged pictures
are gone can be copied from the shards they are in now.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from curation.recipe import Recipe
from curation.samples import SampleWriter, encode_label, read_members, sample_key
from curation.shard_plan import label_addition
from curation.units import UnitResult
from manifests.schema import CLIP_PLACES, CLIPS, make_table
from manifests.storage import (
    NewFile,
    Place,
    list_files,
    make_folder,
    move_all,
    place,
    read_bytes,
    read_files,
    read_range,
    remove_files,
)
from manifests.store import Dataset, iterate_tables, read_table, replace_table


def clips_without_pixels(dataset: Dataset, plan: list[dict[str, Any]], crop_folder: Place) -> set[str]:
    """Planned clips that are neither staged nor in a shard."""
    wanted = {c["clip_id"] for shard in plan for c in shard["clips"]} - set(staged_clips(crop_folder))
    clips = read_table(dataset, "clips", ["clip_id", "shard"])
    packed = pa.array(sorted(_shards_on_disk(dataset)), pa.string())
    return wanted.difference(clips.filter(pc.is_in(clips["shard"], packed))["clip_id"].to_pylist())


def staged_clips(crop_folder: Place) -> dict[str, Place]:
    """The staged tar of each clip; one listing, however many there are."""
    return {path.stem: path for path in list_files(crop_folder, ".tar", below=True)}


def _shards_on_disk(dataset: Dataset) -> set[str]:
    return {path.name for path in list_files(dataset.shards)}


def pack_units(dataset: Dataset, plan: list[dict[str, Any]], crop_folder: Place) -> list[dict[str, Any]]:
    """Units of the shards that are not on disk yet, each with the places of its clips' pictures."""
    finished = {shard["shard"] for shard in finished_shards(dataset, plan)}
    unwritten = [shard for shard in plan if shard["shard"] not in finished]
    staged = {clip_id: str(path) for clip_id, path in staged_clips(crop_folder).items()}
    unstaged = {c["clip_id"] for shard in unwritten for c in shard["clips"]} - staged.keys()
    places = current_places(dataset, clips=sorted(unstaged))
    units = []
    for shard in unwritten:
        clips = []
        for clip in shard["clips"]:
            source: dict[str, Any] = {"staged": staged.get(clip["clip_id"])}
            if source["staged"] is None:
                name, ranges = places[clip["clip_id"]]
                source |= {"shard": str(dataset.shards / name), "ranges": ranges}
            clips.append(clip | source)
        units.append({"name": shard["plan_hash"], "shard": shard["shard"], "split": shard["split"], "clips": clips})
    return units


def finished_shards(dataset: Dataset, plan: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the plan that are in place, file and rows."""
    hashes = dict(zip(*read_table(dataset, "shards", ["shard", "plan_hash"]).to_pydict().values(), strict=True))
    places = dict(zip(*read_table(dataset, "clips", ["clip_id", "shard"]).to_pydict().values(), strict=True))
    on_disk = _shards_on_disk(dataset)
    return [
        shard
        for shard in plan
        if hashes.get(shard["shard"]) == shard["plan_hash"]
        and all(places.get(clip["clip_id"]) == shard["shard"] for clip in shard["clips"])
        and shard["shard"] in on_disk
    ]


def current_places(
    dataset: Dataset, *, shards: list[str] | None = None, clips: list[str] | None = None
) -> dict[str, tuple[str, list[tuple[int, int, int, int]]]]:
    """Shard and (JPEG offset, JPEG size, label offset, label size) of each frame of some clips."""
    column, wanted = ("clip_id", clips) if shards is None else ("shard", shards)
    if not wanted:
        return {}
    wanted = pa.array(wanted, pa.string())
    found = {}
    for table in iterate_tables(dataset, "clips", ["clip_id", *(name for name, _ in CLIP_PLACES)]):
        is_wanted = pc.and_(pc.is_valid(table["shard"]), pc.is_in(table[column], wanted))
        for row in table.filter(is_wanted).to_pylist():
            ranges = list(zip(*(row[name] for name, _ in CLIP_PLACES[1:]), strict=True))
            found[row["clip_id"]] = row["shard"], ranges
    return found


class PackStage:
    """Writes one shard into the stage's folder."""

    def __init__(self, recipe: Recipe, folder: Place) -> None:
        self._folder = folder

    def process(self, unit: dict[str, Any]) -> UnitResult:
        """Write the shard of `unit`; its rows say where each frame is."""
        places = []
        num_samples = 0
        with NewFile(self._folder / f"{unit['name']}.tar") as temporary:
            with open(temporary, "wb") as file:
                writer = SampleWriter(file)
                for clip in unit["clips"]:
                    lies = {name: [] for name, _ in CLIP_PLACES[1:]}
                    for frame, (jpeg, label) in enumerate(_clip_samples(clip)):
                        label = encode_label(orjson.loads(label) | label_addition(clip, unit["split"]))
                        key = sample_key(clip["clip_id"], frame)
                        lies["frame_offsets"].append(writer.add(f"{key}.jpg", jpeg))
                        lies["frame_sizes"].append(len(jpeg))
                        lies["label_offsets"].append(writer.add(f"{key}.json", label))
                        lies["label_sizes"].append(len(label))
                        num_samples += 1
                    places.append({"clip_id": clip["clip_id"], "shard": unit["shard"], **lies})
                size = writer.finish()
            with open(temporary, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        row = {
            "shard": unit["shard"],
            "split": unit["split"],
            "num_clips": len(unit["clips"]),
            "num_samples": num_samples,
            "size_bytes": size,
            "sha256": digest,
            "plan_hash": unit["name"],
            "licences": sorted({clip["licence"] or "" for clip in unit["clips"]}),
        }
        return UnitResult(rows={"shards": [row], "places": places}, num_frames=num_samples)


def _clip_samples(clip: dict[str, Any]) -> Any:
    """(JPEG, label) of every frame of a clip, from its staged tar or from the shard that it is in."""
    if clip["staged"] is not None:
        members = read_members(read_bytes(place(clip["staged"])))
        for frame in range(len(members) // 2):
            key = sample_key(clip["clip_id"], frame)
            yield members[f"{key}.jpg"], members[f"{key}.json"]
        return
    start, end = clip["ranges"][0][0], clip["ranges"][-1][2] + clip["ranges"][-1][3]
    data = memoryview(read_range(place(clip["shard"]), start, end))  # a clip lies in one piece
    for jpeg_offset, jpeg_size, label_offset, label_size in clip["ranges"]:
        jpeg, label = data[jpeg_offset - start :][:jpeg_size], data[label_offset - start :][:label_size]
        yield bytes(jpeg), bytes(label)


def publish(dataset: Dataset, plan: list[dict[str, Any]], folder: Place) -> None:
    """Move finished shards into place, then write `shards` and the places in `clips`. May be repeated after a crash.

    Shards that are not in the plan any more are removed last.
    """
    rows, places, moves = [], [make_table("clips", [])], []
    make_folder(dataset.shards)
    _forget_replaced(dataset, plan, folder)
    old = {row["shard"]: row for row in read_table(dataset, "shards").to_pylist()}
    staged = {path.name: path for path in list_files(folder, ".tar")}
    written = {shard["plan_hash"]: shard for shard in plan}
    commits = {path: size for path, size in list_files(folder, ".json").items() if path.stem in written}
    for path, data in read_files(commits):
        shard = written.pop(path.stem)
        content = orjson.loads(data)["rows"]
        rows += content["shards"]
        places.append(make_table("clips", content["places"]))
        if new := staged.get(f"{shard['plan_hash']}.tar"):
            moves.append((new, dataset.shards / shard["shard"]))
    stay = pa.array([c["clip_id"] for shard in written.values() for c in shard["clips"]], pa.string())
    rows += [old[shard["shard"]] for shard in written.values()]
    move_all(moves)
    moved = pa.concat_tables(places).select(["clip_id", *(name for name, _ in CLIP_PLACES)])
    replace_table(dataset, "clips", (_with_places(clips, moved, stay) for clips in iterate_tables(dataset, "clips")))
    replace_table(dataset, "shards", make_table("shards", rows).sort_by("shard"))
    names = {shard["shard"] for shard in plan}
    remove_files(file for file in list_files(dataset.shards, ".tar") if file.name not in names)


def _with_places(clips: pa.Table, moved: pa.Table, stay: pa.Array) -> pa.Table:
    """Rows of `clips` with the places of `moved`; what neither is there nor in `stay` is in no shard."""
    at = pc.index_in(clips["clip_id"], moved["clip_id"].combine_chunks())
    stays = pc.is_in(clips["clip_id"], stay)
    for name, kind in CLIP_PLACES:
        old = pc.if_else(stays, clips[name], pa.scalar(None, kind))
        new = pc.if_else(pc.is_valid(at), moved[name].take(at), old)
        clips = clips.set_column(CLIPS.get_field_index(name), CLIPS.field(name), new)
    return clips


def _forget_replaced(dataset: Dataset, plan: list[dict[str, Any]], folder: Place) -> None:
    """Drop what the manifests say of shards that are about to be overwritten.

    Otherwise a run that dies in between, and is followed by one with other thresholds, would take the new file for the
    old one.
    """
    staged = {path.stem for path in list_files(folder, ".tar")}
    replaced = pa.array([s["shard"] for s in plan if s["plan_hash"] in staged], pa.string())
    shards = read_table(dataset, "shards")
    replace_table(dataset, "shards", shards.filter(pc.invert(pc.is_in(shards["shard"], replaced))))
    if pc.any(pc.is_in(read_table(dataset, "clips", ["shard"])["shard"], replaced)).as_py():
        replace_table(dataset, "clips", (_without_shards(t, replaced) for t in iterate_tables(dataset, "clips")))


def _without_shards(clips: pa.Table, shards: pa.Array) -> pa.Table:
    stale = pc.is_in(clips["shard"], shards)
    for name, kind in CLIP_PLACES:
        values = pc.if_else(stale, pa.scalar(None, kind), clips[name])
        clips = clips.set_column(CLIPS.get_field_index(name), CLIPS.field(name), values)
    return clips
