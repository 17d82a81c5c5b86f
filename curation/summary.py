"""The table at the end of a run: what went in, what was kept, why the rest went, and where everything is."""

from __future__ import annotations

import shlex
from typing import Any

import duckdb
from rich.console import Console
from rich.table import Table

from curation.finding import Found
from curation.recipe import SelectOptions
from curation.removal import Removal
from curation.rules import SOURCE_REJECTED, SOURCE_REJECTED_MEANING, active_rules
from curation.units import BROUGHT_DOWN, NOT_OF_THE_FILE
from manifests.console import few, in_hours, make_console, shorten
from manifests.query import ask
from manifests.storage import list_files
from manifests.store import Dataset
from manifests.views import connect

_SPLITS = """
    SELECT split, coalesce(kept, 0), coalesce(packed, 0), coalesce(num_samples, 0), coalesce(size_bytes, 0)
    FROM (SELECT split, count(*) AS kept FROM clips WHERE decision = 'keep' GROUP BY split)
    FULL JOIN (SELECT split, sum(num_clips) AS packed, sum(num_samples) AS num_samples, sum(size_bytes) AS size_bytes
               FROM shards GROUP BY split) USING (split)
    ORDER BY CASE split WHEN 'train' THEN 0 WHEN 'val' THEN 1 ELSE 2 END"""
_MAX_CLIPS_SHOWN = 30
_MAX_CONDITION = 56  # characters; a rule with a long list of words must not squeeze the other columns


