"""The named queries: one documented .sql file each, in queries/.

import manifests.views, manifests.query
db = manifests.views.connect("~/dataset")
manifests.query.ask(db, "pose_coverage", split="train")

A file begins with comment lines: what the query tells (its title in lists), then `Parameters:` and `Columns:` with a
name and a meaning on each line. A parameter is `$name` in the SQL; NULL where it is not given, unless
its meaning begins with "(required)".
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import duckdb

from manifests.schema import TABLES
from manifests.storage import full_path

_FOLDER = Path(__file__).resolve().parent / "queries"


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedQuery:
    """A query with its documentation."""

    name: str
    title: str
    parameters: dict[str, str]
    columns: dict[str, str]
    text: str
    """The whole file."""

    @property
    def required(self) -> list[str]:
        """Parameters that have no default."""
        return [name for name, meaning in self.parameters.items() if meaning.startswith("(required)")]

    def bind(self, values: dict[str, object]) -> dict[str, object]:
        """A value for every parameter, from those that are not None in `values`.

        Raises:
            ValueError: a required one is missing, the query has no such parameter, or the limit is less than 0.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if unknown := sorted(set(given) - set(self.parameters)):
            takes = ", ".join(f"--{name}" for name in self.parameters) or "no option"
            raise ValueError(f"query {self.name} has no --{unknown[0]}; it takes {takes}")
        if missing := [name for name in self.required if name not in given]:
            raise ValueError(f"query {self.name} needs --{missing[0]}: {self.parameters[missing[0]]}")
        if (limit := given.get("limit", 0)) < 0:
            raise ValueError(f"--limit is {limit}: expected 0 or more")
        return {name: given.get(name) for name in self.parameters}


@cache
def named_queries() -> dict[str, NamedQuery]:
    """All named queries, by name."""
    return {path.stem: _parse(path.stem, path.read_text()) for path in sorted(_FOLDER.glob("*.sql"))}


def find_query(name: str) -> NamedQuery:
    """The query of this name.

    Raises:
        ValueError: there is none; the message has the names that look like it.
    """
    queries = named_queries()
    if name in queries:
        return queries[name]
    if name in (*TABLES, "files"):
        raise ValueError(f'{name} is a view, not a query: try "FROM {name} LIMIT 10"')
    near = difflib.get_close_matches(name, queries, n=3, cutoff=0.5) or [q for q in queries if name in q]
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    raise ValueError(f"no query is called {name!r}{hint} --list shows all")


def ask(db: duckdb.DuckDBPyConnection, name: str, **parameters: object) -> duckdb.DuckDBPyRelation:
    """The answer of a named query on a connection of `manifests.views.connect`."""
    query = find_query(name)
    return db.sql(query.text, params=query.bind(parameters))


_PRESENT_FIRST = "ORDER BY coalesce(reason, '') = 'replaced', source_id"


def find_sources(db: duckdb.DuckDBPyConnection, name: str) -> list[str]:
    """source_ids of the sources that are called so: by source_id, content, place, or the name of the file.

    Of a place where a file was replaced there are several; what is there now comes first.

    Raises:
        ValueError: files in several places have that name.
    """
    place = str(Path(name).expanduser().absolute())
    matches = db.execute(
        "SELECT source_id, uris[1] FROM sources WHERE $name IN (source_id, content_sha256)"
        f" OR list_has_any(uris, [$name, $place, $shortened]) {_PRESENT_FIRST}",
        {"name": name, "place": place, "shortened": full_path(os.path.expanduser(name))},
    ).fetchall()
    if not matches and "/" not in name:
        matches = db.execute(
            "SELECT source_id, uris[1] FROM sources"
            f" WHERE list_contains(list_transform(uris, lambda uri: split_part(uri, '/', -1)), ?) {_PRESENT_FIRST}",
            [name],
        ).fetchall()
        places = {uri: None for _, uri in matches}
        if len(places) > 1:
            raise ValueError(f"{name} names {len(places)} sources: {', '.join(places)}; give one URI or source_id")
    return [source_id for source_id, _ in matches]


def check_reads_only(sql: str) -> None:
    """Raise ValueError unless `sql` is one statement that only reads (SELECT, FROM, DESCRIBE, SUMMARIZE, ...).

    EXPLAIN may run what it explains, and PIVOT that looks for its values makes a type of them first: both are refused.
    """
    statements = duckdb.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if kinds == ["MULTI"]:
        raise ValueError(
            "expected one query, got a PIVOT that finds its values in another one: name them, as in"
            " PIVOT (SELECT decision, kind FROM clips) ON decision IN ('keep', 'reject') USING count(*)"
        )
    if kinds != ["SELECT"]:
        raise ValueError(
            f"expected one query that only reads (SELECT, FROM, DESCRIBE, ...), got {' and '.join(kinds) or 'none'};"
            " to write an answer to a file: --format and --output"
        )


def without_end(sql: str) -> str:
    """A statement without the semicolons and comments after it, so that it can stand in brackets."""
    data = sql.encode()
    end = len(data)
    for start, kind in reversed(duckdb.tokenize(sql)):  # offsets count bytes
        if kind != duckdb.token_type.comment and data[start:end].strip() != b";":
            break
        end = start
    return data[:end].decode()


def is_name(text: str) -> bool:
    """Whether `text` can only be the name of a query."""
    return re.fullmatch(r"[\w-]+", text) is not None


def _parse(name: str, text: str) -> NamedQuery:
    title, section = [], "title"
    sections: dict[str, dict[str, str]] = {"Parameters": {}, "Columns": {}}
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        words = line[2:].strip()
        if words.removesuffix(":") in sections:
            section = words.removesuffix(":")
        elif section == "title" and words:
            title.append(words)
        elif words:
            key, _, meaning = words.partition(" ")
            sections[section][key] = meaning.strip()
    assert title, f"{name}.sql has no title"
    assert sections["Columns"], f"{name}.sql names no columns"
    return NamedQuery(
        name=name, title=" ".join(title), parameters=sections["Parameters"], columns=sections["Columns"], text=text
    )
