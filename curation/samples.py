"""The samples of a clip as WebDataset wants them: members of a tar whose bytes depend on nothing but their content."""

from __future__ import annotations

import io
import tarfile
from typing import Any, BinaryIO

import orjson

BLOCK_BYTES = tarfile.BLOCKSIZE
END_BYTES = 2 * BLOCK_BYTES
"""Of zeros, at the end of an archive."""


def sample_key(clip_id: str, frame: int) -> str:
    """Key of one frame; no dot in it, because WebDataset splits names at the first one."""
    return f"{clip_id}_{frame:06d}"


def encode_label(label: dict[str, Any]) -> bytes:
    """JSON with sorted keys and no spaces; what is unknown (NaN) as null."""
    return orjson.dumps(label, option=orjson.OPT_SORT_KEYS)


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
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._offset + BLOCK_BYTES
        self._file.write(data)
        self._file.write(b"\0" * (-len(data) % BLOCK_BYTES))
        self._offset += member_bytes(len(data))
        return offset

    def finish(self) -> int:
        """Write the end of the archive; returns its size in bytes."""
        self._file.write(b"\0" * END_BYTES)
        return self._offset + END_BYTES


def read_members(data: bytes) -> dict[str, bytes]:
    """Name -> data of all members of a small tar."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]
