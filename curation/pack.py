"""pack: join the kept clips to WebDataset shards. One unit is one shard, a pure function of its row of the plan.

New shards are complete under staging/ before the first of them moves to shards/, so that clips whose staged pictures
are gone can be copied from the shards they are in now.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from curation.recipe import Recipe
from curation.samples import BLOCK_BYTES, SampleWriter, encode_label, member_bytes, read_members, sample_key
from curation.shard_plan import label_addition
from curation.units import UnitResult
from manifests.schema import CLIP_PLACES, CLIPS, make_table
from manifests.storage import (
    NewFile,
    Place,
    list_files,
    list_folders,
    make_folder,
    move_all,
    place,
    read_bytes,
    read_files,
    read_range,
    remove_file,
    remove_files,
)
from manifests.store import Dataset, iterate_with, read_table, replace_table, write_bytes_atomically
from manifests.views import connect

_NO_PLACES = make_table("clips", []).select(["clip_id", *(name for name, _ in CLIP_PLACES)])
_ROWS_AT_ONCE = 4096
_JOURNAL = "publishing"
"""In the folder of the stage while its shards are moved: the plan, with the clips' ids alone."""
_BYTES_PER_S = 20e6
"""At which a shard is written by any machine: a local disk is several times as fast, and over a link of 16 Mbit/s each
way it takes 20 times as long, which is where the deadline of a unit is."""


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


def pack_units(dataset: Dataset, shards: list[dict[str, Any]], crop_folder: Place) -> Iterator[dict[str, Any]]:
    """One unit a row of the plan, with the places of its clips' samples: staged, or else in the shards of now."""
    staged = {path.stem: (str(path), 0, size) for path, size in list_files(crop_folder, ".tar", below=True).items()}
    unstaged = {c["clip_id"] for shard in shards for c in shard["clips"]} - staged.keys()
    places = staged | current_places(dataset, "clip_id", unstaged)
    return (pack_unit(shard, places) for shard in shards)


def pack_unit(shard: dict[str, Any], places: Mapping[str, tuple[str, int, int]]) -> dict[str, Any]:
    """The unit that writes a shard of the plan.

    places: of each of its clips the file that holds its samples, a whole tar or a part of one, and where they begin and
    end in it. They lie in one piece, so a unit holds a few numbers a clip, however many frames that has.
    """
    clips, num_bytes = [], 0
    for clip in shard["clips"]:
        file, start, end = places[clip["clip_id"]]
        clips.append(clip | {"file": file, "start": start, "end": end})
        num_bytes += end - start
    return {
        "name": shard["plan_hash"],
        "shard": shard["shard"],
        "split": shard["split"],
        "clips": clips,
        "expected_s": 1 + num_bytes / _BYTES_PER_S,
    }


