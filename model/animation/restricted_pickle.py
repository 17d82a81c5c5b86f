"""A reader for pickles from elsewhere that can build numbers, text, plain containers and NumPy arrays, and run nothing.

A pickle is a program: it may name any function and call it. Here names resolve to the few in `_NAMES` only, our own
stand-ins and plain containers; everything else ends the reading with `UnsafePickleError`.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

MAX_FILE_BYTES = 1 << 30


class UnsafePickleError(ValueError):
    """The pickle is damaged, or wants to build something that is neither an array nor a plain container."""


class _Dtype:
    """Stands in for numpy.dtype: booleans and numbers only."""

    def __init__(self, code: Any = "", align: Any = False, copy: Any = True) -> None:
        try:
            self.dtype = np.dtype(str(code))
        except TypeError as error:
            raise UnsafePickleError(f"unknown number type {code!r}") from error
        if self.dtype.kind not in "biuf":
            raise UnsafePickleError(f"arrays of {code!r} are refused: only numbers are read")

    def __setstate__(self, state: Any) -> None:
        byte_order = state[1]
        if byte_order not in ("<", ">", "|", "="):
            raise UnsafePickleError(f"unknown byte order {byte_order!r}")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _ArrayType:
    """Stands in for the class numpy.ndarray, which a pickle only ever hands to `_reconstruct`."""

    def __init__(self, *_: Any) -> None:
        raise UnsafePickleError("arrays are built from their bytes only")


class _Array:
    """Stands in for an array until its bytes arrive."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise UnsafePickleError("an array without a number type")
        self.values = _from_bytes(data, dtype.dtype, shape, "F" if is_fortran else "C")


def _from_bytes(data: Any, dtype: np.dtype, shape: Any, order: str) -> np.ndarray:
    if isinstance(data, str):
        data = data.encode("latin1")  # written by Python 2
    if not isinstance(data, bytes | bytearray | memoryview) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise UnsafePickleError("an array whose bytes or shape make no sense")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise UnsafePickleError(f"an array of shape {tuple(shape)} with {len(data)} bytes of {dtype}")
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy()


def _scalar(dtype: Any, data: Any = b"") -> _Array:
    if not isinstance(dtype, _Dtype):
        raise UnsafePickleError("a number without a number type")
    array = _Array()
    array.values = _from_bytes(data, dtype.dtype, (), "C")
    return array


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _ArrayType:
        raise UnsafePickleError("an array of an unknown kind")
    return _Array()


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Protocol 5."""
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise UnsafePickleError("an array without a number type")
    array = _Array()
    array.values = _from_bytes(buffer, dtype.dtype, shape, order)
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError("text in an unexpected encoding")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocols 0 to 2 write the empty bytes."""
    return b""


_NAMES = (
    {
        ("numpy", "ndarray"): _ArrayType,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): dict,
    }
    | {
        (builtins, name): stand_in  # Python 2's protocols call these by name
        for builtins in ("builtins", "__builtin__")
        for name, stand_in in (("set", set), ("frozenset", frozenset), ("bytes", _no_bytes))
    }
    | {
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    }
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise UnsafePickleError(f"it wants to use {module}.{name}; nothing of it was run") from None

    def persistent_load(self, _: Any) -> Any:
        raise UnsafePickleError("it refers to something outside the file")


def load_restricted_pickle(path: str | Path) -> Any:
    """Numbers, text, lists, tuples, sets, dicts and NumPy arrays of a pickle; raises UnsafePickleError."""
    path = Path(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnsafePickleError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB")
    try:
        return _plain(_Unpickler(io.BytesIO(path.read_bytes())).load(), depth=0)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path} is refused: {error}") from None
    except (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise UnsafePickleError(f"{path} is not a readable pickle ({type(error).__name__}: {error})") from error
    except (RecursionError, pickle.UnpicklingError) as error:
        raise UnsafePickleError(f"{path} is not a readable pickle ({error})") from error


def _plain(value: Any, depth: int) -> Any:
    """Stand-ins replaced by what they stand for."""
    if depth > 20:
        raise UnsafePickleError("nested too deeply")
    if isinstance(value, _Array):
        if value.values is None:
            raise UnsafePickleError("an array without bytes")
        return value.values
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, depth + 1) for item in value)
    if value is None or isinstance(value, bool | int | float | str | bytes | set | frozenset):
        return value
    raise UnsafePickleError(f"a {type(value).__name__.lstrip('_')} where a value should be")
