"""A reader for pickles from elsewhere that can build numbers, text, plain containers and NumPy arrays, and run nothing.

A pickle is a program: it may name any function and call it. Here names resolve to the few in `_NAMES` only, our own
stand-ins and plain containers; everything else ends the reading with `UnsafePickleError`.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

MAX_FILE_BYTES = 1 << 30
MAX_GROWTH = 64
"""How many times its size a pickle may unfold to, and a mebibyte more: it can name one object many times over."""


class UnsafePickleError(ValueError):
    """The pickle is damaged, or wants to build something that is neither an array nor a plain container."""


class _Dtype:
    """Stands in for numpy.dtype: booleans and numbers only."""

    def __init__(self, code: Any = "", align: Any = False, copy: Any = True) -> None:
        try:
            self.dtype = np.dtype(code if isinstance(code, str) else "")
        except TypeError as error:
            raise UnsafePickleError("unknown number type") from error
        if self.dtype.kind not in "biuf":
            raise UnsafePickleError(f"arrays of {self.dtype} are refused: only numbers are read")

    def __setstate__(self, state: Any) -> None:
        byte_order = state[1]
        if byte_order not in ("<", ">", "|", "="):
            raise UnsafePickleError("unknown byte order")
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
        content = path.read_bytes()
        _check_growth(content)
        return _Plain(_limit(content)).value(_Unpickler(io.BytesIO(content)).load())
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path} is refused: {error}") from None
    except (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise UnsafePickleError(f"{path} is not a readable pickle ({type(error).__name__}: {error})") from error
    except (RecursionError, pickle.UnpicklingError) as error:
        raise UnsafePickleError(f"{path} is not a readable pickle ({error})") from error


def _limit(content: bytes) -> int:
    return MAX_GROWTH * len(content) + (1 << 20)


def _check_growth(content: bytes) -> None:
    """UnsafePickleError where a few bytes would keep the reader busy or fill the memory; nothing is built for that.

    Follows the stack of the reader with the bytes that each object would take if nothing were shared. What is put into
    containers and given to functions, in all, is limited: so are the hashes and copies that the reader makes of it.
    """
    stack: list[list[int]] = []
    marks: list[int] = []
    memo: dict[int, list[int]] = {}
    num_left = _limit(content)
    for operation, argument, _ in pickletools.genops(content):
        name = operation.name
        if name == "MARK":
            marks.append(len(stack))
        elif name == "POP":
            (marks if marks and marks[-1] == len(stack) else stack).pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MEMOIZE" or name.endswith("PUT"):
            number = len(memo) if argument is None else argument
            if number > len(content):
                raise UnsafePickleError(f"it numbers its objects up to {number}, which would fill the memory")
            memo[number] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        else:
            parts = _take(stack, marks, operation.stack_before)
            if name in _CHANGES:
                changed = parts.pop(0)
            else:
                changed = (_Named if name in ("GLOBAL", "STACK_GLOBAL") else list)([_num_bytes(argument)])
            if name == "BUILD" and isinstance(changed, _Named):
                raise UnsafePickleError("it changes what it names")  # which would last for the files read after it
            size = sum(part[0] for part in parts)
            num_left -= size
            if num_left < 0:
                raise UnsafePickleError(_TOO_MUCH)
            changed[0] += size
            if operation.stack_after:
                stack.append(changed)


class _Named(list):
    """The bytes of a function or class."""


_CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_TOO_MUCH = "it unfolds to far more than its size"


def _take(stack: list[list[int]], marks: list[int], before: list[pickletools.StackObject]) -> list[list[int]]:
    """What an operation takes from the stack: some objects, or all after the last mark with some before it."""
    if pickletools.markobject in before:
        start = marks.pop() - before.index(pickletools.markobject)
    else:
        start = len(stack) - len(before)
    if start < (marks[-1] if marks else 0):
        raise UnsafePickleError("it takes more than there is")
    parts = stack[start:]
    del stack[start:]
    return parts


def _num_bytes(argument: Any) -> int:
    if isinstance(argument, str | bytes | bytearray):
        return 1 + len(argument)
    return 1 + (argument.bit_length() // 8 if isinstance(argument, int) else 0)


class _Plain:
    """Replaces stand-ins by what they stand for; at most `limit` bytes and values, each counted wherever it is used."""

    def __init__(self, limit: int) -> None:
        self._num_left = limit

    def value(self, value: Any, depth: int = 0) -> Any:
        if depth > 20:
            raise UnsafePickleError("nested too deeply")
        self._num_left -= value.values.nbytes if isinstance(value, _Array) and value.values is not None else 1
        if self._num_left < 0:
            raise UnsafePickleError(_TOO_MUCH)
        if isinstance(value, _Array):
            if value.values is None:
                raise UnsafePickleError("an array without bytes")
            return value.values
        if isinstance(value, dict):
            return {key: self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.value(item, depth + 1) for item in value)
        if value is None or isinstance(value, bool | int | float | str | bytes | set | frozenset):
            return value
        raise UnsafePickleError(f"a {type(value).__name__.lstrip('_')} where a value should be")
