"""The data set's card: what is in it, where it comes from, how it was made and how to leave it. Markdown from SQL.

A function of the manifests and the recipe alone: the same data set gives the same text, on any machine.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from curation.recipe import Recipe, recipe_of, recipe_toml
from curation.rules import RULES, SOURCE_REJECTED, SOURCE_REJECTED_MEANING
from manifests.storage import Place, place
from manifests.store import Dataset, read_table, write_bytes_atomically
from manifests.views import connect

_SPLITS = "CASE split WHEN 'train' THEN 0 WHEN 'val' THEN 1 ELSE 2 END"
_MAX_ATTRIBUTIONS = 200
_PLACES = ("root", "weights_dir", "quality_model", "device", "num_threads")
"""Where weights lie and on what they run decides nothing; the quality network is named by itself."""
_MEASURES = (
    ("duration_s", "length of a clip, s"),
    ("face_height_median_px", "height of the face in the source, px"),
    ("upscale_factor", "output pixels per source pixel"),
    ("yaw_deg", "mean yaw, degrees"),
    ("pitch_deg", "mean pitch, degrees"),
    ("roll_deg", "mean roll, degrees"),
    ("yaw_abs_p95_deg", "95th percentile of the absolute yaw, degrees"),
    ("eye_openness_range", "range of the eyes' openness"),
    ("lip_openness_range", "range of the lips' openness"),
    ("sharpness", "sharpness"),
    ("exposure", "exposure, 0 to 1"),
    ("motion", "motion, eye distances a second"),
    ("quality", "score of the quality network"),
)


def write_card(dataset: Dataset, output: str | Place | None = None) -> Place:
    """Write the card, by default to report/card.md; returns where it is."""
    path = dataset.report / "card.md" if output is None else place(output)
    write_bytes_atomically(path, make_card(dataset).encode())
    return path


def make_card(dataset: Dataset) -> str:
    """The card as Markdown.

    Raises:
        ValueError: there is no data set.
    """
    recipe = recipe_of(dataset.root)
    db = connect(dataset.root)
    name = dataset.name
    sections = (
        [f"# {name}", "", "Portrait clips for training face animation; every figure below is read from the manifests."],
        _size(db),
        _provenance(db),
        _people(db),
        _distributions(db),
        _rejections(db),
        _making(db, recipe),
        _reading(dataset, name, recipe),
        _removal(db, shlex.quote(name)),
        _limits(recipe),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    names = list(header)
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(_cell(value) for value in row) + " |"


def _cell(value: Any) -> str:
    """Texts of source lists are text on the card, too: no HTML, link, code, emphasis, nor the end of a cell or line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    marks = r"[\\|\[\]`*~]|(?<![^\W_])_|_(?![^\W_])"  # within a word, _ means nothing
    text = re.sub(marks, r"\\\g<0>", html.escape(str(value), quote=False))
    return " ".join(text.split())


def _size(db: duckdb.DuckDBPyConnection) -> list[str]:
    rows = db.execute(
        f"""SELECT split, count(*), coalesce(sum(duration_s), 0) / 3600, sum(num_frames)::BIGINT,
                   count(DISTINCT identity_id), count(DISTINCT source_id)
            FROM clips WHERE decision = 'keep' GROUP BY split ORDER BY {_SPLITS}"""
    ).fetchall()
    shards = {
        split: (number, size / 1e9)
        for split, number, size in db.execute(
            "SELECT split, count(*), sum(size_bytes)::BIGINT FROM shards GROUP BY split"
        ).fetchall()
    }
    total = db.execute(
        """SELECT 'all', count(*), coalesce(sum(duration_s), 0) / 3600, coalesce(sum(num_frames), 0)::BIGINT,
                  count(DISTINCT identity_id), count(DISTINCT source_id) FROM clips WHERE decision = 'keep'"""
    ).fetchone()
    shards["all"] = tuple(map(sum, zip(*shards.values(), strict=True))) if shards else (0, 0.0)
    header = ("split", "clips", "hours", "frames", "identities", "sources", "shards", "GB")
    lines = ["## Size", "", *_table(header, [(*row, *shards.get(row[0], (0, 0.0))) for row in (*rows, total)]), ""]
    stills, found, usable, hours = db.execute(
        """SELECT (SELECT count(*) FROM clips WHERE decision = 'keep' AND kind = 'still'), count(*),
                  count(*) FILTER (status = 'ok'), coalesce(sum(duration_s) FILTER (status = 'ok'), 0) / 3600
           FROM sources"""
    ).fetchone()
    shared = [
        db.execute(
            f"SELECT count(*) FROM (SELECT {column} FROM clips WHERE decision = 'keep' AND {column} IS NOT NULL"
            f" GROUP BY {column} HAVING count(DISTINCT split) > 1)"
        ).fetchone()[0]
        for column in ("identity_id", "source_id")
    ]
    return [
        *lines,
        f"{stills:,} of the clips are stills of one frame. {usable:,} of {found:,} sources could be used,"
        f" {hours:,.2f} hours of video. {shared[0]:,} identities and {shared[1]:,} sources are in more than one split.",
    ]


