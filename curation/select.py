"""select: decide about every clip from its measurements. One SQL statement; nothing is decoded.

All clips keep their scores and the names of all rules that they failed, so another threshold takes seconds.
"""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from curation.identities import assign_splits, cluster_identities
from curation.recipe import Recipe, SelectOptions
from curation.rules import active_rules, failed_rules_sql
from manifests.schema import CLIPS
from manifests.store import Dataset, read_table, replace_table

_OF_SOURCES = ("licence", "attribution", "provenance")


def decide(dataset: Dataset, recipe: Recipe, same_person_similarity: float) -> pa.Table:
    """The table `clips` with fresh decision, failed_rules, identity_id and split, ordered by clip_id."""
    clips = _read_clips(dataset)
    db = duckdb.connect()
    db.register("clips", clips)
    decided = db.sql(
        f"SELECT clip_id, {failed_rules_sql(recipe.select)} AS failed_rules FROM clips ORDER BY clip_id"
    ).to_arrow_table()
    clips = clips.sort_by("clip_id")
    failed = decided["failed_rules"].to_pylist()
    ids, sources = clips["clip_id"].to_pylist(), clips["source_id"].to_pylist()
    embeddings = clips["embedding"].to_pylist()
    known = [k for k, e in enumerate(embeddings) if e is not None]
    similarity = recipe.select.identity_similarity
    identities = cluster_identities(
        [ids[k] for k in known],
        np.array([embeddings[k] for k in known], np.float32),
        same_person_similarity if similarity is None else similarity,
    )
    kept = [k for k, rules in enumerate(failed) if not rules]
    splits = assign_splits(
        [tuple(x for x in (sources[k], identities.get(ids[k])) if x is not None) for k in kept],
        [ids[k] for k in kept],
        recipe.seed,
        recipe.select.val_share,
        recipe.select.test_share,
    )
    columns = {
        "decision": ["reject" if rules else "keep" for rules in failed],
        "failed_rules": failed,
        "identity_id": [identities.get(i) for i in ids],
        "split": [splits.get(i) for i in ids],
    }
    return _with_columns(clips, columns)


def _read_clips(dataset: Dataset) -> pa.Table:
    """The table `clips` with what is known of the sources now: a source list may have been corrected since crop."""
    clips = read_table(dataset, "clips")
    known = {row["source_id"]: row for row in read_table(dataset, "sources", ["source_id", *_OF_SOURCES]).to_pylist()}
    sources = clips["source_id"].to_pylist()
    return _with_columns(clips, {name: [known.get(s, {}).get(name) for s in sources] for name in _OF_SOURCES})


def _with_columns(clips: pa.Table, columns: dict[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        position = CLIPS.get_field_index(name)
        clips = clips.set_column(position, CLIPS.field(name), pa.array(values, CLIPS.field(name).type))
    return clips


def select(dataset: Dataset, recipe: Recipe, same_person_similarity: float) -> pa.Table:
    """Decide and write the decisions to the manifests; returns the table `clips`."""
    clips = decide(dataset, recipe, same_person_similarity)
    replace_table(dataset, "clips", clips)
    return clips


def rule_costs(dataset: Dataset, options: SelectOptions) -> list[dict[str, object]]:
    """What each rule costs: clips and hours it rejects alone, only it rejects, and takes away in the rules' order."""
    db = duckdb.connect()
    db.register("clips", _read_clips(dataset))
    db.execute(f"CREATE TEMP TABLE judged AS SELECT duration_s, {failed_rules_sql(options)} AS failed FROM clips")
    rows = []
    for position, (rule, condition) in enumerate(active_rules(options)):
        before = [r.name for r, _ in active_rules(options)[:position]]
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
                "condition": condition,
                "clips_alone": alone,
                "hours_alone": alone_s / 3600,
                "clips_only": only,
                "hours_only": only_s / 3600,
                "clips_in_order": order,
                "hours_in_order": order_s / 3600,
            }
        )
    return rows
