"""The samples of a clip as WebDataset wants them: members of a tar whose bytes depend on nothing but their content."""

from __future__ import annotations

import json
import tarfile
from typing import Any, BinaryIO

import orjson

BLOCK_BYTES = tarfile.BLOCKSIZE
_NAME_BYTES, _SIZE, _CHECKSUM = tarfile.LENGTH_NAME, slice(124, 135), slice(148, 154)  # of a header


def _header_template() -> bytes:
    """A member's header without name and size, its checksum blank: spaces, which count in the sum."""
    info = tarfile.TarInfo("")
    info.mode = 0o644
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[_SIZE] = bytes(11)
    header[148:156] = b" " * 8
    return bytes(header)


_HEADER = _header_template()
_HEADER_SUM = sum(_HEADER)


def sample_key(clip_id: str, frame: int) -> str:
    """Key of one frame; no dot in it, because WebDataset splits names at the first one."""
    return f"{clip_id}_{frame:06d}"


def encode_label(label: dict[str, Any]) -> bytes:
    """JSON with sorted keys, no spaces and nothing but ASCII. Floats as Python writes them, without exponents."""
    data = orjson.dumps(label, option=orjson.OPT_SORT_KEYS)
    return data if data.isascii() else json.dumps(label, sort_keys=True, separators=(",", ":")).encode()


def member_bytes(size: int) -> int:
    """What a member with `size` bytes of data takes in a tar: one header block and the data in full blocks."""
    return BLOCK_BYTES + -(-size // BLOCK_BYTES) * BLOCK_BYTES


class SampleWriter:
    """Appends samples to an uncompressed tar: ustar, mtime 0, no owner, mode 0644."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one member; returns the byte offset of its data."""
        offset = self._offset + BLOCK_BYTES
        self._file.write(_header(name, len(data)))
        self._file.write(data)
        self._file.write(b"\0" * (-len(data) % BLOCK_BYTES))
        self._offset += member_bytes(len(data))
        return offset

    def finish(self) -> int:
        """Write the end of the archive; returns its size in bytes."""
        self._file.write(b"\0" * (2 * BLOCK_BYTES))
        return self._offset + 2 * BLOCK_BYTES


def _header(name: str, size: int) -> bytes:
    """What `tarfile` writes before a member, in a tenth of its time: there are two members a frame."""
    name_bytes, size_bytes = name.encode(), b"%011o" % size
    assert max(len(name_bytes) - _NAME_BYTES, len(size_bytes) - 11) <= 0, f"{name}, {size} bytes"
    header = bytearray(_HEADER)
    header[: len(name_bytes)] = name_bytes
    header[_SIZE] = size_bytes
    header[_CHECKSUM] = b"%06o" % (_HEADER_SUM + sum(name_bytes) + sum(size_bytes))
    header[_CHECKSUM.stop] = 0
    return bytes(header)


def read_members(data: bytes) -> dict[str, bytes]:
    """Name -> data of all members of a small tar that `SampleWriter` wrote."""
    members = {}
    at = 0
    while name := data[at : at + _NAME_BYTES].rstrip(b"\0"):
        size = int(data[at : at + BLOCK_BYTES][_SIZE], 8)
        members[name.decode()] = data[at + BLOCK_BYTES : at + BLOCK_BYTES + size]
        at += member_bytes(size)
    return members
