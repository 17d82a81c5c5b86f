"""Tars written byte for byte, read by the standard library."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

from curation.samples import SampleWriter, encode_label, member_bytes, read_members, sample_key

SIZES = (0, 1, 511, 512, 513, 1024, 70_001)


def write(members: dict[str, bytes]) -> tuple[bytes, dict[str, int], int]:
    file = io.BytesIO()
    writer = SampleWriter(file)
    offsets = {name: writer.add(name, data) for name, data in members.items()}
    return file.getvalue(), offsets, writer.finish()


@pytest.fixture
def members() -> dict[str, bytes]:
    chance = np.random.default_rng(0)
    return {f"clip_{size:06d}.jpg": chance.integers(0, 256, size, np.uint8).tobytes() for size in SIZES}


def test_tarfile_reads_it_back(members):
    file = io.BytesIO()
    writer = SampleWriter(file)
    offsets = {name: writer.add(name, data) for name, data in members.items()}
    size = writer.finish()
    content = file.getvalue()
    assert len(content) == size
    assert size == sum(member_bytes(len(data)) for data in members.values()) + 1024
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        found = archive.getmembers()
        assert [m.name for m in found] == list(members)
        for member in found:
            assert archive.extractfile(member).read() == members[member.name]
            assert member.offset_data == offsets[member.name]
            assert content[offsets[member.name] :][: member.size] == members[member.name]
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")
    assert read_members(content) == members


def test_bytes_depend_on_the_content_only(members):
    assert write(members) == write(dict(members))


def test_keys_split_at_the_first_dot():
    """WebDataset takes what follows the first dot for the type."""
    assert sample_key("0123456789abcdef_0000012_0", 7) == "0123456789abcdef_0000012_0_000007"
    assert "." not in sample_key("0123456789abcdef_0000012_0", 123456)


def test_labels_are_canonical():
    assert encode_label({"b": 1.5, "a": [1, None]}) == b'{"a":[1,null],"b":1.5}'
    assert json.loads(encode_label({"pts": 2**40})) == {"pts": 2**40}
    assert encode_label({"presence": float("nan")}) == b'{"presence":null}'
