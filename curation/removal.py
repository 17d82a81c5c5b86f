"""Takes clips and whole sources out of a data set: shards, tables, staged files and reports.

What is to be done is worked out once and written to a journal; every step after that may be repeated, so that a removal
that dies at any moment is finished by whatever command comes next. Shards without any of the clips are not touched.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import decisions, pack, shard_plan, tombstones
from curation.places import merge_sources
from curation.recipe import Recipe, recipe_of, recipe_toml
from curation.runs import run_file
from curation.units import Ledger, commit_unit
from manifests.schema import CLIP_PLACES, TABLES, make_table
from manifests.storage import (
    Place,
    list_files,
    list_folders,
    make_folder,
    move_all,
    read_bytes,
    remove_empty_folder,
    remove_file,
    remove_files,
    remove_tree,
)
from manifests.store import Dataset, as_of_today, open_parquet, read_table, write_bytes_atomically, write_parquet
from manifests.views import connect

_PLACES = tuple(name for name, _ in CLIP_PLACES)
_WITH_ROWS = ("index", "scan", "crop")
"""Stages of which units commit rows of sources, tracks and clips."""
BY_HAND = ("keep_clips", "reject_clips")
"""Options of select that name clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """All that a removal does; plain enough for the journal."""

    request: str
    """Names the call of `forget` in its tombstones."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """source_id and uris of the sources that go as a whole."""
    clips: list[str] = field(default_factory=list)
    """Ids of all clips that go, those of whole sources too."""
    rewritten: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the plan of the shards that are written again, without the clips."""
    removed: list[str] = field(default_factory=list)
    """Shards of which nothing is left."""
    discarded: list[str] = field(default_factory=list)
    """Shards that an interrupted run left half-replaced; nobody can say what is in them, the next run makes them."""
    tombstones: list[dict[str, Any]] = field(default_factory=list)
    """Rows that keep all this from coming back."""
    split_groups: dict[str, str] = field(default_factory=dict)
    """Of clips that stay, were never kept and show a person or footage of clips that go: should such a clip come to
    be kept, it belongs where those were, because a model may have been fitted to them."""


def journal_file(dataset: Dataset) -> Place:
    """There from the moment a removal is decided until its last step is done."""
    return dataset.root / "forget.json"


def settle(dataset: Dataset, recipe: Recipe) -> None:
    """Bring what interrupted runs have finished into the manifests and drop the rest, so that there is one place to
    look for anything. Recipes that name a clip which was forgotten before do so no more."""
    make_folder(dataset.root / "manifests")  # a run may have ended before its first table
    refused = tombstones.refused_contents(read_table(dataset, "tombstones").to_pylist())
    for stage in _WITH_ROWS:
        ledger = Ledger(dataset, stage, recipe.stage_hash(stage))
        for folder in list_folders(dataset.staging):
            if folder.name.startswith(f"{stage}-") and folder != ledger.folder:
                remove_tree(folder)
        ledger.absorb({"sources": partial(merge_sources, refused=refused)} if stage == "index" else None)
    ledger = Ledger(dataset, "pack", recipe.stage_hash("pack"))
    if ledger.folder in list_folders(dataset.staging):
        plan = shard_plan.plan_shards(read_table(dataset, "clips"), recipe, read_table(dataset, "tombstones"))
        committed = set(ledger.staged_units())
        if all(shard["plan_hash"] in committed for shard in pack.unfinished_shards(dataset, plan)):
            pack.publish(dataset, plan, ledger.folder)
    for folder in list_folders(dataset.staging):
        if folder.name.startswith(("pack-", "plan-")):
            remove_tree(folder)
    _drop_names(dataset)


def has_unfinished_work(dataset: Dataset) -> bool:
    """Whether units have committed what is not in the manifests yet, and what `settle` would bring there."""
    stages = [folder for folder in list_folders(dataset.staging) if folder.name.split("-")[0] in _WITH_ROWS]
    return any(list_files(folder, ".json") for folder in stages)


def without_names(recipe: Recipe, is_forgotten: Callable[[str], bool]) -> Recipe:
    """The recipe without forgotten clips among those that are decided by hand."""
    left = {name: tuple(i for i in getattr(recipe.select, name) if not is_forgotten(i)) for name in BY_HAND}
    return replace(recipe, select=replace(recipe.select, **left))


