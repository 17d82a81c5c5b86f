"""Source lists: CSV and Parquet files that name files and say whose they are. What cannot be told for sure is an error:
a licence in the wrong column would pass unseen.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.places import STATED

_MEANT = ("uri", "license", *STATED)


def read_source_list(text: str, filesystem: Any, path: str) -> list[tuple[str, dict[str, str] | None]]:
    """Of each row its URI, with the folder of the list where it is relative, and what its other cells say; None where
    the list has no other column.

    text: the list as it was named. Names of columns and cells are without blanks around them; empty cells, and NaN in
    a Parquet file, say nothing; `license` is `licence`.

    Raises:
        ValueError: the list cannot be read, has no column `uri` or two of one meaning; or a row has no URI, more cells
            than there are columns, or two different licences.
    """
    header, rows = _read(text, filesystem, path)
    names = _names_of_columns(text, header)
    if not rows or "uri" not in names.values():
        raise ValueError(f"{text} is no source list: expected a column 'uri', got {header if rows else 'no rows'}")
    says_anything = any(name not in ("", "uri") for name in names.values())
    folder = text.rsplit("/", 1)[0] if "/" in text else "."
    listed: list[tuple[str, dict[str, str] | None]] = []
    for number, cells in enumerate(rows, 1):
        columns = _columns(dict(zip((names[name] for name in header), cells, strict=False)))
        if not columns:
            continue  # an empty row, as spreadsheets leave them at the end
        uri = os.path.expanduser(columns.pop("uri", ""))
        if not uri:
            raise ValueError(f"{text}: row {number} has no uri")
        if "://" not in uri and not os.path.isabs(uri):
            uri = _joined(folder, uri)
        license_ = columns.pop("license", None)
        if license_ is not None and columns.setdefault("licence", license_) != license_:
            raise ValueError(
                f"{text}: row {number} has the licence {columns['licence']!r} and the license {license_!r}; leave one"
            )
        listed.append((uri, columns if says_anything else None))
    return listed


def _read(text: str, filesystem: Any, path: str) -> tuple[list[str], list[Sequence[Any]]]:
    """The names of the columns and the cells of each row, which may be fewer."""
    lines: list[list[str]] = []
    last_read = 0
    try:
        with filesystem.open(path, "rb") as file:
            if not path.lower().endswith(".csv"):
                table = pq.read_table(file)
                return table.column_names, list(zip(*(column.to_pylist() for column in table.columns), strict=True))
            text_of_list = io.StringIO(file.read().decode("utf-8-sig"), newline="")
            reader = csv.reader(text_of_list, strict=True)  # else an open quote takes all rows after it
            for cells in reader:
                lines += [cells] if cells else []
                last_read = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{text} cannot be read as a source list after line {last_read}: {error}") from error
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise ValueError(f"{text} cannot be read as a source list: {error}") from error
    header, *rows = lines or [[]]
    num_named = max((number for number, name in enumerate(header, 1) if name.strip()), default=0)
    for number, cells in enumerate(rows, 1):
        if beyond := [cell.strip() for cell in cells[num_named:] if cell.strip()]:
            raise ValueError(
                f"{text}: row {number} has more cells than the header has names ({', '.join(map(repr, beyond))}):"
                ' put quotes around what holds a comma ("Doe, Jane")'
            )
    return header, rows


def _names_of_columns(text: str, header: list[str]) -> dict[str, str]:
    """The name of each column of a list: without blanks, those with a meaning in lower case.

    Raises:
        ValueError: two columns have the same meaning.
    """
    names = {name: name.strip() for name in header}
    names |= {name: known for name, plain in names.items() if (known := plain.lower()) in _MEANT}
    given = [names[name] for name in header]
    for known in _MEANT:
        if given.count(known) > 1:
            same = ", ".join(repr(name) for name in header if names[name] == known)
            raise ValueError(f"{text} has {given.count(known)} columns {known!r}: {same}; leave one")
    return names


def _columns(row: dict[str, Any]) -> dict[str, str]:
    """Of a row what its cells say, by the names of their columns."""
    said = {name: value for name, value in row.items() if name and value is not None and value == value}  # NaN is not
    columns = {name: str(value).strip() for name, value in said.items()}
    return {name: value for name, value in columns.items() if value}


def _joined(folder: str, name: str) -> str:
    """`name` below `folder`; in a bucket, where nothing else gives them a meaning, without `.` and `..`."""
    if "://" not in folder or not {".", ".."} & set(name.split("/")):
        return f"{folder}/{name}"
    store, _, below = folder.partition("://")
    bucket, _, key = below.partition("/")
    return f"{store}://{bucket}{posixpath.normpath(f'/{key}/{name}')}"
