"""select: decide about every clip from its measurements. One SQL statement for the rules; nothing is decoded.

All clips keep their scores and the names of all rules that they failed, so another threshold takes seconds. What an
earlier selection said of identities and splits is read back, so that both stay when the data set grows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.balance import BALANCE_COLUMNS, sampling_weights
from curation.changes import Selection, compare_decisions
from curation.decisions import COLUMNS, kept_decisions
from curation.duplicates import Copy, Quality, choose_best, find_copies
from curation.identities import cluster_identities
from curation.recipe import Recipe, SelectOptions
from curation.rules import SOURCE_REJECTED, active_rules, failed_rules_sql
from curation.splits import Shares, group_clips, groups_of_splits
from curation.tombstones import same_stretch
from manifests.schema import CLIP_DECISIONS, CLIP_PLACES, CLIPS
from manifests.store import Dataset, iterate_with, read_table, replace_table

_OF_SOURCES = ("licence", "attribution", "consent", "provenance")
_DECIDED = (*(name for name, _ in CLIP_DECISIONS), *_OF_SOURCES)
_NOT_READ = {"embedding", "face_hashes", *(name for name, _ in CLIP_PLACES[1:])}


def decide(dataset: Dataset, recipe: Recipe, same_person_similarity: float) -> pa.Table:
    """A fresh decision about every clip (`CLIP_DECISIONS`) and what is known of its source now, ordered by clip_id."""
    return decide_and_compare(dataset, recipe, same_person_similarity)[0]


def decide_and_compare(dataset: Dataset, recipe: Recipe, same_person_similarity: float) -> tuple[pa.Table, Selection]:
    """The fresh decisions of `decide`, and how they differ from those in the manifests."""
    clips, earlier = _read_clips(dataset), kept_decisions(dataset)
    decided = _decide(dataset, recipe, same_person_similarity, clips, earlier)
    return decided, compare_decisions(clips, earlier, decided)


def _decide(
    dataset: Dataset, recipe: Recipe, same_person_similarity: float, clips: pa.Table, earlier: pa.Table
) -> pa.Table:
    """Columns of `clips` that hold lists are read only where they are needed, because they are most of the table.

    clips: by `_read_clips`. earlier: what was decided about clips that have been cropped again since.
    """
    ids, options = clips["clip_id"].to_pylist(), recipe.select
    shares = Shares(seed=recipe.seed, val_share=options.val_share, test_share=options.test_share)
    identities, groups = _earlier_decisions(clips, earlier, shares)
    gone = earlier.filter(pc.invert(pc.is_in(earlier["clip_id"], clips["clip_id"].combine_chunks()))).to_pylist()
    identities |= _identities_of_cut_anew(clips, gone, identities)
    clips = _with_columns(clips, {"duplicate_of": [None] * len(ids)})
    similarity = same_person_similarity if options.identity_similarity is None else options.identity_similarity

    identities = _identities(dataset, identities, similarity)
    copies = _copies(dataset, identities)
    passing = [not rules for rules in _failed_rules(clips, options)]
    qualities = _qualities(dataset, clips.filter(pa.array(passing, pa.bool_())), copies)
    duplicate_of = choose_best(qualities, copies, options.duplicate_overlap)
    clips = _with_columns(clips, {"duplicate_of": [duplicate_of.get(i) for i in ids]})
    failed = _failed_rules(clips, options)

    kept = [not rules for rules in failed]
    groups |= {row["clip_id"]: row["split_group"] for row in gone if row["split_group"] is not None}
    groups = _split_groups(clips, gone, kept, identities, groups, shares)
    splits = [shares.split_of(groups[i]) if keep else None for i, keep in zip(ids, kept, strict=True)]
    columns = {
        "decision": ["keep" if keep else "reject" for keep in kept],
        "failed_rules": failed,
        "identity_id": [identities.get(i) for i in ids],
        "split": splits,
        "split_group": [groups.get(i) for i in ids],
        "weight": _weights(clips, kept, identities, splits, options),
    }
    return _with_columns(clips, columns).select(["clip_id", *_DECIDED])


def _earlier_decisions(clips: pa.Table, earlier: pa.Table, shares: Shares) -> tuple[dict[str, str], dict[str, str]]:
    """Identity and split group of each clip that had one, as the last selection left them.

    earlier: what was decided about clips that have been cropped again since.

    Data sets from before split groups were written have splits; there a group is what the clips were linked by.
    """
    rows = clips.select(COLUMNS).to_pylist()
    decided = {row["clip_id"]: row for row in earlier.to_pylist()}
    rows = [row if row["identity_id"] or row["split_group"] else decided.get(row["clip_id"], row) for row in rows]
    groups = {r["clip_id"]: r["split_group"] for r in rows if r["split_group"] is not None}
    if not groups:
        old = [r for r in rows if r["split"] is not None]
        keys = [_keys(r["source_id"], r["identity_id"]) for r in old]
        groups = groups_of_splits([r["clip_id"] for r in old], keys, [r["split"] for r in old], shares)
    return {r["clip_id"]: r["identity_id"] for r in rows if r["identity_id"] is not None}, groups


def _identities_of_cut_anew(clips: pa.Table, gone: list[dict[str, Any]], named: dict[str, str]) -> dict[str, str]:
    """Identity of those clips without one in which the face of a clip that is `gone` was: other options have cut its
    source elsewhere, which has given the clip another id."""
    of_source: dict[str, list[dict[str, Any]]] = {}
    for row in gone:
        if row["identity_id"] is not None and row["start_s"] is not None:
            of_source.setdefault(row["source_id"], []).append(row)
    clips = clips.filter(pc.is_in(clips["source_id"], pa.array(list(of_source), pa.string()))).select(COLUMNS)
    found = {}
    for clip in clips.to_pylist():
        same = (row["identity_id"] for row in of_source[clip["source_id"]] if same_stretch(clip, row))
        if clip["clip_id"] not in named and (identity := next(same, None)) is not None:
            found[clip["clip_id"]] = identity
    return found


def _keys(source_id: str, identity_id: str | None) -> tuple[str, ...]:
    return (source_id,) if identity_id is None else (source_id, identity_id)


def _failed_rules(clips: pa.Table, options: SelectOptions) -> list[list[str]]:
    """Of every clip of `_read_clips`, in the order of the table."""
    db = duckdb.connect()
    db.register("clips", clips)
    of_source = f"if(source_status = 'rejected', ['{SOURCE_REJECTED}'], [])"
    query = f"SELECT {of_source} || {failed_rules_sql(options)} AS failed_rules FROM clips ORDER BY clip_id"
    return db.sql(query).to_arrow_table()["failed_rules"].to_pylist()


def _identities(dataset: Dataset, previous: dict[str, str], similarity: float) -> dict[str, str]:
    known = _known(dataset, "embedding")
    embeddings = _rows(known["embedding"], np.float32)
    return cluster_identities(known["clip_id"].to_pylist(), embeddings, similarity, previous)


def _known(dataset: Dataset, *columns: str) -> pa.Table:
    """Id, kind and `columns` of those clips of which the columns are known, ordered by clip_id."""
    clips = read_table(dataset, "clips", ["clip_id", "kind", *columns])
    for name in columns:
        clips = clips.filter(pc.is_valid(clips[name]))
    return clips.sort_by("clip_id")


def _rows(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    """[n, D] of a column of lists of one length."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return flat.reshape(len(column), -1) if len(column) else np.zeros((0, 1), dtype)


