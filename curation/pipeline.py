"""The whole job: index, scan, crop, select, pack. The same call again continues; after success it does nothing."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from curation import decisions, index, pack, places, shard_plan, tombstones
from curation.address import require_cluster
from curation.changes import Selection, describe_change, read_contents
from curation.distribute import Cluster, ClusterOptions, cluster
from curation.fetching import copying_s
from curation.job_folder import require_lasting
from curation.lock import only_run
from curation.progress import StageProgress
from curation.recipe import (
    Recipe,
    load_recipe,
    recipe_changes,
    recipe_of,
    recipe_toml,
    told_changes,
    with_full_paths,
)
from curation.removal import without_names
from curation.runs import RunRecord, record_command, record_run
from curation.safeguards import SourcesLost, check_networks, require_results, require_rights, require_sources
from curation.sandbox import FatalError
from curation.select import select
from curation.units import BROUGHT_DOWN, NOT_OF_THE_FILE, Ledger
from manifests.storage import Place, list_files, list_folders, make_folder, remove_tree
from manifests.store import Dataset, iterate_rows, iterate_tables, read_table, release_memory, write_bytes_atomically
from model.faces import same_person_similarity

Wanted: TypeAlias = Callable[[str], bool]
"""Of the name of a unit."""


@dataclass(slots=True)
class Outcome:
    """What a run did."""

    num_units: int = 0
    """Units of work done in this run; 0: everything was there already."""
    change: str = ""
    """What has changed in a data set that was there before, in words; empty: nothing."""


def run(
    inputs: list[str],
    output: str | Place,
    recipe: Recipe,
    *,
    cluster_options: ClusterOptions | None = None,
    keep_staging: bool = False,
    retry_failed: bool = False,
    allow_looser_rights: bool = False,
    allow_lost_clips: bool = False,
) -> Outcome:
    """Curate `inputs` into the data set at `output`.

    keep_staging: leave the cropped pictures there. retry_failed: also do units again that crashed their worker, took
    too long or ended in an error; those whose file could not be read, or whose process the system killed, are tried
    again by every run.
    allow_looser_rights: let in what the data set's recipe has kept out for its licence or for want of consent.
    allow_lost_clips: make all clips anew with other options of scan or crop also where sources of kept ones are gone.

    Raises:
        ValueError: an input is missing, or the output is no data set or belongs to another version of recipes, or
            another command writes to it, or its rights would be loosened, or clips would be lost, or Ray
            would remove a source or the output (`require_lasting`).
        FatalError: the work cannot go on at all; what was finished stays and the same call continues. Where it cannot
            even start, the recipe stays, too.
    """
    cluster_options = cluster_options or ClusterOptions()
    if cluster_options.gpus_per_worker and not recipe.needs_gpu:
        raise ValueError(
            "--gpus-per-worker without --faces.device cuda or --decoder nvdec would take GPUs and not use them"
        )
    require_cluster(cluster_options.address)
    sources = index.list_inputs(inputs, recipe.index)
    require_lasting((unit["uri"] for unit in sources), "the source")
    dataset = open_dataset(output)
    address = cluster_options.address or os.environ.get("RAY_ADDRESS", "")
    with only_run(dataset), cluster(cluster_options) as workers:
        before = read_contents(dataset)
        if before.recipe is not None and not allow_looser_rights:
            require_rights(dataset, before.recipe, recipe)
        recipe = _without_forgotten(dataset, recipe)
        changes = [] if before.recipe is None else told_changes(before.recipe, recipe)
        if before.recipe is None:
            _replace_recipe(dataset, recipe)  # with records and without a recipe it would be no data set
        with record_run(dataset, inputs, recipe, address, changes=changes) as record:
            retried = (*NOT_OF_THE_FILE, *(BROUGHT_DOWN if retry_failed else ()))
            job = _Job(dataset, recipe, workers, record, retried, may_lose_clips=allow_lost_clips)
            job.require_means(sources)
            _replace_recipe(dataset, recipe, changes)
            try:
                job.do_all(sources)
            except SourcesLost:
                _replace_recipe(dataset, before.recipe or recipe)  # it stays in force
                raise
        if not keep_staging:
            with suppress(OSError):
                remove_tree(dataset.staging)
        return Outcome(job.num_units, describe_change(before, read_contents(dataset)))


def _without_forgotten(dataset: Dataset, recipe: Recipe) -> Recipe:
    """The recipe without the names of forgotten clips, which a recipe of the user's own may still have."""
    return without_names(recipe, tombstones.forgets(read_table(dataset, "tombstones").to_pylist()))


