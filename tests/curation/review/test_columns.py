"""Columns as the browser reads them, decoded here again."""

from __future__ import annotations

import base64
import json

import numpy as np
import pyarrow as pa
import pytest

from curation.review.columns import encode_column

DTYPES = {"f4": "<f4", "f8": "<f8", "i1": "<i1", "i2": "<i2", "i4": "<i4"}


def _decode(column: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(column["data"]), DTYPES[column["kind"]])


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ([1, 2, -3], pa.int64(), "i1"),
        ([1, 300], pa.int64(), "i2"),
        ([1, 70_000], pa.int32(), "i4"),
        ([1, None], pa.int32(), "f4"),
        ([2**40 + 1, None], pa.int64(), "f8"),
        ([2**40 + 1, 3], pa.int64(), "f8"),
        ([0.055, None], pa.float32(), "f4"),
        ([0.5, 2.25], pa.float64(), "f4"),
        ([0.1, None], pa.float64(), "f8"),
        ([], pa.float32(), "f4"),
    ],
)
def test_numbers_keep_every_bit_in_the_smallest_array(values: list, kind: pa.DataType, stored: str) -> None:
    column = encode_column(pa.array(values, kind))
    assert column["kind"] == stored
    expected = [np.nan if v is None else v for v in pa.array(values, kind).to_pylist()]
    np.testing.assert_array_equal(_decode(column).astype(np.float64), np.array(expected, np.float64))


def test_a_measured_nan_is_not_taken_for_an_unknown_value() -> None:
    assert _decode(encode_column(pa.array([float("nan"), None, 1.0], pa.float32()))).tolist()[0] == np.inf
    assert np.isnan(_decode(encode_column(pa.array([float("nan"), None, 1.0], pa.float32())))[1])


def test_texts_lists_and_maps_are_coded() -> None:
    column = encode_column(pa.array(["b", None, "a", "b"]))
    assert column["values"] == ["a", "b"]
    assert _decode(column["codes"]).tolist() == [1, -1, 0, 1]
    column = encode_column(pa.array([["x", "y"], [], None], pa.list_(pa.string())))
    assert [column["values"][c] if c >= 0 else None for c in _decode(column["codes"])] == ["x y", "", None]
    column = encode_column(pa.array([[("k", "é")], []], pa.map_(pa.string(), pa.string())))
    assert [json.loads(column["values"][c]) if c >= 0 else None for c in _decode(column["codes"])] == [{"k": "é"}, None]


def test_columns_that_nobody_looks_at_stay_away() -> None:
    assert encode_column(pa.array([[1.0, 2.0]], pa.list_(pa.float32()))) is None