def _copies(dataset: Dataset, identities: dict[str, str]) -> list[Copy]:
    """All pairs of clips that show the same footage, also those that overlap too little to count as duplicates."""
    known = _known(dataset, "face_hashes", "embedding")
    hashes = known["face_hashes"].combine_chunks()
    words, offsets = hashes.flatten().to_numpy(), np.concatenate([[0], np.cumsum(pc.list_value_length(hashes))])
    return find_copies(
        known["clip_id"].to_pylist(),
        [words[start:end] for start, end in pairwise(offsets)],
        [kind == "still" for kind in known["kind"].to_pylist()],
        list(_rows(known["embedding"], np.float32)),
        identities,
    )


def _qualities(dataset: Dataset, clips: pa.Table, copies: list[Copy]) -> dict[str, Quality]:
    """Of those of `clips` that have a copy."""
    have_one = {clip_id for copy in copies for clip_id in (copy.one, copy.other)}
    clips = clips.filter(pc.is_in(clips["clip_id"], pa.array(sorted(have_one), pa.string())))
    sources = read_table(dataset, "sources", ["source_id", "size_bytes", "duration_s"])
    sources = sources.filter(pc.is_in(sources["source_id"], clips["source_id"].combine_chunks())).to_pylist()
    rates = {r["source_id"]: 8 * (r["size_bytes"] or 0) / (r["duration_s"] or 1.0) for r in sources}
    rows = clips.select(["clip_id", "source_id", "face_height_median_px", "duration_s", "sharpness"]).to_pylist()
    return {
        r["clip_id"]: Quality(
            face_height_px=r["face_height_median_px"] or 0.0,
            duration_s=r["duration_s"] or 0.0,
            sharpness=r["sharpness"] or 0.0,
            bits_per_s=rates.get(r["source_id"], 0.0),
        )
        for r in rows
    }