def _replace_recipe(dataset: Dataset, recipe: Recipe, changes: Sequence[str] = ()) -> None:
    """Write the recipe of the data set, and tell the options in which it differs from the one before."""
    if changes:
        print(f"the data set's recipe changes: {', '.join(changes)}", file=sys.stderr)
    write_bytes_atomically(dataset.recipe_file, recipe_toml(recipe).encode())


def reselect(dataset: Dataset, recipe: Recipe) -> Selection:
    """Decide again about all clips and keep the recipe; the shards stay as they are until the next run.

    Raises:
        ValueError: the recipe differs from the data set's in what only a run can apply.
    """
    with only_run(dataset):
        require_reselectable(dataset, recipe)
        recipe = _without_forgotten(dataset, recipe)
        changes = told_changes(recipe_of(dataset.root), recipe)
        _replace_recipe(dataset, recipe, changes)
        with record_command(dataset, recipe, "select", changes=changes) as record:
            return record.note_selection(select(dataset, recipe, same_person_similarity(recipe.faces)))


def require_reselectable(dataset: Dataset, recipe: Recipe) -> None:
    """ValueError where `select` cannot apply a recipe: it differs from the data set's in more than select.* and seed,
    or there are no clips."""
    changes = recipe_changes(recipe_of(dataset.root), recipe)
    others = {name: change for name, change in changes.items() if name != "seed" and not name.startswith("select.")}
    if others:
        told = ", ".join(f"{name} ({old} -> {new})" for name, (old, new) in others.items())
        raise ValueError(f"select applies select.* and seed alone and cannot change {told}: give that to `run`")
    if not any(len(clips) for clips in iterate_tables(dataset, "clips")):
        raise ValueError(f"{dataset.root} has no clips yet, so there is nothing to decide about: `run` makes them")


def open_dataset(output: str | Place) -> Dataset:
    """The data set at `output`, made if there is nothing yet.

    Raises:
        ValueError: something else is there, or its recipe is of another version, or Ray would remove it.
    """
    dataset = Dataset(output)
    require_lasting([dataset.root], "the output")
    if dataset.recipe_file.exists():
        load_recipe(str(dataset.recipe_file))
    elif dataset.root.exists() and (not dataset.root.is_dir() or _holds_other_things(dataset)):
        what = f"{dataset.root} exists and is no data set (it has no recipe.toml)"
        raise ValueError(f"{what}: name a new or an empty folder as --output")
    try:
        make_folder(dataset.staging)
    except OSError as error:
        raise ValueError(f"cannot write to {dataset.root}: {error.strerror}") from error
    return dataset


def _holds_other_things(dataset: Dataset) -> bool:
    """Whether there is more in a folder without a recipe than a run leaves that was killed in its first moment."""
    if any(path != dataset.staging or any(path.iterdir()) for path in list_folders(dataset.root)):
        return True
    return any(p.name != ".lock" and not p.name.startswith(".recipe.toml.") for p in list_files(dataset.root))