def _provenance(db: duckdb.DuckDBPyConnection) -> list[str]:
    lines = ["## Sources, licences and consent", ""]
    lines += _table(
        ("licence", "consent stated", "sources", "kept clips", "hours"),
        db.execute(
            """SELECT if(is_stated(s.licence), s.licence, 'not stated'), if(is_stated(s.consent), 'yes', 'no'),
                      count(DISTINCT s.source_id), count(clip_id), coalesce(sum(c.duration_s), 0) / 3600
               FROM sources AS s LEFT JOIN (SELECT * FROM clips WHERE decision = 'keep') AS c USING (source_id)
               WHERE s.status = 'ok' OR clip_id IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"""
        ).fetchall(),
    )
    columns = [
        n for (n,) in db.execute("SELECT DISTINCT unnest(map_keys(provenance)) FROM sources ORDER BY 1").fetchall()
    ]
    if columns:
        lines += ["", f"Further columns of the source lists, in `clips.provenance`: {', '.join(map(_cell, columns))}."]
    credit = db.execute(
        """SELECT DISTINCT attribution FROM clips WHERE decision = 'keep' AND NOT says_nothing(attribution)
           ORDER BY 1"""
    ).fetchall()
    if credit:
        lines += ["", "To be credited: " + "; ".join(_cell(name) for (name,) in credit[:_MAX_ATTRIBUTIONS]) + "."]
    if len(credit) > _MAX_ATTRIBUTIONS:
        lines += [f"The other {len(credit) - _MAX_ATTRIBUTIONS:,} are in the column `clips.attribution`."]
    return lines


def _people(db: duckdb.DuckDBPyConnection) -> list[str]:
    rows = db.execute(
        """SELECT CASE WHEN n = 1 THEN '1' WHEN n < 5 THEN '2 to 4' WHEN n < 20 THEN '5 to 19' WHEN n < 100
                       THEN '20 to 99' ELSE '100 or more' END, count(*), sum(n)::BIGINT, sum(s) / 3600
           FROM (SELECT count(*) AS n, coalesce(sum(duration_s), 0) AS s FROM clips
                 WHERE decision = 'keep' AND identity_id IS NOT NULL GROUP BY identity_id)
           GROUP BY 1 ORDER BY min(n)"""
    ).fetchall()
    unknown = db.execute("SELECT count(*) FROM clips WHERE decision = 'keep' AND identity_id IS NULL").fetchone()[0]
    text = "Identities are clusters of face embeddings, not names."
    if unknown:
        text += f" {unknown:,} kept clips have none, because no embedding could be made."
    return ["## Identities", "", *_table(("clips of an identity", "identities", "clips", "hours"), rows), "", text]


def _distributions(db: duckdb.DuckDBPyConnection) -> list[str]:
    rows = []
    for name, meaning in _MEASURES:
        figures = db.execute(
            f"SELECT quantile_cont({name}, [0.05, 0.25, 0.5, 0.75, 0.95]) FROM clips WHERE decision = 'keep'"
            f" AND {name} IS NOT NULL AND (kind = 'video' OR '{name}' <> 'duration_s')"
        ).fetchone()[0]
        if figures:
            rows.append((meaning, *map(float, figures)))
    lines = ["## Measurements of the kept clips", "", *_table(("", "5 %", "25 %", "median", "75 %", "95 %"), rows), ""]
    cells = {
        (yaw, pitch): count
        for yaw, pitch, count in db.execute(
            """SELECT greatest(-3, least(3, round(f.yaw_deg / 15)::INT)), greatest(-2, least(2,
                      round(f.pitch_deg / 15)::INT)), count(*) FROM frames AS f
               SEMI JOIN (SELECT clip_id FROM clips WHERE decision = 'keep') AS c USING (clip_id)
               WHERE f.yaw_deg IS NOT NULL GROUP BY 1, 2"""
        ).fetchall()
    }
    total = max(sum(cells.values()), 1)
    header = ("pitch \\ yaw, degrees", *(f"{15 * yaw:+d}" if yaw else "0" for yaw in range(-3, 4)))
    grid = [
        (
            f"{15 * pitch:+d}" if pitch else "0",
            *(f"{100 * cells.get((yaw, pitch), 0) / total:.1f}" for yaw in range(-3, 4)),
        )
        for pitch in range(2, -3, -1)
    ]
    text = "Share of the frames, %, by head pose in steps of 15 degrees; the outer cells hold all beyond."
    return [*lines, text, "", *_table(header, grid)]


