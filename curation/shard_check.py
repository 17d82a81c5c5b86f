"""One shard against what the manifests say of it: its hash, every member, every label. Reads the whole file."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any

import simplejpeg

from curation.samples import BLOCK_BYTES, END_BYTES, member_bytes, sample_key
from curation.shard_plan import OF_CLIPS
from manifests.storage import Place, local_file

_ROUNDING = 6e-5  # labels hold four decimals
_MOST = 5


def check_shard(path: Place, row: dict[str, Any], clips: list[dict[str, Any]], size_px: int) -> list[str]:
    """What is wrong with one shard, in plain words; at most a few of each kind.

    row: of `shards`. clips: rows of `clips` that are in it, each with `sums`, the sums of its columns in `frames`.
    """
    if not path.is_file():
        return ["the file is missing"]
    with local_file(path) as file:
        return _check_file(file, row, clips, size_px)


def _check_file(path: Path, row: dict[str, Any], clips: list[dict[str, Any]], size_px: int) -> list[str]:
    size = path.stat().st_size
    if not size:
        return [f"the file is empty, expected {row['size_bytes']} bytes"]
    problems = [] if size == row["size_bytes"] else [f"the file has {size} bytes, expected {row['size_bytes']}"]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        digest = hashlib.sha256(data).hexdigest()
        if digest != row["sha256"]:
            problems.append(f"its SHA-256 is {digest}, expected {row['sha256']}")
        found = _check_members(data, row, clips, size_px)
    problems += found[:_MOST]
    if len(found) > _MOST:
        problems.append(f"and {len(found) - _MOST} more differences inside")
    return problems


def _check_members(data: mmap.mmap, row: dict[str, Any], clips: list[dict[str, Any]], size_px: int) -> list[str]:
    """Members must follow each other without a gap, so that nothing else can be in the shard."""
    problems: list[str] = []
    position = 0
    for clip in sorted(clips, key=lambda c: c["frame_offsets"][0] if c["frame_offsets"] else -1):
        places = [clip[name] or [] for name in ("frame_offsets", "frame_sizes", "label_offsets", "label_sizes")]
        if {len(p) for p in places} != {clip["num_frames"]}:
            problems.append(f"{clip['clip_id']}: {[len(p) for p in places]} places for {clip['num_frames']} frames")
            continue
        sums: dict[str, float] = {}
        for frame, (jpeg_offset, jpeg_size, label_offset, label_size) in enumerate(zip(*places, strict=True)):
            key = sample_key(clip["clip_id"], frame)
            jpeg = _member(data, position, f"{key}.jpg", jpeg_offset, jpeg_size, problems)
            position += member_bytes(jpeg_size)
            label = _member(data, position, f"{key}.json", label_offset, label_size, problems)
            position += member_bytes(label_size)
            if jpeg is not None:
                _check_picture(key, jpeg, size_px, problems)
            if label is not None:
                _check_label(key, label, frame, clip, row["split"], sums, problems)
        _check_sums(clip, sums, problems)
        if len(problems) > 50:  # nothing fits any more; the rest would say the same
            return problems
    if position + END_BYTES != len(data) or any(data[position : position + END_BYTES]):
        problems.append(f"its members end at byte {position}, the file after {len(data)}: something else is in it")
    return problems


def _member(data: mmap.mmap, position: int, name: str, offset: int, size: int, problems: list[str]) -> bytes | None:
    """The data of the member at `position`, if it is `name` with this place and size."""
    header = data[position : position + BLOCK_BYTES]
    found = header[:100].rstrip(b"\0").decode(errors="replace")
    try:
        found_size = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        found_size = -1
    if (found, found_size, position + BLOCK_BYTES) == (name, size, offset):
        return data[offset : offset + size]
    problems.append(
        f"byte {position}: member {found!r} with {found_size} bytes, expected {name!r} with {size} bytes of data at"
        f" {offset}"
    )
    return None


def _check_picture(key: str, jpeg: bytes, size_px: int, problems: list[str]) -> None:
    try:
        height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
    except ValueError as error:
        problems.append(f"{key}.jpg is no JPEG: {error}")
        return
    if (height, width) != (size_px, size_px) or jpeg[-2:] != b"\xff\xd9":
        problems.append(f"{key}.jpg is {width} x {height} px or cut off, expected {size_px} x {size_px}")


def _check_label(
    key: str, data: bytes, frame: int, clip: dict[str, Any], split: str, sums: dict[str, float], problems: list[str]
) -> None:
    try:
        label = json.loads(data)
    except ValueError as error:
        problems.append(f"{key}.json is no JSON: {error}")
        return
    expected = {"clip_id": clip["clip_id"], "frame": frame, "split": split, "identity": clip["identity_id"]}
    expected |= {name: clip[name] for name in OF_CLIPS[2:]}
    wrong = [f"{n} is {label.get(n)!r}, expected {v!r}" for n, v in expected.items() if label.get(n) != v]
    if len(label.get("landmarks") or ()) != 68:
        wrong.append("it has no 68 landmarks")
    if wrong:
        problems.append(f"{key}.json: {'; '.join(wrong)}")
    for name in clip["sums"]:
        sums[name] = sums.get(name, 0.0) + (label.get(name) or 0.0)


def _check_sums(clip: dict[str, Any], sums: dict[str, float], problems: list[str]) -> None:
    """Labels and rows of `frames` come from the same measurement."""
    for name, in_table in clip["sums"].items():
        in_labels = sums.get(name, 0.0)
        if abs(in_labels - (in_table or 0.0)) > _ROUNDING * clip["num_frames"] + 1e-6 * abs(in_labels):
            problems.append(
                f"{clip['clip_id']}: {name} is {(in_table or 0.0) / clip['num_frames']:.4f} on average in the table"
                f" frames, {in_labels / clip['num_frames']:.4f} in the labels"
            )
            return
