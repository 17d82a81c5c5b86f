"""The rules of selection as the page's sliders apply them: a measured column, a comparison and a threshold.

The measure is computed here by the database that also decides, so that the page has one comparison left to do and
counts what `select` would, but for copies: which clip is a copy of which is as the last `select` has found. Where the
best of several copies falls, `select` keeps the next best, and the page says "about".
"""

from __future__ import annotations

import re
from typing import Any

import duckdb
import pyarrow as pa

from curation.recipe import MAY_BE_NEGATIVE, SelectOptions
from curation.review.columns import encode_column
from curation.rules import RULES, Rule, sql_literal

_NUMBER = re.compile(r"(?:(?P<exempt>.+) OR )?(?P<measure>[^<>=]+?) (?P<compare>>=|<=) \{value\}")
_CHOICE = re.compile(r"(?P<measure>.+) IN \{value\}")


def encode_rules(clips: pa.Table, options: SelectOptions) -> list[dict[str, Any]]:
    """Every rule, switched on or off, with what it judges of each row of `clips` (in their order).

    Clips that are rejected by hand have no slider; thresholds do not judge those that are kept by hand.

    Kinds: `number`, a clip passes where its measure is unknown or compares true (column None: the measure is a column
    of `clips`); `choice`, its text is one of a list, and an empty list passes all; `switch`, 1 where a clip passes when
    it is off, and when it is on.
    """
    db = duckdb.connect()
    db.register("clips", clips.append_column("_row", pa.array(range(len(clips)), pa.int64())))
    rules = [rule for rule in RULES if rule.option != "reject_clips"]
    return [_encode_rule(db, clips, rule, getattr(options, rule.option), options.keep_clips) for rule in rules]


def _encode_rule(
    db: duckdb.DuckDBPyConnection, clips: pa.Table, rule: Rule, value: Any, kept_by_hand: tuple[str, ...]
) -> dict[str, Any]:
    encoded = {"name": rule.name, "option": rule.option, "condition": rule.condition, "meaning": rule.meaning}
    if isinstance(value, bool):
        off, on = (
            encode_column(_column(db, f"coalesce(({rule.condition.format(value=state)}), TRUE)::INTEGER"))
            for state in ("FALSE", "TRUE")
        )
        return encoded | {"kind": "switch", "value": value, "off": off, "on": on}
    if match := _NUMBER.fullmatch(rule.condition):
        measure = match["measure"]
        if match["exempt"]:
            measure = f"CASE WHEN coalesce(({match['exempt']}), TRUE) THEN NULL ELSE {measure} END"
        if kept_by_hand:
            measure = f"CASE WHEN clip_id IN {sql_literal(kept_by_hand)} THEN NULL ELSE {measure} END"
        column = _column(db, measure)
        is_single = pa.types.is_float32(column.type)  # a decimal threshold is rounded to the column's precision
        return encoded | {
            "kind": "number",
            "value": value,
            "measure": match["measure"],
            "compare": match["compare"],
            "is_single": is_single,
            "may_be_negative": rule.option in MAY_BE_NEGATIVE,
            "column": None if measure in clips.column_names else encode_column(column),
        }
    match = _CHOICE.fullmatch(rule.condition)
    assert match, f"rule {rule.name}: the page knows no slider for {rule.condition!r}"
    column = _column(db, match["measure"])
    names = [name.strip().lower() for name in value]
    return encoded | {"kind": "choice", "value": names, "measure": match["measure"], "column": encode_column(column)}


def _column(db: duckdb.DuckDBPyConnection, expression: str) -> pa.ChunkedArray:
    return db.sql(f"SELECT {expression} AS value, _row FROM clips ORDER BY _row").to_arrow_table()["value"]