def _rejections(db: duckdb.DuckDBPyConnection) -> list[str]:
    rows = db.execute(
        """SELECT 'source' AS what, reason, count(*) AS n, coalesce(sum(duration_s), 0) / 3600 FROM sources
           WHERE status <> 'ok' GROUP BY reason
           UNION ALL SELECT stage || ' problem', reason, count(*), NULL FROM failures GROUP BY ALL
           UNION ALL SELECT 'track without clip', reason, count(*), sum(end_s - start_s) / 3600
           FROM (SELECT *, unnest(reasons) AS reason FROM tracks WHERE num_clips = 0) GROUP BY reason
           UNION ALL SELECT 'clip', reason, count(*), coalesce(sum(duration_s), 0) / 3600
           FROM (SELECT *, unnest(failed_rules) AS reason FROM clips) GROUP BY reason
           ORDER BY 1, 3 DESC, 2"""
    ).fetchall()
    meanings = {rule.name: rule.meaning for rule in RULES} | {SOURCE_REJECTED: SOURCE_REJECTED_MEANING}
    table = _table(("what", "reason", "number", "hours", "judged by"), [(*r, meanings.get(r[1], "")) for r in rows])
    text = "A clip may fail several rules. Rejected clips stay in the table `clips`, with their measurements."
    return ["## What was left out, and why", "", *(table if rows else ["Nothing."]), "", text]


def _making(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> list[str]:
    analysers = db.execute(
        "SELECT analyser, analyser_licence, analyser_weights FROM tracks GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    lines = ["## How it was made", "", "Faces were found, measured and compared by:", ""]
    for name, licence, weights in analysers:
        lines.append(f"- analyser `{name}`, licence: {licence or 'unknown'}")
        lines += [f"  - {part}: `{weight}`" for part, weight in sorted((weights or {}).items())]
    if recipe.crop.quality_model:
        lines.append(f"- quality network `{Path(recipe.crop.quality_model).name}`")
    values = [line for line in recipe_toml(recipe).splitlines() if line.split(" = ")[0] not in _PLACES]
    return [*lines, "", f"Recipe `{recipe.stage_hash('pack')}`:", "", "```toml", *values, "```"]


def _reading(dataset: Dataset, name: str, recipe: Recipe) -> list[str]:
    size = recipe.crop.size_px
    shards = sorted(read_table(dataset, "shards", ["shard"])["shard"].to_pylist(), key=lambda s: "train" not in s)
    shard = shards[0] if shards else "train-000000.tar"
    return [
        "## How to read it",
        "",
        f"Shards are WebDataset tars; a sample is one frame: a JPEG of {size} x {size} px and a JSON with 68 landmarks,"
        " pose, openness of eyes and lips, identity, split, licence, attribution and consent.",
        "",
        "```python",
        "import webdataset",
        f'for picture, label in webdataset.WebDataset("{name}/shards/{shard}").decode("rgb").to_tuple("jpg", "json"):',
        "    ...",
        "",
        "import manifests.views",
        f'manifests.views.connect("{name}").sql("SELECT split, count(*) FROM clips GROUP BY ALL")',
        "```",
        "",
        "Angles are degrees: yaw + = the face turns to the image's right, pitch + = up, roll + = clockwise. The table"
        " `clips` holds the byte offset of every frame.",
    ]


def _removal(db: duckdb.DuckDBPyConnection, name: str) -> list[str]:
    stones = dict(db.execute("SELECT kind, count(*) FROM tombstones GROUP BY kind").fetchall())
    told = ", ".join(f"{stones[kind]:,} {kind}s" for kind in ("source", "clip", "track", "face") if kind in stones)
    return [
        "## How to have a person or a source removed",
        "",
        "```",
        f"python -m curation forget {name} --face photo.jpg     # or --identity ID, --source URI, --where CONDITION",
        f"python -m curation verify {name}",
        "```",
        "",
        "Pictures, embeddings, rows and report entries go; a tombstone without biometric data keeps a later run from"
        " taking the same file in again, but not a re-encoded one or other material of the same person: that needs the"
        " face's embedding, which is kept only when asked for. Whoever received a copy has to be told to do the same.",
        "",
        f"Forgotten until now, and refused: {told}." if told else "Nothing has been forgotten until now.",
    ]


def _limits(recipe: Recipe) -> list[str]:
    lines = [
        "## Known limits",
        "",
        "- Identities are found by a network. Twins, children and strong changes of age, make-up or light are confused"
        " more often, and error rates differ between groups of people; a person may have two identities.",
        "- Licence, attribution and consent are what the source lists say; nobody checked them here.",
        "- Pose, openness of eyes and lips and landmarks are measured by networks, not by people.",
        "- Removal reaches this folder only: not copies, backups, or networks that were trained on it before.",
    ]
    if not recipe.select.require_consent:
        lines.append("- The recipe does not require that consent is stated (`select.require_consent`).")
    if not recipe.select.require_licence and not recipe.select.licences:
        lines.append("- The recipe does not require that a licence is named (`select.require_licence`).")
    return lines