def _split_groups(
    clips: pa.Table,
    gone: list[dict[str, Any]],
    kept: list[bool],
    identities: dict[str, str],
    previous: dict[str, str],
    shares: Shares,
) -> dict[str, str]:
    """Split group of each kept clip, and of each other one the group that it was in, should it come back.

    Clips that were kept once link others, too, also those that are `gone`: a model may have been fitted to them.
    """
    ids, sources = clips["clip_id"].to_pylist(), clips["source_id"].to_pylist()
    keys = {
        clip_id: _keys(source, identities.get(clip_id))  # copies of footage are of one identity
        for clip_id, source, keep in zip(ids, sources, kept, strict=True)
        if keep or clip_id in previous
    }
    keys |= {row["clip_id"]: _keys(row["source_id"], row["identity_id"]) for row in gone if row["clip_id"] in previous}
    groups = group_clips(list(keys), list(keys.values()), previous, shares)
    of_source = {row["source_id"]: groups[row["clip_id"]] for row in gone if row["clip_id"] in groups}
    return {i: of_source[source] for i, source in zip(ids, sources, strict=True) if source in of_source} | groups


def _weights(
    clips: pa.Table,
    kept: list[bool],
    identities: dict[str, str],
    splits: list[str | None],
    options: SelectOptions,
) -> list[float | None]:
    mine = clips.filter(pa.array(kept, pa.bool_()))
    columns = {name: mine[name].to_numpy().astype(np.float64) for name in BALANCE_COLUMNS}
    people = [identities.get(i) for i in mine["clip_id"].to_pylist()]
    weights = iter(sampling_weights(columns, people, [s for s in splits if s is not None], options).tolist())
    return [next(weights) if keep else None for keep in kept]


def _read_clips(dataset: Dataset) -> pa.Table:
    """The table `clips` without its lists, ordered by clip_id, with what is known of the sources now (`source_status`,
    too): a source list may have been corrected since crop, or a file replaced."""
    clips = read_table(dataset, "clips", [field.name for field in CLIPS if field.name not in _NOT_READ])
    clips = clips.sort_by("clip_id")
    sources = read_table(dataset, "sources", ["source_id", "status", *_OF_SOURCES])
    at = pc.index_in(clips["source_id"], sources["source_id"].combine_chunks())
    for name in _OF_SOURCES:
        clips = clips.set_column(clips.schema.get_field_index(name), CLIPS.field(name), sources[name].take(at))
    return clips.append_column("source_status", sources["status"].take(at))