def unfinished_shards(dataset: Dataset, plan: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the plan that are not in place, file and rows."""
    hashes = dict(zip(*read_table(dataset, "shards", ["shard", "plan_hash"]).to_pydict().values(), strict=True))
    places = dict(zip(*read_table(dataset, "clips", ["clip_id", "shard"]).to_pydict().values(), strict=True))
    on_disk = _shards_on_disk(dataset)
    return [
        shard
        for shard in plan
        if hashes.get(shard["shard"]) != shard["plan_hash"]
        or any(places.get(clip["clip_id"]) != shard["shard"] for clip in shard["clips"])
        or shard["shard"] not in on_disk
    ]


def current_places(dataset: Dataset, column: str, wanted: Collection[str]) -> dict[str, tuple[str, int, int]]:
    """Shard, and where in it the samples begin and end, of the clips that have one of the `wanted` in a column."""
    if not wanted:
        return {}
    files = {path.name: str(path) for path in list_files(dataset.shards, ".tar")}
    db = connect(dataset.root)
    db.register("wanted", pa.table({column: pa.array(sorted(wanted), pa.string())}))
    rows = db.execute(
        f"""SELECT clip_id, shard, frame_offsets[1], label_offsets[-1], label_sizes[-1]
        FROM clips SEMI JOIN wanted USING ({column}) WHERE shard IS NOT NULL"""
    )
    places = {}
    while some := rows.fetchmany(_ROWS_AT_ONCE):
        for clip_id, shard, first_jpeg, last_label, label_size in some:
            end = last_label - BLOCK_BYTES + member_bytes(label_size)
            places[clip_id] = files[shard], first_jpeg - BLOCK_BYTES, end
    return places


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


def _clip_samples(clip: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """(JPEG, label) of every frame of a clip."""
    members = read_members(read_range(place(clip["file"]), clip["start"], clip["end"]))
    for frame in range(len(members) // 2):
        key = sample_key(clip["clip_id"], frame)
        yield members[f"{key}.jpg"], members[f"{key}.json"]


def publish(dataset: Dataset, plan: list[dict[str, Any]], folder: Place) -> None:
    """Move finished shards into place, then write `shards` and the places in `clips`.

    Shards that are not in the plan any more are removed last. While shards replace others, only the commits in `folder`
    say where some clips are; so what is begun here is finished by any command that takes the data set's lock.
    """
    names = [
        {key: shard[key] for key in ("shard", "plan_hash")}
        | {"clips": [{"clip_id": c["clip_id"]} for c in shard["clips"]]}
        for shard in plan
    ]
    write_bytes_atomically(folder / _JOURNAL, orjson.dumps(names))
    _publish(dataset, plan, folder)
    remove_file(folder / _JOURNAL)


def finish_publishing(dataset: Dataset) -> None:
    """Finish what an interrupted run was putting in place, whatever the recipe is now. The caller holds the lock."""
    for folder in list_folders(dataset.staging):
        if folder.name.startswith("pack-") and (folder / _JOURNAL).exists():
            print(f"putting the shards in place that an interrupted run has left in {folder}", file=sys.stderr)
            _publish(dataset, orjson.loads(read_bytes(folder / _JOURNAL)), folder)
            remove_file(folder / _JOURNAL)


def _publish(dataset: Dataset, plan: list[dict[str, Any]], folder: Place) -> None:
    """Every step may have been done before, in part or in full."""
    rows, places, moves = [], [_NO_PLACES], []
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
        places.append(make_table("clips", content["places"]).select(_NO_PLACES.column_names))
        if new := staged.get(f"{shard['plan_hash']}.tar"):
            moves.append((new, dataset.shards / shard["shard"]))
    stay = pa.array([c["clip_id"] for shard in written.values() for c in shard["clips"]], pa.string())
    rows += [old[shard["shard"]] for shard in written.values()]
    move_all(moves)
    stays = pc.is_in(read_table(dataset, "clips", ["clip_id"])["clip_id"], stay)
    _rewrite_places(dataset, pa.concat_tables(places), stays)
    replace_table(dataset, "shards", make_table("shards", rows).sort_by("shard"))
    names = {shard["shard"] for shard in plan}
    remove_files(file for file in list_files(dataset.shards, ".tar") if file.name not in names)


def _rewrite_places(dataset: Dataset, moved: pa.Table, stays: pa.ChunkedArray) -> None:
    """Write `clips` with the places of `moved`; what is neither there nor `stays`, bool [num_clips], is in no shard."""
    moved = moved.combine_chunks()  # or every `take` would put them together again
    ids = read_table(dataset, "clips", ["clip_id"])["clip_id"]
    beside = pa.table({"at": pc.index_in(ids, moved["clip_id"].combine_chunks()), "stays": stays})
    tables = (_with_places(clips, moved, mine) for clips, mine in iterate_with(dataset, "clips", beside))
    replace_table(dataset, "clips", tables)


def _with_places(clips: pa.Table, moved: pa.Table, beside: pa.Table) -> pa.Table:
    for name, kind in CLIP_PLACES:
        old = pc.if_else(beside["stays"], clips[name], pa.scalar(None, kind))
        new = pc.if_else(pc.is_valid(beside["at"]), moved[name].take(beside["at"]), old)
        clips = clips.set_column(CLIPS.get_field_index(name), CLIPS.field(name), new)
    return clips


def _forget_replaced(dataset: Dataset, plan: list[dict[str, Any]], folder: Place) -> None:
    """Drop what the manifests say of shards that are about to be overwritten.

    Whoever reads the data set in between, or after a run that died there, would take the new file for the old one.
    """
    staged = {path.stem for path in list_files(folder, ".tar")}
    replaced = pa.array([s["shard"] for s in plan if s["plan_hash"] in staged], pa.string())
    shards = read_table(dataset, "shards")
    replace_table(dataset, "shards", shards.filter(pc.invert(pc.is_in(shards["shard"], replaced))))
    is_replaced = pc.is_in(read_table(dataset, "clips", ["shard"])["shard"], replaced)
    if pc.any(is_replaced).as_py():
        _rewrite_places(dataset, _NO_PLACES, pc.invert(is_replaced))
