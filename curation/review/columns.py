"""Columns of a table as a browser reads them fastest: typed arrays in base64, texts as a dictionary and codes."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def encode_column(column: pa.ChunkedArray | pa.Array) -> dict[str, Any] | None:
    """JSON of one column; None for columns that no reader looks at (embeddings, hashes, byte offsets).

    Numbers: {"kind": "f4" | "f8" | "i1" | "i2" | "i4", "data": base64 of the little-endian array}, NULL as NaN. A NaN,
    which DuckDB takes to be larger than any number, becomes infinity.
    Texts: {"kind": "text", "values": [...], "codes": an array as above}, NULL as code -1; lists of texts are joined
    with spaces, maps become JSON.
    """
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return encode_numbers(column)
    if pa.types.is_boolean(kind):
        return _encode_texts([None if v is None else "yes" if v else "no" for v in column.to_pylist()])
    if pa.types.is_string(kind):
        return _encode_texts(column.to_pylist())
    if pa.types.is_map(kind):
        maps = column.to_pylist()
        return _encode_texts([json.dumps(dict(m), ensure_ascii=False) if m else None for m in maps])
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return _encode_texts([None if v is None else " ".join(v) for v in column.to_pylist()])
    return None


def encode_numbers(column: pa.ChunkedArray | pa.Array) -> dict[str, Any]:
    """The smallest array that holds all values exactly."""
    is_null = np.asarray(pc.is_null(column))
    wide = np.array(pc.cast(pc.fill_null(column, 0), pa.float64(), safe=False))
    if pa.types.is_floating(column.type):
        wide = np.where(np.isnan(wide), np.inf, wide)
    elif not is_null.any():
        for name, kind in (("i1", np.int8), ("i2", np.int16), ("i4", np.int32)):
            limits = np.iinfo(kind)
            if not len(wide) or (wide.min() >= limits.min and wide.max() <= limits.max):
                return _encoded(name, wide.astype(kind))
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    values = narrow if np.array_equal(narrow.astype(np.float64), wide) else wide
    values[is_null] = np.nan
    return _encoded("f4" if values is narrow else "f8", values)


def _encode_texts(values: list[str | None]) -> dict[str, Any]:
    names = sorted({v for v in values if v is not None})
    code = {name: k for k, name in enumerate(names)} | {None: -1}
    codes = np.array([code[v] for v in values], np.int32)
    return {"kind": "text", "values": names, "codes": encode_numbers(pa.array(codes))}


def _encoded(kind: str, values: np.ndarray) -> dict[str, Any]:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return {"kind": kind, "data": base64.b64encode(little.tobytes()).decode()}