def _drop_names(dataset: Dataset) -> None:
    """Take the ids of all forgotten clips out of the recipe and out of the recipes of earlier runs."""
    is_forgotten = tombstones.forgets(read_table(dataset, "tombstones").to_pylist())
    recipe = recipe_of(dataset.root)
    if (left := without_names(recipe, is_forgotten)) != recipe:
        write_bytes_atomically(dataset.recipe_file, recipe_toml(left).encode())
    _rewrite(dataset, "runs", lambda table: _strip_recipes(table, is_forgotten))


def plan_shards_without(dataset: Dataset, recipe: Recipe, clip_ids: set[str]) -> dict[str, list]:
    """`rewritten`, `removed` and `discarded` of a removal of these clips."""
    db = connect(dataset.root)
    db.register("gone", pa.table({"clip_id": pa.array(sorted(clip_ids), pa.string())}))
    held = dict(db.execute("SELECT shard, count(*) FROM clips WHERE shard IS NOT NULL GROUP BY shard").fetchall())
    shards = {row["shard"]: row for row in read_table(dataset, "shards").to_pylist()}
    on_disk = {path.name for path in list_files(dataset.shards, ".tar")}
    whole = {n for n, row in shards.items() if n in on_disk and held.get(n) == row["num_clips"]}
    touched = db.execute("SELECT DISTINCT shard FROM clips SEMI JOIN gone USING (clip_id)").fetchall()
    affected = sorted({name for (name,) in touched} & whole)
    columns = ", ".join(("shard", *shard_plan.OF_CLIPS))
    left = db.execute(  # of all of them at once: each look reads the offsets of every frame of every clip
        f"SELECT {columns} FROM clips ANTI JOIN gone USING (clip_id) WHERE shard IN (FROM unnest($1))"
        " ORDER BY shard, frame_offsets[1]",
        [affected],
    ).fetchall()
    members: dict[str, list[dict[str, Any]]] = {}
    for name, *values in left:
        members.setdefault(name, []).append(dict(zip(shard_plan.OF_CLIPS, values, strict=True)))
    rewritten = [shard_plan.plan_row(name, shards[name]["split"], clips, recipe) for name, clips in members.items()]
    removed = [name for name in affected if name not in members]
    discarded = sorted((set(shards) | on_disk | set(held)) - whole)
    return {"rewritten": rewritten, "removed": removed, "discarded": discarded}


def inherited_groups(dataset: Dataset, clip_ids: set[str]) -> dict[str, str]:
    """`split_groups` of a removal of these clips; train before val before test where there are several."""
    db = connect(dataset.root)
    db.register("gone", pa.table({"clip_id": pa.array(sorted(clip_ids), pa.string())}))
    query = """
        WITH old AS (SELECT * FROM clips SEMI JOIN gone USING (clip_id) WHERE split_group IS NOT NULL),
        new AS (SELECT * FROM clips ANTI JOIN gone USING (clip_id) WHERE split_group IS NULL),
        linked AS (
            SELECT new.clip_id, old.split, old.split_group FROM new JOIN old USING (identity_id)
            UNION ALL SELECT new.clip_id, old.split, old.split_group FROM new JOIN old USING (source_id)
            UNION ALL SELECT new.clip_id, old.split, old.split_group FROM new JOIN old ON new.duplicate_of = old.clip_id
        )
        SELECT clip_id, arg_min(split_group, (coalesce(list_position(['train', 'val', 'test'], split), 4), split_group))
        FROM linked GROUP BY clip_id ORDER BY clip_id"""
    return dict(db.execute(query).fetchall())


def remove(dataset: Dataset, removal: Removal) -> None:
    """Do it. From its first step on, any command that takes the data set's lock finishes it."""
    write_bytes_atomically(journal_file(dataset), json.dumps(asdict(removal)).encode())
    _carry_out(dataset, removal)


def finish_removal(dataset: Dataset) -> bool:
    """Finish a removal that was interrupted; whether there was one. The caller holds the lock."""
    journal = journal_file(dataset)
    if not journal.exists():
        return False
    print(f"finishing the removal that {journal} says was begun", file=sys.stderr)
    _carry_out(dataset, Removal(**json.loads(read_bytes(journal))))
    return True


def _carry_out(dataset: Dataset, removal: Removal) -> None:
    """Every step may have been done before, in part or in full."""
    tombstones.add_tombstones(dataset, removal.tombstones)
    _drop_names(dataset)
    folder = dataset.staging / f"forget-{removal.request}"
    _write_shards(dataset, removal, folder)
    _remove_staged(dataset, removal)
    remove_tree(dataset.report)
    staged = {path.stem: path for path in list_files(folder, ".tar")}
    rewritten = [shard for shard in removal.rewritten if shard["plan_hash"] in staged]
    move_all((staged[shard["plan_hash"]], dataset.shards / shard["shard"]) for shard in rewritten)
    remove_files(dataset.shards / name for name in removal.removed + removal.discarded)
    _rewrite_tables(dataset, removal, folder)
    remove_tree(folder)
    remove_empty_folder(dataset.staging)
    remove_file(journal_file(dataset))


