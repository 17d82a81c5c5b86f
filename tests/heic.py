"""Writes HEIC files as telephones do, for which there is no writer: a grid of HEVC tiles, turned by a property."""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TILE_PX = 64
_PARAMETER_SETS = (32, 33, 34)


def write_heic(path: Path, picture: np.ndarray, quarter_turns: int = 0) -> None:
    """A picture, uint8 [H, W, 3], in tiles; shown turned counter-clockwise so many times (ISO/IEC 23008-12)."""
    height, width = picture.shape[:2]
    rows, columns = -(-height // TILE_PX), -(-width // TILE_PX)
    padded = np.pad(picture, ((0, rows * TILE_PX - height), (0, columns * TILE_PX - width), (0, 0)), mode="edge")
    squares = padded.reshape(rows, TILE_PX, columns, TILE_PX, 3).swapaxes(1, 2).reshape(-1, TILE_PX, TILE_PX, 3)
    coded = [_encode(np.ascontiguousarray(square)) for square in squares]
    grid = struct.pack(">4B2H", 0, 0, rows - 1, columns - 1, width, height)
    items = [*(data for _, data in coded), grid]
    head = b""
    for _ in range(2):  # the second time with the right offsets
        head = _head([len(item) for item in items], len(head) + 8, coded[0][0], (width, height), quarter_turns)
    path.write_bytes(head + _box(b"mdat", *items))


def _head(sizes: list[int], offset: int, configuration: bytes, shown: tuple[int, int], quarter_turns: int) -> bytes:
    """All before the data: what the items are, where they lie, and their properties. The last one is the grid."""
    count = len(sizes)
    numbers, whole = range(1, count + 1), count
    places = [struct.pack(">3H2I", n, 0, 1, offset + sum(sizes[: n - 1]), sizes[n - 1]) for n in numbers]
    entries = [
        _full_box(b"infe", 2, n != whole, struct.pack(">2H4s", n, 0, b"grid" if n == whole else b"hvc1"), b"\0")
        for n in numbers
    ]
    properties = _box(
        b"ipco",
        configuration,
        _full_box(b"ispe", 0, 0, struct.pack(">2I", TILE_PX, TILE_PX)),
        _full_box(b"ispe", 0, 0, struct.pack(">2I", *shown)),
        _box(b"irot", bytes([quarter_turns])),
    )
    uses = [struct.pack(">H3B", n, 2, *((3, 0x84) if n == whole else (0x81, 2))) for n in numbers]
    meta = _full_box(
        b"meta",
        0,
        0,
        _full_box(b"hdlr", 0, 0, struct.pack(">I4s12x", 0, b"pict"), b"\0"),
        _full_box(b"pitm", 0, 0, struct.pack(">H", whole)),
        _full_box(b"iloc", 0, 0, struct.pack(">2BH", 0x44, 0, count), *places),
        _full_box(b"iinf", 0, 0, struct.pack(">H", count), *entries),
        _full_box(b"iref", 0, 0, _box(b"dimg", struct.pack(f">{count + 1}H", whole, count - 1, *numbers[:-1]))),
        _box(b"iprp", properties, _full_box(b"ipma", 0, 0, struct.pack(">I", count), *uses)),
    )
    return _box(b"ftyp", b"heic", struct.pack(">I", 0), b"mif1heic") + meta


def _encode(tile: np.ndarray) -> tuple[bytes, bytes]:
    """The decoder's configuration box (ISO/IEC 14496-15), and the key frame."""
    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = TILE_PX, TILE_PX, "yuv420p", Fraction(1)
    encoder.options = {"crf": "8", "x265-params": "log-level=none"}
    frame = av.VideoFrame.from_ndarray(tile, format="rgb24")
    stream = b"".join(bytes(packet) for given in (frame, None) for packet in encoder.encode(given))
    units = [unit for unit in re.split(rb"\x00*\x00\x00\x01", stream) if unit]
    kinds = [unit[0] >> 1 & 63 for unit in units]
    parameter_sets = [
        struct.pack(">B2H", kind, 1, len(unit)) + unit
        for kind, unit in zip(kinds, units, strict=True)
        if kind in _PARAMETER_SETS
    ]
    main_profile = b"\1\1\x60\0\0\0\x90\0\0\0\0\0\x1e\xf0\0\xfc\xfd\xf8\xf8\0\0\x0f"
    configuration = _box(b"hvcC", main_profile, bytes([len(parameter_sets)]), *parameter_sets)
    slices = [unit for kind, unit in zip(kinds, units, strict=True) if kind < min(_PARAMETER_SETS)]
    return configuration, b"".join(struct.pack(">I", len(unit)) + unit for unit in slices)


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)
