"""python -m manifests DATASET ["SQL"]: what is in a data set.

Without a query: a summary. The views are sources, tracks, clips, frames, shards, failures and units.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import tyro

from manifests.views import connect

_SUMMARY = {
    "sources": "SELECT kind, status, coalesce(reason, '') AS reason, count(*) AS num_sources,"
    " round(sum(duration_s) / 60, 2) AS minutes FROM sources GROUP BY ALL ORDER BY ALL",
    "clips": "SELECT decision, split, count(*) AS num_clips, count(DISTINCT source_id) AS num_sources,"
    " count(DISTINCT identity_id) AS num_identities, sum(num_frames) AS num_frames,"
    " round(sum(duration_s) / 60, 2) AS minutes FROM clips GROUP BY ALL ORDER BY ALL",
    "why clips were rejected": "SELECT unnest(failed_rules) AS failed_rule, count(*) AS num_clips,"
    " round(sum(duration_s) / 60, 2) AS minutes FROM clips GROUP BY 1 ORDER BY 2 DESC, 1",
    "licences of kept clips": "SELECT coalesce(licence, 'unknown') AS licence, count(*) AS num_clips FROM clips"
    " WHERE decision = 'keep' GROUP BY 1 ORDER BY 2 DESC, 1",
    "shards": "SELECT split, count(*) AS num_shards, sum(num_samples) AS num_samples, sum(size_bytes) AS size_bytes"
    " FROM shards GROUP BY 1 ORDER BY 1",
    "problems": "SELECT stage, reason, count(*) AS num_units FROM failures GROUP BY ALL ORDER BY ALL",
}


@dataclass(frozen=True, kw_only=True)
class Query:
    """Ask a data set: a summary, or any SQL over its views sources, tracks, clips, frames, shards, failures, units."""

    dataset: tyro.conf.Positional[Path]
    """Folder of the data set."""
    sql: tyro.conf.Positional[str] = ""
    """A query for DuckDB; empty: a summary."""
    format: Literal["table", "csv", "json", "parquet"] = "table"
    """How to print the answer; parquet needs --output."""
    output: Path | None = None
    """Write the answer to this file instead of printing it."""


def main(arguments: list[str] | None = None) -> int:
    """Answer on standard output; 2 for wrong use or a query that DuckDB refuses."""
    query = tyro.cli(Query, args=arguments, prog="python -m manifests", description=Query.__doc__)
    try:
        db = connect(query.dataset)
        if not query.sql:
            for title, sql in _SUMMARY.items():
                print(f"{title}\n{db.sql(sql)}")
            return 0
        _answer(db, query)
    except (ValueError, OSError, duckdb.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _answer(db: duckdb.DuckDBPyConnection, query: Query) -> None:
    """Print the answer, or write it to the output file, in the format that was asked for."""
    if query.format == "table":
        relation = db.sql(query.sql)
        if relation is None:
            return
        if query.output is None:
            relation.show(max_rows=1000, max_width=10_000)
        else:
            query.output.write_text(f"{relation}\n")
        return
    if query.output is None and query.format == "parquet":
        raise ValueError("--format parquet needs --output FILE")
    with tempfile.TemporaryDirectory() as folder:
        path = query.output or Path(folder) / "answer"
        options = {"csv": "FORMAT csv, HEADER", "json": "FORMAT json, ARRAY true", "parquet": "FORMAT parquet"}
        target = str(path).replace("'", "''")
        db.execute(f"COPY ({query.sql.rstrip().rstrip(';')}) TO '{target}' ({options[query.format]})")
        if query.output is None:
            sys.stdout.write(path.read_text())


if __name__ == "__main__":
    sys.exit(main())