def _write_shards(dataset: Dataset, removal: Removal, folder: Place) -> None:
    """Put the new shards into `folder`, all of them before the first is moved: they are copied from the old ones."""
    committed = {path.stem for path in list_files(folder, ".json")}
    unwritten = [shard for shard in removal.rewritten if shard["plan_hash"] not in committed]
    if not unwritten:
        return
    make_folder(folder)
    for path in folder.glob(".*.tmp"):
        path.unlink()
    names = [shard["shard"] for shard in removal.rewritten]
    places = pack.current_places(dataset, "shard", names)
    stage = pack.PackStage(recipe_of(dataset.root), folder)
    for shard in unwritten:
        unit = pack.pack_unit(shard, places)
        commit_unit(folder, "pack", unit, stage.process(unit), 0.0, "")


def _remove_staged(dataset: Dataset, removal: Removal) -> None:
    """Cropped pictures that wait in staging/, finished or not, and what the last run told about its work."""
    remove_file(run_file(dataset))
    whole, clips = {source["source_id"] for source in removal.sources}, set(removal.clips)
    stages = [folder for folder in list_folders(dataset.staging) if folder.name.startswith("crop-")]
    for path in (path for stage in stages for path in list_files(stage, below=True)):
        if path.parent.name.rsplit("-", 1)[0] in whole or path.name.endswith(".tmp") or path.stem in clips:
            remove_file(path)
    for folder in (folder for stage in stages for folder in list_folders(stage)):
        remove_empty_folder(folder)
    decisions.drop_decisions(dataset, removal.clips, sorted(whole))


def _rewrite_tables(dataset: Dataset, removal: Removal, folder: Place) -> None:
    gone = pa.array(removal.clips, pa.string())
    whole = pa.array([source["source_id"] for source in removal.sources], pa.string())
    touched = sorted({row["source_id"] for row in removal.tombstones if row["kind"] == "clip"})
    _rewrite(dataset, "frames", lambda table: _without(table, "clip_id", gone))
    _rewrite(dataset, "tracks", lambda table: _strip_tracks(_without(table, "source_id", whole), touched, removal))
    _rewrite(dataset, "failures", lambda table: _strip_failures(table, removal))
    _rewrite(dataset, "units", lambda table: _without(table, "source_id", whole))
    _rewrite(dataset, "runs", lambda table: _strip_runs(table, removal))
    _rewrite(dataset, "sources", lambda table: _without(table, "source_id", whole))
    commits = [json.loads(read_bytes(folder / f"{s['plan_hash']}.json"))["rows"] for s in removal.rewritten]
    places = {place["clip_id"]: place for commit in commits for place in commit["places"]}
    _rewrite(dataset, "clips", lambda table: _replace_places(_without(table, "clip_id", gone), places, removal))
    rows = {row["shard"]: row for commit in commits for row in commit["shards"]}
    _rewrite(dataset, "shards", lambda table: _replace_shards(table, rows, removal))


