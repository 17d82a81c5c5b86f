"""Licence, attribution and consent are free text of source lists: which words state none.

In the SQL of `manifests.views.connect` there are `is_stated(text)` and `says_nothing(text)`.
"""

from __future__ import annotations

_NOTHING = ("", "-", "unknown", "n/a", "nan", "null")
_REFUSALS = ("no", "n", "none", "false", "0", "0.0", "refused", "denied", "withdrawn")
_BLANKS = " \t\r\n"


def says_nothing(text: str | None) -> bool:
    """Whether a cell is as good as empty; "no" is an answer, "unknown" is none."""
    return _plain(text) in _NOTHING


def is_refusal(text: str | None) -> bool:
    """Whether a cell says that there is no consent (or no licence)."""
    return _plain(text) in _REFUSALS


def _plain(text: str | None) -> str:
    return (text or "").strip(_BLANKS).lower()


def says_nothing_sql(column: str) -> str:
    """`says_nothing` as an SQL condition."""
    return _is_one_of(column, _NOTHING)


def is_stated_sql(column: str) -> str:
    """An SQL condition: a text neither says nothing nor refuses."""
    return f"NOT {_is_one_of(column, _NOTHING + _REFUSALS)}"


def _is_one_of(column: str, words: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{word}'" for word in words)
    return f"(lower(trim(coalesce({column}, ''), E' \\t\\r\\n')) IN ({listed}))"
