"""What a run or a selection changed in a data set that was there before: decisions, splits and shards, in words."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from curation.recipe import Recipe, recipe_of
from manifests.console import amount
from manifests.storage import is_local, require_local
from manifests.store import Dataset, read_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a data set holds at one moment."""

    recipe_hash: str | None = None
    """None: there is no data set yet; "damaged": its recipe cannot be read."""
    recipe: Recipe | None = field(default=None, compare=False)
    num_kept: int = 0
    """Clips."""
    shards: dict[str, str] = field(default_factory=dict)
    """Hash of what each is made from, by its name."""


def read_contents(dataset: Dataset) -> Contents:
    """Look now; the caller holds the lock."""
    if not dataset.recipe_file.exists():
        return Contents()
    kept = pc.sum(pc.equal(read_table(dataset, "clips", ["decision"])["decision"], "keep")).as_py()
    shards = read_table(dataset, "shards", ["shard", "plan_hash"]).to_pylist()
    recipe = None
    with suppress(ValueError):  # a run replaces it
        recipe = recipe_of(dataset.root)
    return Contents(
        recipe_hash="damaged" if recipe is None else recipe.stage_hash("pack"),
        recipe=recipe,
        num_kept=kept or 0,
        shards={row["shard"]: row["plan_hash"] for row in shards},
    )


def describe_change(before: Contents, after: Contents) -> str:
    """One line; empty where nothing changed, or where there was no data set before."""
    if before.recipe_hash is None or before == after:
        return ""
    written = sum(before.shards.get(name) != plan_hash for name, plan_hash in after.shards.items())
    removed = len(before.shards.keys() - after.shards.keys())
    return (
        f"changed: {before.num_kept} clips kept before, {after.num_kept} now; {written} shards written,"
        f" {removed} removed, {len(after.shards) - written} left as they were"
    )


_BEFORE = """
    WITH decided_before AS (SELECT * FROM clips WHERE decision IS NOT NULL),
         cropped_again AS (SELECT clip_id FROM clips JOIN put_aside USING (clip_id) WHERE decision IS NULL)
    FROM decided_before
    UNION ALL
    SELECT clip_id, CASE WHEN split IS NULL THEN 'reject' ELSE 'keep' END, split, NULL
    FROM put_aside ANTI JOIN decided_before USING (clip_id) WHERE EXISTS (FROM cropped_again)"""
"""What the clips had before. What was put aside of those that are gone may be left of a time long past, where no clip
has been cropped again."""
_FLIPS = """
    SELECT clip_id, before.decision AS decision_before, now.decision AS decision_now, before.split AS split_before,
        now.split AS split_now, before.failed_rules AS failed_before, now.failed_rules AS failed_now
    FROM before FULL JOIN now USING (clip_id)
    WHERE before.decision IS DISTINCT FROM now.decision OR before.split IS DISTINCT FROM now.split
    ORDER BY clip_id"""
_RULES = """
    SELECT string_agg(rule || ' ' || num, ', ' ORDER BY num DESC, rule)
    FROM (SELECT rule, count(*) AS num FROM (SELECT unnest({failed}) AS rule FROM flips WHERE {which}) GROUP BY rule)"""
_MOVES = """
    SELECT split_before, split_now, count(*) FROM flips WHERE split_before <> split_now GROUP BY ALL ORDER BY ALL"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What a selection has decided, beside what was decided before."""

    num_kept: int
    num_kept_before: int | None
    """None: nothing was decided before."""
    flips: pa.Table
    """The clips whose decision or split is another, by clip_id: both with the failed rules before (NULL where they are
    not known) and now. The decision before is NULL for new clips, the one now for those that are there no longer.
    Without rows where nothing was decided before."""

    def describe(self) -> list[str]:
        """In words; nothing where nothing changed, or where nothing was decided before."""
        if self.num_kept_before is None or not len(self.flips):
            return []
        db = duckdb.connect()
        db.register("flips", self.flips)

        def count(which: str) -> int:
            return db.execute(f"SELECT count(*) FROM flips WHERE {which}").fetchone()[0]

        def rules(failed: str, which: str) -> str:
            return db.execute(_RULES.format(failed=failed, which=which)).fetchone()[0] or "not known"

        lines = [f"kept clips: {self.num_kept_before} before, {self.num_kept} now"]
        rejected, kept = (
            "decision_before = 'keep' AND decision_now = 'reject'",
            "decision_before = 'reject' AND decision_now = 'keep'",
        )
        if num := count(rejected):
            lines.append(f"  newly rejected: {num} ({rules('failed_now', rejected)})")
        if num := count(kept):
            lines.append(f"  newly kept: {num} (failed before: {rules('failed_before', kept)})")
        if num := count("decision_before IS NULL"):
            num_kept = count("decision_before IS NULL AND decision_now = 'keep'")
            lines.append(f"  new: {num}, of which {num_kept} are kept")
        if num := count("decision_before = 'keep' AND decision_now IS NULL"):
            lines.append(f"  kept before, and no longer there: {num}")
        for before, now, num in db.execute(_MOVES).fetchall():
            why = ", which networks may have been trained on" if before == "train" else ""
            why = why or f": figures on {before} before and from now on are not of the same clips"
            moves = f"{amount(num, 'clip')} {'moves' if num == 1 else 'move'}"
            lines.append(f"  {moves} from {before} to {now}{why}")
        return lines

    def write(self, output: Path) -> None:
        """The table of flips as Parquet or, whatever else the name ends with, as CSV."""
        db = duckdb.connect()
        db.register("flips", self.flips)
        how = "FORMAT parquet" if output.suffix.lower() == ".parquet" else "FORMAT csv, HEADER"
        target = str(output).replace("'", "''")
        db.execute(f"COPY flips TO '{target}' ({how})")


def require_own_file(output: Path, dataset: Dataset) -> None:
    """ValueError where `Selection.write` cannot write, or must not: into the data set."""
    require_local(output, "name a local file; --changes-output")
    if is_local(dataset.root) and output.resolve().is_relative_to(dataset.root.resolve()):
        raise ValueError(f"--changes-output {output} is inside the data set: name a file elsewhere")
    if output.is_dir() or not output.resolve().parent.is_dir():
        raise ValueError(f"--changes-output {output} cannot be written: name a file in a folder that is there")


def compare_decisions(clips: pa.Table, put_aside: pa.Table, decided: pa.Table) -> Selection:
    """Fresh decisions beside those before.

    clips: as the manifests have them. put_aside: what `kept_decisions` has of them, with clip_id and split. decided:
    about all clips. Of `clips` and `decided` the clip_id, decision, split and failed_rules are read.
    """
    columns = ["clip_id", "decision", "split", "failed_rules"]
    db = duckdb.connect()
    db.register("clips", clips.select(columns))
    db.register("put_aside", put_aside.select(["clip_id", "split"]))
    db.register("now", decided.select(columns))
    db.execute(f"CREATE TEMP TABLE before AS {_BEFORE}")
    ((num_decided, num_kept_before),) = db.execute(
        "SELECT count(*), count(*) FILTER (decision = 'keep') FROM before"
    ).fetchall()
    return Selection(
        num_kept=pc.sum(pc.equal(decided["decision"], "keep")).as_py() or 0,
        num_kept_before=num_kept_before if num_decided else None,
        flips=db.sql(_FLIPS if num_decided else f"{_FLIPS} LIMIT 0").to_arrow_table(),
    )
