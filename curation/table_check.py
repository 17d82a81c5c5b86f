"""The tables against each other: every check is a query for rows that should not be there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb

from curation.recipe import Recipe
from curation.rules import RULES, failed_rules_sql


@dataclass(frozen=True, slots=True)
class Check:
    """`query` gives the names of what differs."""

    table: str
    problem: str
    query: str
    remedy: str


_RUN = "run the `run` command again, with --recipe DATASET/recipe.toml for the thresholds in force"
_DAMAGED = "the manifests were changed by something else: restore them from a copy, or make the data set again"
FORGET = "forget it again: `python -m curation forget DATASET --where \"clip_id = '...'\"`"
_IN_REFUSED_TIME = (
    "EXISTS (FROM tombstones AS s WHERE s.kind = 'track' AND s.source_id = t.source_id AND"
    " (s.start_s = t.start_s OR s.start_s < t.end_s AND t.start_s < s.end_s))"
)

CHECKS = (
    Check("clips", "the same clip_id more than once",
          "SELECT clip_id FROM clips GROUP BY clip_id HAVING count(*) > 1", _DAMAGED),
    Check("clips", "kept, but in no shard (after `select` this is so until the next run)",
          "SELECT clip_id FROM clips WHERE decision = 'keep' AND shard IS NULL", _RUN),
    Check("clips", "kept, but of a source that is rejected",
          "SELECT clip_id FROM clips JOIN sources USING (source_id) WHERE decision = 'keep' AND status = 'rejected'",
          _RUN),
    Check("clips", "in a shard, but not kept (after `select` this is so until the next run)",
          "SELECT clip_id FROM clips WHERE coalesce(decision, '') <> 'keep' AND shard IS NOT NULL", _RUN),
    Check("clips", "kept without a split, or with failed rules; or rejected without a reason",
          "SELECT clip_id FROM clips WHERE decision = 'keep' AND (split IS NULL OR len(failed_rules) > 0)"
          " OR decision = 'reject' AND coalesce(len(failed_rules), 0) = 0", _RUN),
    Check("clips", "in a shard that the table shards does not have, or of another split",
          "SELECT clip_id FROM clips LEFT JOIN shards USING (shard) WHERE clips.shard IS NOT NULL AND decision = 'keep'"
          " AND clips.split IS DISTINCT FROM shards.split", _RUN),
    Check("shards", "numbers of clips or samples that the table clips does not confirm",
          "SELECT shard FROM shards LEFT JOIN (SELECT shard, count(*) AS clips, sum(num_frames) AS samples FROM clips"
          " GROUP BY shard) AS found USING (shard) WHERE (num_clips, num_samples) IS DISTINCT FROM (clips, samples)",
          _RUN),
    Check("shards", "licences other than those of its clips",
          "SELECT shard FROM shards LEFT JOIN (SELECT shard, list_sort(list(DISTINCT coalesce(licence, ''))) AS found"
          " FROM clips GROUP BY shard) USING (shard) WHERE licences <> found", _RUN),
    Check("clips", "an identity in more than one split",
          "SELECT identity_id FROM clips WHERE decision = 'keep' AND identity_id IS NOT NULL GROUP BY identity_id"
          " HAVING count(DISTINCT split) > 1", _RUN),
    Check("clips", "a source in more than one split",
          "SELECT source_id FROM clips WHERE decision = 'keep' GROUP BY source_id HAVING count(DISTINCT split) > 1",
          _RUN),
    Check("frames", "not one row for each frame of its clip",
          "SELECT clip_id FROM clips FULL JOIN frame_sums USING (clip_id)"
          " WHERE clips.num_frames IS DISTINCT FROM rows OR last IS DISTINCT FROM rows - 1 OR frames <> rows",
          "some measurements are lost: remove staging/ and the table's files, then " + _RUN),
    Check("clips", "measurements other than its frames'",
          "SELECT clip_id FROM clips JOIN frame_sums USING (clip_id) WHERE "
          + " OR ".join(
              f"abs(clips.{name} - frame_sums.{name} / rows) > 1e-3 + 1e-5 * abs(clips.{name})"
              for name in ("yaw_deg", "pitch_deg", "roll_deg", "exposure", "dark_fraction", "bright_fraction")
          ) + " OR abs(clips.presence_mean - presence / rows) > 1e-3"
          " OR abs(clips.lip_openness - frame_sums.lip_openness / rows) > 1e-3"
          " OR abs(eye_openness - (eye_openness_right + eye_openness_left) / 2 / rows) > 1e-3"
          " OR abs(clips.motion - frame_sums.motion / duration_s) > 1e-3 + 1e-5 * clips.motion"
          " OR num_repeats <> is_repeat OR num_corrupt <> is_corrupt", _DAMAGED),
    Check("clips", "no track has it as a candidate, or with another range, square or embedding",
          "SELECT clip_id FROM clips LEFT JOIN (SELECT track_id, unnest(candidates, recursive := true) FROM tracks)"
          " AS c USING (clip_id, track_id) WHERE (clips.start_frame, clips.end_frame, clips.start_pts, clips.end_pts,"
          " clips.crop_center_x_px, clips.crop_center_y_px, clips.crop_size_px, clips.embedding) IS DISTINCT FROM"
          " (c.start_frame, c.end_frame, c.start_pts, c.end_pts, c.crop_center_x_px, c.crop_center_y_px,"
          " c.crop_size_px, c.embedding)", _DAMAGED),
    Check("clips", "licence, attribution or consent other than its source's",
          "SELECT clip_id FROM clips LEFT JOIN sources AS s USING (source_id) WHERE s.source_id IS NULL OR"
          " (clips.licence, clips.attribution, clips.consent) IS DISTINCT FROM (s.licence, s.attribution, s.consent)",
          _RUN),
    Check("tracks", "from no source, or from one without a status",
          "SELECT track_id FROM tracks LEFT JOIN sources USING (source_id)"
          " WHERE coalesce(status, '') NOT IN ('ok', 'rejected')", _DAMAGED),
    Check("sources", "forgotten, but there",
          "SELECT source_id FROM sources WHERE content_sha256 IN (SELECT content_sha256 FROM tombstones"
          " WHERE kind = 'source')", FORGET),
    Check("tracks", "of a forgotten source, or with a forgotten clip",
          "SELECT track_id FROM tracks WHERE source_id IN (SELECT source_id FROM tombstones WHERE kind = 'source')"
          " UNION SELECT track_id FROM (SELECT track_id, unnest(candidates).clip_id AS clip_id FROM tracks)"
          " WHERE clip_id IN (SELECT clip_id FROM tombstones)"
          f" UNION SELECT track_id FROM tracks AS t WHERE coalesce(len(candidates), 0) = 0 AND {_IN_REFUSED_TIME}",
          FORGET),
    Check("clips", "forgotten, but there",
          "SELECT clip_id FROM clips AS t WHERE clip_id IN (SELECT clip_id FROM tombstones)"
          f" OR source_id IN (SELECT source_id FROM tombstones WHERE kind = 'source') OR {_IN_REFUSED_TIME}", FORGET),
    Check("frames", "of forgotten clips",
          "SELECT clip_id FROM frame_sums WHERE clip_id IN (SELECT clip_id FROM tombstones)", FORGET),
    Check("failures", "of a forgotten source or clip",
          "SELECT unit FROM failures WHERE source_id IN (SELECT source_id FROM tombstones WHERE kind = 'source')"
          " OR len(list_intersect(regexp_extract_all(message, '\\w+'),"
          " (SELECT coalesce(list(clip_id), []) FROM tombstones))) > 0", FORGET),
    Check("runs", "the same run_id more than once",
          "SELECT run_id FROM runs GROUP BY run_id HAVING count(*) > 1", _DAMAGED),
    Check("runs", "with a recipe that names a forgotten clip",
          "SELECT run_id FROM (SELECT run_id, regexp_extract_all(concat_ws(' ', recipe, array_to_string(recipe_changes,"
          " ' ')), '\\w+') AS words FROM runs) WHERE list_has_any(list_concat(words, list_transform(words, lambda word:"
          " split_part(word, '_', 1))), (SELECT coalesce(list(coalesce(clip_id, source_id)), []) FROM tombstones"
          " WHERE kind IN ('source', 'clip')))", FORGET),
    Check("units", "of a forgotten source",
          "SELECT unit FROM units WHERE source_id IN (SELECT source_id FROM tombstones WHERE kind = 'source')",
          FORGET),
)  # fmt: skip


def check_tables(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> Iterator[tuple[Check, list[str]]]:
    """Checks that found something, each with the names of what differs. `db` has the views and `frame_sums`."""
    for check in (*CHECKS, _rules_check(recipe)):
        names = sorted({str(name) for (name,) in db.execute(check.query).fetchall()})
        if names:
            yield check, names
    if names := _refused_faces(db):
        yield Check("clips", "of a face that is refused", "", FORGET), names


def _rules_check(recipe: Recipe) -> Check:
    """Rules of which every threshold and measurement is in the recipe and in `clips`; copies are found elsewhere."""
    names = ", ".join(f"'{rule.name}'" for rule in RULES if "duplicate" not in rule.condition)
    return Check(
        "clips", "failed rules other than the recipe's thresholds give",
        f"SELECT clip_id FROM clips WHERE decision IS NOT NULL AND"
        f" list_sort(list_filter(failed_rules, lambda name: name IN ({names}))) IS DISTINCT FROM"
        f" list_sort(list_filter({failed_rules_sql(recipe.select)}, lambda name: name IN ({names})))",
        "decide again: `python -m curation select --output DATASET`, then " + _RUN,
    )  # fmt: skip


def _refused_faces(db: duckdb.DuckDBPyConnection) -> list[str]:
    faces = db.execute("SELECT embedding, min_similarity, analyser FROM tombstones WHERE kind = 'face'").fetchall()
    found: set[str] = set()
    for face, similarity, analyser in faces:
        rows = db.execute(
            "SELECT clip_id FROM clips WHERE analyser = ? AND list_inner_product(embedding, ?::FLOAT[]) >= ?",
            [analyser, face, similarity],
        ).fetchall()
        found |= {clip_id for (clip_id,) in rows}
    return sorted(found)