class _Job:
    """One run over one data set."""

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        workers: Cluster,
        record: RunRecord,
        retried: tuple[str, ...],
        *,
        may_lose_clips: bool,
    ) -> None:
        self.dataset, self.recipe, self.workers, self.record = dataset, recipe, workers, record
        self._retried, self._may_lose_clips = retried, may_lose_clips
        self.num_units = 0

    def require_means(self, sources: list[dict[str, Any]]) -> None:
        """Where work is left: see that networks, decoder and Ray can be used, before what other options of scan or crop
        have made is dropped for it.

        Raises:
            FatalError: one cannot; nothing has been read or dropped.
        """
        planned = {"index": lambda: [u["name"] for u in sources], "scan": self.scan_names, "crop": self.crop_names}
        if all(set(names()) <= self.ledger(stage).finished_units() for stage, names in planned.items()):
            return
        check = functools.partial(check_networks, with_full_paths(self.recipe))
        self.workers.check(check, needs_gpu=self.recipe.needs_gpu)
        self.workers.connect()

    def do_all(self, sources: list[dict[str, Any]]) -> None:
        """From the listed files to shards in their places."""
        refused = tombstones.refused_contents(read_table(self.dataset, "tombstones").to_pylist())
        listed = {unit["uri"]: unit["name"] for unit in sources}
        ledger = self.ledger("index")
        ledger.discard_staged_except(set(listed.values()))
        known = iterate_rows(self.dataset, "sources", ["places"])
        ledger.reopen(places.superseded_units(known, listed, ledger.failed_units()))
        there = {unit["name"] for unit in sources if unit["size_bytes"] is not None}
        ledger.reopen(there & ledger.failed_units(("not_found",)))  # gone between listing and reading, and back
        collapse = {"sources": functools.partial(places.merge_sources, refused=refused, listed=listed.keys())}
        names, uris = list(listed.values()), list(listed)
        self.do("index", names, lambda is_wanted: (u for u in sources if is_wanted(u["name"])), collapse, uris)
        places.restate(self.dataset)
        self.do("scan", self.scan_names(), self.scan_units)
        self.do("crop", self.crop_names(), self.crop_units)
        self.record.enter("select")
        self.record.note_selection(select(self.dataset, self.recipe, same_person_similarity(self.recipe.faces)))
        self.pack()

    def ledger(self, stage: str) -> Ledger:
        return Ledger(self.dataset, stage, self.recipe.stage_hash(stage))

    def do(
        self,
        stage: str,
        names: list[str],
        make_units: Callable[[Wanted], Iterable[dict[str, Any]]],
        collapse: dict[str, Any] | None = None,
        uris: list[str] | None = None,
    ) -> None:
        """Do the units of a stage that are not finished, then move all rows into the manifests.

        names: of all its units. make_units: those whose names are wanted, one after the other, because together they
        may be more than the memory holds. uris: the places of which `names` are all units; None: of the data set.
        """
        ledger = self.ledger(stage)
        tables = {"index": [], "scan": ["tracks"], "crop": ["frames", "clips"]}[stage]
        if ledger.forget_other_recipes(tables, lambda: self.before_dropping(stage)):
            print(f"the recipe of {stage} has changed: doing it again", file=sys.stderr)
        ledger.discard_staged_failures((*self._retried, "not_found"))
        ledger.reopen(ledger.failed_units(self._retried))
        finished = ledger.finished_units()
        num_todo = sum(name not in finished for name in names)
        self.record.enter(stage, ledger.folder.name, len(names), num_todo, len(finished))
        workers = self.work(stage, make_units(lambda name: name not in finished), num_todo, len(names), ledger.folder)
        if stage == "crop" and ledger.staged_units():
            decisions.keep_decisions(self.dataset)  # clips of units that are done again lose theirs
        ledger.absorb(collapse)
        if num_todo:
            require_results(ledger, set(names) - ledger.finished_units(), workers)
        ledger.drop_superseded(names, uris)
        release_memory()

    def before_dropping(self, stage: str) -> None:
        """Called before the rows that other options of a stage have made are dropped."""
        if stage != "index" and not self._may_lose_clips:
            require_sources(self.dataset, stage)
        if stage == "crop":
            decisions.keep_decisions(self.dataset)

    def work(
        self,
        stage: str,
        units: Iterable[dict[str, Any]],
        num_todo: int,
        total: int,
        folder: Place,
        shown_as: str | None = None,
    ) -> set[str]:
        """Do `units`, which are `num_todo` of the `total` of a stage, and show how it goes; returns who did them."""
        if not num_todo:
            return set()
        self.workers.connect()
        self.record.restart_clock()
        metrics = self.dataset.root / "metrics.jsonl"
        progress = StageProgress(shown_as or stage, total, total - num_todo, metrics)
        workers = set()
        for summary in self.workers.run(stage, self.recipe, folder, units):
            progress.add(summary)
            self.record.count(summary)
            workers.add(summary.get("worker") or "")
        progress.finish()
        self.num_units += num_todo
        return workers - {""}

    def scan_names(self) -> list[str]:
        """Of one unit a span of every usable source."""
        sources = read_table(self.dataset, "sources", ["source_id", "status", "spans"])
        sources = sources.filter(pc.equal(sources["status"], "ok"))
        counts = pc.list_value_length(sources["spans"]).to_pylist()
        return [
            f"{source_id}-{number:04d}"
            for source_id, count in zip(sources["source_id"].to_pylist(), counts, strict=True)
            for number in range(count)
        ]

    def scan_units(self, is_wanted: Wanted) -> Iterator[dict[str, Any]]:
        """One unit a span of every usable source, in the order of the sources."""
        refused = tombstones.refusals_of(read_table(self.dataset, "tombstones").to_pylist())
        for row in iterate_rows(self.dataset, "sources"):
            if row["status"] != "ok":
                continue
            spans, there = row.pop("spans"), places.of_unit(row)
            for number, span in enumerate(spans):
                name = f"{row['source_id']}-{number:04d}"
                if not is_wanted(name):
                    continue
                length_s = (row["duration_s"] or 60.0) / len(spans) if row["kind"] == "video" else 0.0
                megapixels = row["width_px"] * row["height_px"] / 1e6
                yield {
                    "name": name,
                    "uri": row["uris"][0],
                    "places": there,
                    "span": span,
                    "expected_s": 0.2 + length_s * (0.05 + 0.1 * megapixels) + copying_s(there),
                    **{k: row[k] for k in ("source_id", "content_sha256", "kind", "fps", "width_px", "height_px")},
                    **{k: row[k] for k in ("licence", "attribution", "consent")},
                    "provenance": dict(row["provenance"] or {}),
                    "refused": refused[None] + refused.get(row["source_id"], []),
                }

    def crop_names(self) -> list[str]:
        """Of the scanned spans that have candidates."""
        tracks = read_table(self.dataset, "tracks", ["unit", "num_clips"])
        names = tracks.filter(pc.greater(tracks["num_clips"], 0))["unit"].unique()
        return names.filter(pc.is_in(names, pa.array(self.scan_names(), pa.string()))).to_pylist()

    def crop_units(self, is_wanted: Wanted) -> Iterator[dict[str, Any]]:
        """The scanned spans that have candidates, with them, in the order of the sources."""
        tracks = iterate_rows(
            self.dataset,
            "tracks",
            ["track_id", "source_id", "unit", "num_clips", "candidates"],
            lambda row: bool(row["num_clips"]) and is_wanted(row["unit"]),
        )
        # Both tables are sorted by the source, of which the names of tracks begin.
        scanned = self.scan_units(is_wanted)
        unit = next(scanned, None)
        for source_id, rows in groupby(tracks, key=lambda row: row["source_id"]):
            candidates: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                mine = candidates.setdefault(row["unit"], [])
                mine += [candidate | {"track_id": row["track_id"]} for candidate in row["candidates"]]
            while unit is not None and unit["source_id"] <= source_id:
                if found := candidates.get(unit["name"]):
                    length_s = sum(c["end_s"] - c["start_s"] for c in found)
                    megapixels = unit["width_px"] * unit["height_px"] / 1e6
                    expected_s = 0.1 + length_s * (0.15 + 0.1 * megapixels) + copying_s(unit["places"])
                    yield unit | {"candidates": found, "expected_s": expected_s}
                unit = next(scanned, None)

    def pack(self) -> None:
        """Write the shards of the plan that are not there, then put all in place."""
        crop = self.ledger("crop").folder
        ledger = self.ledger("pack")
        for folder in list_folders(self.dataset.staging):
            if folder.name.startswith("pack-") and folder != ledger.folder:
                remove_tree(folder)
        clips = read_table(self.dataset, "clips", shard_plan.PLANNED_FROM)
        plan = shard_plan.plan_shards(clips, self.recipe, read_table(self.dataset, "tombstones"))
        finished = set(ledger.staged_units())
        todo = [shard for shard in plan if shard["plan_hash"] not in finished]
        todo = pack.unfinished_shards(self.dataset, todo)
        if missing := pack.clips_without_pixels(self.dataset, todo, crop):
            is_missing = pc.is_in(clips["clip_id"], pa.array(sorted(missing), pa.string()))
            again = set(clips.filter(is_missing)["unit"].to_pylist())
            units = (
                u | {"only": sorted({c["clip_id"] for c in u["candidates"]} & missing), "pixels_only": True}
                for u in self.crop_units(again.__contains__)
            )
            self.record.enter("recrop", "", len(again), len(again))
            self.work("crop", units, len(again), len(again), crop, shown_as="recrop")
            if missing := pack.clips_without_pixels(self.dataset, todo, crop):
                raise FatalError(
                    f"the pictures of {len(missing)} kept clips ({min(missing)}, ...) are neither staged nor in a"
                    " shard, and their source cannot be read any more: put the sources back and run again, or leave"
                    " these clips out, by thresholds that reject them or by `forget --source`"
                )
        self.record.enter("pack", ledger.folder.name, len(plan), len(todo), len(finished))
        units = pack.pack_units(self.dataset, todo, crop)
        workers = self.work("pack", units, len(todo), len(plan), ledger.folder)
        if todo:
            require_results(ledger, {shard["plan_hash"] for shard in todo}.difference(ledger.staged_units()), workers)
        pack.publish(self.dataset, plan, ledger.folder)
