"""What the page tells: the columns of the clips and their sources, the rules, and figures of the whole data set."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.recipe import Recipe
from curation.review.columns import encode_column, encode_numbers
from curation.review.sliders import encode_rules
from curation.review.strips import NUM_FRAMES, Strip
from curation.rules import RULES
from manifests.schema import CLIPS
from manifests.store import Dataset, read_table
from manifests.views import connect

_UNSEEN = (
    "unit",
    "track_id",
    "embedding",
    "face_hashes",
    "frame_offsets",
    "frame_sizes",
    "label_offsets",
    "label_sizes",
)
_OF_SOURCE = ("source_id", "kind", "container", "codec", "width_px", "height_px", "fps", "duration_s", "size_bytes")
_NUM_EXAMPLES = 5


def read_clips(dataset: Dataset, max_clips: int) -> tuple[pa.Table, int]:
    """At most `max_clips` rows of `clips` in the order of their sources, and how many there are."""
    clips = read_table(dataset, "clips", [name for name in CLIPS.names if name not in _UNSEEN])
    num_all = len(clips)
    if num_all > max_clips:
        ids = clips["clip_id"].to_pylist()
        drawn = sorted(range(num_all), key=lambda k: hashlib.sha256(ids[k].encode()).digest())[:max_clips]
        clips = clips.take(sorted(drawn))
    sources = read_table(dataset, "sources", ["source_id", "uris"]).to_pylist()
    uris = {row["source_id"]: (row["uris"] or [""])[0] for row in sources}
    names = pa.array([uris.get(s, "") for s in clips["source_id"].to_pylist()], pa.string())
    order = [("_uri", "ascending"), ("start_frame", "ascending"), ("clip_id", "ascending")]
    return clips.append_column("_uri", names).sort_by(order).drop_columns(["_uri"]), num_all


def page_content(dataset: Dataset, recipe: Recipe, clips: pa.Table, strips: list[Strip]) -> dict[str, Any]:
    """All that the page holds, as JSON."""
    columns = {name: encoded for name in clips.column_names if (encoded := encode_column(clips[name]))}
    columns["strip"] = encode_column(pa.array([s.name or None for s in strips], pa.string()))
    columns["strip_frames"] = encode_numbers(pa.array([s.num_frames for s in strips], pa.int32()))
    columns["strip_problem"] = encode_column(pa.array([s.problem or None for s in strips], pa.string()))
    return {
        "name": dataset.name,
        "folder": str(dataset.root.resolve()),
        "recipe_hash": recipe.stage_hash("pack"),
        "analyser": recipe.faces.analyser,
        "num_clips": len(clips),
        "strip_frames": NUM_FRAMES,
        "columns": columns,
        "rules": encode_rules(clips, recipe.select),
        "sources": _sources(dataset, clips),
        "totals": _totals(dataset),
    }


def _sources(dataset: Dataset, clips: pa.Table) -> dict[str, Any]:
    """Columns of the sources that the clips come from."""
    table = read_table(dataset, "sources").sort_by("source_id")
    table = table.filter(pc.is_in(table["source_id"], pc.unique(clips["source_id"])))
    columns = {name: encode_column(table[name]) for name in _OF_SOURCE}
    return {"columns": columns, "uris": [uris or [] for uris in table["uris"].to_pylist()]}


def _totals(dataset: Dataset) -> dict[str, Any]:
    """Figures of all sources and clips, also of those that a page of a very large data set does not show.

    Sums are rounded: threads add in any order, and the page is to be the same bytes.
    """
    db = connect(dataset.root)
    rules = ", ".join(f"'{rule.name}'" for rule in RULES)
    queries = {
        "sources": """SELECT count(*) AS num, count(*) FILTER (status = 'ok') AS ok,
            count(*) FILTER (status = 'ok' AND kind = 'still') AS stills,
            round(coalesce(sum(duration_s) FILTER (status = 'ok'), 0) / 3600, 6) AS hours FROM sources""",
        "clips": """SELECT count(*) AS num, count(*) FILTER (decision = 'keep') AS kept,
            round(coalesce(sum(duration_s), 0) / 3600, 6) AS hours,
            round(coalesce(sum(duration_s) FILTER (decision = 'keep'), 0) / 3600, 6) AS kept_hours,
            coalesce(sum(num_frames) FILTER (decision = 'keep'), 0)::BIGINT AS kept_frames,
            count(DISTINCT identity_id) AS identities,
            count(DISTINCT identity_id) FILTER (decision = 'keep') AS kept_identities,
            count(DISTINCT source_id) FILTER (decision = 'keep') AS kept_sources,
            count(DISTINCT coalesce(licence, '')) AS licences FROM clips""",
        "shards": "SELECT count(*) AS num, coalesce(sum(size_bytes), 0)::BIGINT AS bytes FROM shards",
        "splits": """SELECT split AS name, count(*) AS clips, round(coalesce(sum(duration_s), 0) / 3600, 6) AS hours,
            sum(num_frames)::BIGINT AS frames, count(DISTINCT identity_id) AS identities FROM clips
            WHERE decision = 'keep' GROUP BY split
            ORDER BY CASE split WHEN 'train' THEN 0 WHEN 'val' THEN 1 ELSE 2 END""",
        "licences": """SELECT coalesce(licence, '') AS name, count(*) FILTER (decision = 'keep') AS clips,
            round(coalesce(sum(duration_s) FILTER (decision = 'keep'), 0) / 3600, 6) AS hours, count(*) AS candidates
            FROM clips GROUP BY name ORDER BY clips DESC, candidates DESC, name LIMIT 30""",
        "reasons": f"""SELECT 'clip' AS what, reason, count(*) AS num, round(sum(seconds) / 3600, 6) AS hours,
                bool_and(reason IN ({rules})) AS is_rule, []::VARCHAR[] AS examples
            FROM (SELECT unnest(failed_rules) AS reason, duration_s AS seconds FROM clips) GROUP BY reason
            UNION ALL
            SELECT 'source', reason, count(*), NULL, false, list_sort(list(uris[1]))[:{_NUM_EXAMPLES}] FROM sources
            WHERE status <> 'ok' GROUP BY reason
            UNION ALL
            SELECT stage, reason, count(*), NULL, false, list_sort(list(uri))[:{_NUM_EXAMPLES}] FROM failures
            GROUP BY ALL
            UNION ALL
            SELECT 'track', reason, count(*), round(sum(seconds) / 3600, 6), false, []
            FROM (SELECT unnest(reasons) AS reason, end_s - start_s AS seconds FROM tracks WHERE num_clips = 0)
            GROUP BY reason ORDER BY num DESC, what, reason""",
    }
    totals = {name: db.sql(query).to_arrow_table().to_pylist() for name, query in queries.items()}
    return totals | {name: totals[name][0] for name in ("sources", "clips", "shards")}