def _with_columns(clips: pa.Table, columns: dict[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        position = clips.schema.get_field_index(name)
        clips = clips.set_column(position, CLIPS.field(name), pa.array(values, CLIPS.field(name).type))
    return clips


def select(dataset: Dataset, recipe: Recipe, same_person_similarity: float) -> Selection:
    """Decide and write the decisions to the manifests; tells what changes."""
    decided, selection = decide_and_compare(dataset, recipe, same_person_similarity)
    decided = decided.combine_chunks()
    by_hand = {*recipe.select.keep_clips, *recipe.select.reject_clips}
    if missing := sorted(by_hand.difference(decided["clip_id"].to_pylist())):
        print(f"note: no clip is called {', '.join(missing)} (select.keep_clips, reject_clips)", file=sys.stderr)
    ids = read_table(dataset, "clips", ["clip_id"])["clip_id"]
    places = pa.table({"at": pc.index_in(ids, decided["clip_id"].combine_chunks())})
    num_unknown = 0

    def rows() -> Iterator[pa.Table]:
        nonlocal num_unknown
        for clips, place in iterate_with(dataset, "clips", places):
            for name in _DECIDED:
                values = decided[name].take(place["at"])
                clips = clips.set_column(CLIPS.get_field_index(name), CLIPS.field(name), values)
            num_unknown += clips["face_hashes"].null_count
            yield clips

    replace_table(dataset, "clips", rows())
    if num_unknown:
        print(
            f"{num_unknown} of {len(decided)} clips were cropped before face hashes were made, so copies are not looked"
            " for among them: curate their sources into a new folder to have them found",
            file=sys.stderr,
        )
    for line in selection.describe():
        print(line, file=sys.stderr)
    return selection


def rule_costs(dataset: Dataset, options: SelectOptions, decided: pa.Table) -> list[dict[str, object]]:
    """What each rule would cost: clips and hours it rejects alone, only it rejects, and takes away in the rules' order.

    decided: by `decide`. Copies are those that would be found, of which the best that passes the other rules is kept.
    Nothing is written.
    """
    db = duckdb.connect()
    db.register("decided", decided.select(["clip_id", "failed_rules"]))
    db.register("clips", read_table(dataset, "clips", ["clip_id", "duration_s"]))
    db.execute(
        "CREATE TEMP TABLE judged AS SELECT duration_s, failed_rules AS failed FROM clips JOIN decided USING (clip_id)"
    )
    rows, active = [], active_rules(options)
    for position, (rule, condition) in enumerate(active):
        before = [r.name for r, _ in active[:position]]
        alone, alone_s, only, only_s, order, order_s = db.execute(
            """SELECT count(*) FILTER (list_contains(failed, $rule)),
                   coalesce(sum(duration_s) FILTER (list_contains(failed, $rule)), 0),
                   count(*) FILTER (failed = [$rule]), coalesce(sum(duration_s) FILTER (failed = [$rule]), 0),
                   count(*) FILTER (list_contains(failed, $rule) AND NOT list_has_any(failed, $before)),
                   coalesce(sum(duration_s) FILTER (list_contains(failed, $rule)
                                                    AND NOT list_has_any(failed, $before)), 0)
            FROM judged""",
            {"rule": rule.name, "before": before or ["-"]},
        ).fetchone()
        rows.append(
            {
                "rule": rule.name,
                "condition": rule.shown(condition),
                "clips_alone": alone,
                "hours_alone": alone_s / 3600,
                "clips_only": only,
                "hours_only": only_s / 3600,
                "clips_in_order": order,
                "hours_in_order": order_s / 3600,
            }
        )
    return rows
