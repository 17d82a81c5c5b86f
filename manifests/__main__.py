"""python -m manifests DATASET [QUERY]: what is in a data set.

python -m manifests ~/dataset                                 a summary
python -m manifests ~/dataset --list                          the named queries
python -m manifests ~/dataset pose_coverage --split train     one of them
python -m manifests ~/dataset pose_coverage --list            its documentation and its SQL
python -m manifests s3://bucket/dataset                       on an object store
python -m manifests ~/dataset "FROM clips" --output clips.csv

The views are sources, tracks, clips, frames, shards, failures, units, runs, tombstones and files; their columns are
in manifests/schema.py. Nothing is changed from here.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import duckdb
import tyro

from manifests.broken_pipe import ending_quietly
from manifests.console import make_console
from manifests.query import check_reads_only, find_query, find_sources, is_name, named_queries, without_end
from manifests.storage import is_local, place, require_writable_file
from manifests.store import Dataset
from manifests.summary import print_summary
from manifests.views import connect

_COPY_OPTIONS = {
    "csv": "FORMAT csv, HEADER",
    "json": "FORMAT json, ARRAY true",
    "jsonl": "FORMAT json, ARRAY false",
    "parquet": "FORMAT parquet",
}


@dataclass(frozen=True, kw_only=True)
class Query:
    """Ask a data set: a summary, a named query (--list shows them), or an SQL query that only reads."""

    dataset: tyro.conf.Positional[str]
    """Folder of the data set, or its URL (s3://bucket/dataset)."""
    query: tyro.conf.Positional[str] = ""
    """Name of a query, or SQL for DuckDB: SELECT, FROM, DESCRIBE, SUMMARIZE, PIVOT with its values named, no EXPLAIN;
    empty: a summary."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the named queries; with a name, its documentation and SQL."""
    split: Literal["train", "val", "test"] | None = None
    """Of a named query: only this split."""
    identity: str | None = None
    """Of a named query: an identity_id."""
    source: str | None = None
    """Of a named query: a source_id, a place where the source was found, or its file name."""
    clip: str | None = None
    """Of a named query: a clip_id."""
    rule: str | None = None
    """Of a named query: a rule that rejects clips."""
    limit: int | None = None
    """Of a named query: at most so many rows."""
    format: Literal["table", "csv", "json", "jsonl", "parquet"] | None = None
    """How to print the answer; parquet needs --output (None: as the ending of --output, csv if that is another; a table
    without --output, of 1000 rows at most)."""
    output: Path | None = None
    """Write the answer, all rows of it, to this file instead of printing it."""

    @property
    def answer_format(self) -> str:
        """`format`, or the one that fits the output."""
        if self.format is not None or self.output is None:
            return self.format or "table"
        ending = self.output.suffix.lower().removeprefix(".")
        return ending if ending in _COPY_OPTIONS else "csv"

    @property
    def parameters(self) -> dict[str, object]:
        """The options that go to a named query; None where not given."""
        return {name: getattr(self, name) for name in ("split", "identity", "source", "clip", "rule", "limit")}


def main(arguments: list[str] | None = None) -> int:
    """Answer on standard output; 2 for wrong use or a query that DuckDB refuses, 141 when nobody reads the answer."""
    try:
        with ending_quietly():
            _do(tyro.cli(Query, args=arguments, prog="python -m manifests", description=Query.__doc__))
    except (ValueError, OSError, duckdb.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _do(query: Query) -> None:
    if query.output is not None:
        output = require_writable_file(query.output.expanduser(), "name a local file; --output")
        query = replace(query, output=output)
    db = connect(query.dataset)
    db.execute("SET python_enable_replacements = false")  # names in a query are views, never our variables
    if query.list:
        _refuse_file(query, "--list")
        _print_list(query.query)
    elif query.query:
        _answer(db, query)
    else:
        _refuse_parameters(query, "the summary")
        _refuse_file(query, "the summary")
        print_summary(db, Dataset(query.dataset))


def _print_list(name: str) -> None:
    if name:
        print(find_query(name).text, end="")
        return
    console = make_console()
    width = max(map(len, named_queries()))
    for query in named_queries().values():
        options = " ".join(f"--{p}" if p in query.required else f"[--{p}]" for p in query.parameters)
        console.print(f"{query.name:{width}}  {options}", style="bold", soft_wrap=True)
        console.print(f"{'':{width}}  {query.title}", soft_wrap=True)


def _answer(db: duckdb.DuckDBPyConnection, query: Query) -> None:
    """Print the answer, or write it to the output file, in the format that was asked for."""
    sql, values = query.query, None
    if is_name(query.query):
        named = find_query(query.query)
        sql, values = named.text, named.bind(query.parameters)
        if query.source is not None:
            values["source"] = _source_id(db, query.source)
    else:
        _refuse_parameters(query, "SQL")
        check_reads_only(sql)
    chosen = query.answer_format
    if chosen == "parquet" and query.output is None:
        raise ValueError("--format parquet needs --output FILE")
    root = place(query.dataset)
    if query.output is not None and is_local(root) and query.output.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"--output {query.output} is inside the data set: name a file elsewhere")
    if chosen == "table":
        relation = db.sql(sql, params=values)
        _answer_table(relation, query.output)
        _warn_of_nothing(query, len(relation))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = query.output or Path(folder) / "answer"
        target = str(path).replace("'", "''")
        (num_rows,) = db.execute(
            f"COPY ({without_end(sql)}) TO '{target}' ({_COPY_OPTIONS[chosen]})", values
        ).fetchone()
        if query.output is None:
            with open(path, encoding="utf-8") as file:
                shutil.copyfileobj(file, sys.stdout)
    _warn_of_nothing(query, num_rows)


def _source_id(db: duckdb.DuckDBPyConnection, name: str) -> str:
    """Of the source that is called so."""
    if not (found := find_sources(db, name)):
        raise ValueError(f"no source is called {name!r}: SELECT source_id, uris FROM sources shows their names")
    return found[0]


def _warn_of_nothing(query: Query, num_rows: int) -> None:
    """A value with a typing error finds as little as a right one of which there is nothing."""
    values = [f"--{name} {value}" for name, value in query.parameters.items() if value is not None]
    if num_rows == 0 and values:
        print(f"note: nothing in the data set matches {' '.join(values)}", file=sys.stderr)


def _answer_table(relation: duckdb.DuckDBPyRelation, output: Path | None) -> None:
    if output is None:
        relation.show(max_rows=1000, max_width=10_000)
        return
    with open(output, "w", encoding="utf-8") as file, redirect_stdout(file):
        relation.show(max_rows=sys.maxsize, max_width=sys.maxsize)


def _refuse_file(query: Query, what: str) -> None:
    for name in ("output", "format"):
        if getattr(query, name) is not None:
            raise ValueError(f"--{name} is for answers to queries; {what} is printed as it is")


def _refuse_parameters(query: Query, what: str) -> None:
    for name, value in query.parameters.items():
        if value is not None:
            raise ValueError(f"--{name} is for named queries (--list shows them); {what} takes none")


if __name__ == "__main__":
    sys.exit(main())