def print_summary(dataset: Dataset, options: SelectOptions, console: Console | None = None) -> None:
    """Print the summary of a data set from its manifests."""
    console = console or make_console()
    db = connect(dataset.root)
    num_sources, num_ok, stills, hours_in = db.execute(
        """SELECT count(*), count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'ok' AND kind = 'still'),
                  coalesce(sum(duration_s) FILTER (status = 'ok'), 0) / 3600 FROM sources"""
    ).fetchone()
    clips, kept, hours, people, frames = db.execute(
        """SELECT count(*), count(*) FILTER (decision = 'keep'),
                  coalesce(sum(duration_s) FILTER (decision = 'keep'), 0) / 3600,
                  count(DISTINCT identity_id) FILTER (decision = 'keep'),
                  coalesce(sum(num_frames) FILTER (decision = 'keep'), 0) FROM clips"""
    ).fetchone()
    table = Table(title="Curation", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_row("sources", f"{num_ok} usable of {num_sources} ({stills} stills), {in_hours(hours_in)} of video")
    table.add_row(
        "clips", f"{kept} kept of {clips} candidates, {in_hours(hours)}, {frames} frames, {people} identities"
    )
    for split, num_kept, num_packed, num_samples, size in db.execute(_SPLITS).fetchall():
        shards = f"{num_samples} samples, {size / 1e6:.1f} MB"
        if num_packed != num_kept:  # decided again since the shards were written
            shards = f"the shards still hold {num_packed} clips, {shards}, until the next run"
        table.add_row(f"  {split}", f"{num_kept} clips, {shards}")
    refused = db.execute("SELECT kind, count(*) FROM tombstones GROUP BY kind ORDER BY kind DESC").fetchall()
    if refused:
        table.add_row("forgotten", ", ".join(f"{count} {kind}s" for kind, count in refused) + " are refused")
    console.print(table)
    _warn_of_nothing_kept(db, options, console)
    _warn_of_empty_train(db, console)
    _print_reasons(dataset, options, console)
    _tell_of_another_try(db, console)
    _tell_of_rights_conflicts(db, dataset, console)
    console.print(f"shards    {dataset.shards}/", highlight=False)
    ask_it = f"python -m manifests {shlex.quote(str(dataset.root))}"
    console.print(f"manifests {dataset.root / 'manifests'}/  ({ask_it})", highlight=False, soft_wrap=True)


def why_nothing(dataset: Dataset) -> str:
    """Why a run was in vain, in words; empty where some input could be used, whatever was found in it."""
    db = connect(dataset.root)
    (is_usable,) = db.execute("SELECT count(*) > 0 FROM sources WHERE status = 'ok'").fetchone()
    if not is_usable:
        return "none of the inputs could be used"
    (num_failed,) = db.execute(
        "SELECT count(*) FROM failures WHERE reason IN (FROM unnest($1)) AND NOT EXISTS (FROM clips)",
        [NOT_OF_THE_FILE + BROUGHT_DOWN],
    ).fetchone()
    return f"there are no clips, and work on {num_failed} sources or parts of them failed" if num_failed else ""


def _warn_of_nothing_kept(db: duckdb.DuckDBPyConnection, options: SelectOptions, console: Console) -> None:
    """All candidates gone is mostly a threshold or a name that is not as it was meant."""
    rules = db.execute(
        "SELECT rule, count(*) FROM (SELECT unnest(failed_rules) AS rule FROM clips"
        " WHERE NOT EXISTS (FROM clips WHERE decision = 'keep')) GROUP BY rule ORDER BY 2 DESC, 1"
    ).fetchall()
    if not rules:
        return
    text = "warning: no clip is kept; rejected by " + ", ".join(f"{rule} {count}" for rule, count in rules[:3])
    if "licence_not_allowed" in dict(rules):
        named = db.execute("SELECT DISTINCT coalesce(licence, '(none)') FROM sources ORDER BY 1").fetchall()
        text += f"; --select.licences allows {', '.join(options.licences)}, and the sources have "
        text += few([name for (name,) in named])
    console.print(text, highlight=False, soft_wrap=True)


def _warn_of_empty_train(db: duckdb.DuckDBPyConnection, console: Console) -> None:
    """A person goes to one split as a whole, and a small data set may have no other."""
    kept, train = db.execute(
        "SELECT count(*), count(*) FILTER (split = 'train') FROM clips WHERE decision = 'keep'"
    ).fetchone()
    if kept and not train:
        console.print(
            f"warning: the train split is empty: all {kept} kept clips fell into val or test; change --seed, or make"
            " --select.val-share and --select.test-share smaller (0: no such split)",
            highlight=False,
            soft_wrap=True,
        )


def _print_reasons(dataset: Dataset, options: SelectOptions, console: Console) -> None:
    db = connect(dataset.root)
    reasons = db.execute(
        """SELECT 'source' AS what, reason, count(*), sum(duration_s), any_value(uris[1]) FROM sources
           WHERE status <> 'ok' GROUP BY reason
           UNION ALL
           SELECT stage || ' problem', reason, count(*), NULL, any_value(uri) FROM failures GROUP BY ALL
           UNION ALL
           SELECT 'track without clip', reason, count(*), sum(end_s - start_s), any_value(track_id)
           FROM (SELECT *, unnest(reasons) AS reason FROM tracks WHERE num_clips = 0) GROUP BY reason
           UNION ALL
           SELECT 'clip', reason, count(*), sum(duration_s), any_value(clip_id)
           FROM (SELECT *, unnest(failed_rules) AS reason FROM clips) GROUP BY reason
           ORDER BY 1, 3 DESC, 2"""
    ).fetchall()
    if not reasons:
        return
    conditions = {rule.name: rule.shown(condition) for rule, condition in active_rules(options)}
    conditions[SOURCE_REJECTED] = SOURCE_REJECTED_MEANING
    table = Table(title="Why the rest went", title_justify="left", box=None, pad_edge=False)
    for column, justify in (("what", "left"), ("reason", "left"), ("count", "right"), ("s", "right")):
        table.add_column(column, justify=justify)
    table.add_column("rule, or an example", overflow="ellipsis", no_wrap=True)
    for what, reason, count, seconds, example in reasons:
        note = shorten(conditions.get(reason, ""), _MAX_CONDITION) if what == "clip" else example or ""
        table.add_row(what, reason, str(count), f"{seconds:.1f}" if seconds else "", note)
    console.print(table)


def _tell_of_another_try(db: duckdb.DuckDBPyConnection, console: Console) -> None:
    for reasons, how in ((NOT_OF_THE_FILE, "the same command"), (BROUGHT_DOWN, "the same command with --retry-failed")):
        count, found = db.execute(
            "SELECT count(*), string_agg(DISTINCT reason, ', ' ORDER BY reason) FROM failures"
            " WHERE reason IN (FROM unnest($1))",
            [reasons],
        ).fetchone()
        if count:
            console.print(f"{how} does these {count} again: {found}", highlight=False, soft_wrap=True)


def _tell_of_rights_conflicts(db: duckdb.DuckDBPyConnection, dataset: Dataset, console: Console) -> None:
    if num := len({source_id for source_id, *_ in ask(db.cursor(), "rights_conflicts").fetchall()}):
        console.print(
            f"note: source lists state different rights of {num} contents in different places; all licences and"
            " attributions are told, and a refusal of consent holds, until the lists agree:"
            f" python -m manifests {shlex.quote(str(dataset.root))} rights_conflicts",
            highlight=False,
            soft_wrap=True,
        )


def print_costs(costs: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print what each rule costs."""
    table = Table(title="What each rule rejects", title_justify="left", box=None, pad_edge=False)
    table.add_column("rule")
    table.add_column("a clip passes when", overflow="ellipsis", no_wrap=True, max_width=_MAX_CONDITION)
    for what in ("alone", "only it", "in order"):
        table.add_column(f"clips {what}", justify="right")
        table.add_column("time", justify="right")
    for row in costs:
        figures = []
        for key in ("alone", "only", "in_order"):
            figures += [str(row[f"clips_{key}"]), in_hours(row[f"hours_{key}"])]
        table.add_row(row["rule"], row["condition"], *figures)
    (console or make_console()).print(table)


def print_removal(dataset: Dataset, removal: Removal, found: Found) -> None:
    """Print what a removal will take away, before anybody is asked."""
    console = make_console()
    kept = [clip for clip in found.clips if clip.get("decision") == "keep"]
    table = Table(title="To be removed", title_justify="left", show_header=False, box=None, pad_edge=False)
    for source in found.sources:
        was = ", of what was there before" * (source["reason"] == "replaced")
        table.add_row("source", f"{', '.join(source['uris'])} (licence {source['licence'] or 'not stated'}{was})")
    video = in_hours(sum(clip.get("duration_s") or 0.0 for clip in kept) / 3600)
    frames = sum(clip.get("num_frames") or 0 for clip in found.clips)
    table.add_row("clips", f"{len(kept)} kept, {video}; {len(found.clips) - len(kept)} others; {frames} frames")
    people = sorted({clip["identity_id"] for clip in found.clips if clip.get("identity_id")})
    if people:
        table.add_row("identities", f"{len(people)}: {few(people)}")
    table.add_row("from sources", str(len({clip["source_id"] for clip in found.clips})))
    if found.tracks:
        table.add_row("tracks", f"{len(found.tracks)} of which no clip stays, in sources that stay")
    shards = [shard["shard"] for shard in removal.rewritten]
    num_all = len(list_files(dataset.shards, ".tar"))
    table.add_row("shards", f"{len(shards)} of {num_all} written again{': ' * bool(shards)}{few(shards)}")
    if removal.removed:
        table.add_row("", f"{len(removal.removed)} removed, nothing is left in them: {few(removal.removed)}")
    if removal.discarded:
        text = "left half-replaced by an interrupted run, removed; the next `run` makes them"
        table.add_row("", f"{len(removal.discarded)} {text}: {few(removal.discarded)}")
    if dataset.report.exists():
        table.add_row("reports", f"{dataset.report}/ goes as a whole; `review` and `card` make it again")
    if found.faces:
        faces = "this face" if len(found.faces) == 1 else f"these {len(found.faces)} faces"
        table.add_row("to be kept", f"the embedding of {faces}, in the tombstones, to refuse new material")
    console.print(table, highlight=False)
    _print_clips(found, console)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _print_clips(found: Found, console: Console) -> None:
    if not found.clips:
        return
    table = Table("clip", "from", "to", "decision", "identity", "shard", box=None, pad_edge=False)
    if found.similarities:
        table.add_column("similarity", justify="right")
    for clip in found.clips[:_MAX_CLIPS_SHOWN]:
        values = [clip["clip_id"], f"{clip['start_s']:.1f} s", f"{clip['end_s']:.1f} s"]
        values += [clip.get(name) or "" for name in ("decision", "identity_id", "shard")]
        if found.similarities:
            values.append(f"{found.similarities[clip['clip_id']]:.2f}")
        table.add_row(*values)
    console.print(table, highlight=False)
    if len(found.clips) > _MAX_CLIPS_SHOWN:
        console.print(f"and {len(found.clips) - _MAX_CLIPS_SHOWN} more", highlight=False)