def _rewrite(dataset: Dataset, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write anew the files of a table that `change` changes, some rows at a time; nothing of a dropped row stays."""
    for file in dataset.table_files(name):
        num_rows, is_changed = 0, False
        for old in _row_groups(file, name):
            new = change(old)
            num_rows += len(new)
            is_changed = is_changed or (new is not old and not new.equals(old))
        if not num_rows and name == "frames":
            remove_file(file)
        elif is_changed:
            write_parquet(file, map(change, _row_groups(file, name)))


def _row_groups(file: Place, name: str) -> Iterator[pa.Table]:
    """The rows of one file in its row groups, with today's columns; at least one table."""
    with open_parquet(file) as parquet:
        for number in range(parquet.num_row_groups):
            yield as_of_today(parquet.read_row_group(number), name)
        if not parquet.num_row_groups:
            yield TABLES[name].empty_table()


def _without(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    is_gone = pc.is_in(table[column], values)
    return table.filter(pc.invert(is_gone)) if pc.any(is_gone).as_py() else table


def _strip_tracks(table: pa.Table, source_ids: list[str], removal: Removal) -> pa.Table:
    """Without the candidates that became the clips, tracks of which no other candidate is left, and those of refused
    times that had none."""
    is_touched = pc.is_in(table["source_id"], pa.array(source_ids, pa.string()))
    if not pc.any(is_touched).as_py():
        return table
    gone, stones = set(removal.clips), {source_id: [] for source_id in source_ids}
    for row in removal.tombstones:
        if row["kind"] == "track":
            stones[row["source_id"]].append(row)
    refusals = {source_id: tombstones.Refusals(rows) for source_id, rows in stones.items()}
    rows = tombstones.strip_tracks(
        table.filter(is_touched).to_pylist(),
        lambda candidate: candidate["clip_id"] in gone,
        lambda track: refusals[track["source_id"]].refuses_time(track),
    )
    others = table.filter(pc.invert(is_touched))
    return pa.concat_tables([others, make_table("tracks", rows)]).sort_by("track_id")


def _strip_failures(table: pa.Table, removal: Removal) -> pa.Table:
    """Without those of the sources, and without those that name a clip."""
    whole = {source["source_id"] for source in removal.sources}
    uris = {uri for source in removal.sources for uri in source["uris"]}
    clips = set(removal.clips)
    keep = [
        row["source_id"] not in whole and row["uri"] not in uris and not tombstones.names_any(row["message"], clips)
        for row in table.select(["source_id", "uri", "message"]).to_pylist()
    ]
    return table if all(keep) else table.filter(pa.array(keep))


def _strip_runs(table: pa.Table, removal: Removal) -> pa.Table:
    """Without inputs that name one of the sources itself, and without errors that name a source or a clip."""
    uris = {uri for source in removal.sources for uri in source["uris"]}
    names = uris | {source["source_id"] for source in removal.sources} | set(removal.clips)
    rows = table.to_pylist()
    for row in rows:
        row["inputs"] = ["(forgotten)" if text in uris else text for text in row["inputs"] or []]
        if row["last_error"] and any(name in row["last_error"] for name in names):
            row["last_error"] = "(forgotten)"
    return make_table("runs", rows)


def _strip_recipes(table: pa.Table, is_forgotten: Callable[[str], bool]) -> pa.Table:
    """With recipes, and changes of recipes, that name no forgotten clip. Their hashes stay as they were."""

    def strip(line: str) -> str:
        name, _, ids = line.partition(" = ")
        return (
            f"{name} = {json.dumps([i for i in json.loads(ids) if not is_forgotten(i)])}" if name in BY_HAND else line
        )

    rows = table.to_pylist()
    for row in rows:
        row["recipe"] = row["recipe"] and "".join(f"{strip(line)}\n" for line in row["recipe"].splitlines())
        row["recipe_changes"] = row["recipe_changes"] and [
            f"{text.split()[0]} (forgotten)" if any(map(is_forgotten, re.findall(r"\w+", text))) else text
            for text in row["recipe_changes"]
        ]
    return make_table("runs", rows)


def _replace_places(table: pa.Table, places: dict[str, dict[str, Any]], removal: Removal) -> pa.Table:
    """With the places in the new shards, none in discarded ones, no clip said to be a copy of one that is gone, and the
    groups of clips that inherit one."""
    moved, gone = [shard["shard"] for shard in removal.rewritten], set(removal.clips)
    is_changed = pc.is_in(table["shard"], pa.array(moved + removal.discarded, pa.string()))
    is_changed = pc.or_(is_changed, pc.is_in(table["clip_id"], pa.array(list(removal.split_groups), pa.string())))
    is_changed = pc.or_(is_changed, pc.is_in(table["duplicate_of"], pa.array(removal.clips, pa.string())))
    if not pc.any(is_changed).as_py():
        return table
    rows = table.filter(is_changed).to_pylist()
    for row in rows:
        if row["clip_id"] in places:
            row |= places[row["clip_id"]]
        elif row["shard"] in removal.discarded:
            row |= dict.fromkeys(_PLACES)
        if row["duplicate_of"] in gone:
            row["duplicate_of"] = None
        if row["clip_id"] in removal.split_groups:
            row["split_group"] = removal.split_groups[row["clip_id"]]
    others = table.filter(pc.invert(is_changed))
    return pa.concat_tables([others, make_table("clips", rows)]).sort_by("clip_id")


def _replace_shards(table: pa.Table, rows: dict[str, dict[str, Any]], removal: Removal) -> pa.Table:
    table = _without(table, "shard", pa.array(removal.removed + removal.discarded, pa.string()))
    return make_table("shards", [rows.get(row["shard"], row) for row in table.to_pylist()])
