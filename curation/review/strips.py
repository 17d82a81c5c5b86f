"""Strips: a few frames of each clip side by side in one small JPEG, for the page to show and to play."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from curation.pack import staged_clips
from curation.places import SourceGone, of_unit, opened_source
from curation.recipe import Recipe
from curation.samples import read_members, sample_key
from manifests.storage import Place, read_bytes, read_ranges
from manifests.store import Dataset, iterate_rows, write_bytes_atomically
from manifests.views import connect, num_cores
from model.framing import FixedCrop, warp
from model.stills import read_still
from model.video import open_video

STRIPS_FOLDER = "strips"
NUM_FRAMES, SIDE_PX = 10, 144
_VERSION, _QUALITY = 2, 74
_CHUNK_CLIPS = 2000


@dataclass(frozen=True, slots=True)
class Strip:
    """The pictures of one clip, or why there are none."""

    name: str = ""
    """File name below strips/; a hash, because names outlive the clips that they would name."""
    num_frames: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Work:
    clip: dict[str, Any]
    origin: str  # shard | staged | source
    path: Place | None  # of a shard or of staged pictures
    source: dict[str, Any]


def make_strips(
    dataset: Dataset,
    clips: pa.Table,
    recipe: Recipe,
    folder: Path,
    *,
    read_sources: bool,
    progress: Callable[[int, int], None] | None = None,
) -> list[Strip]:
    """The strip of each row of `clips`, made where it is not in `folder` yet.

    Packed clips come from their shards, others from staging, or else from their sources.
    """
    staged = staged_clips(dataset.staging / f"crop-{recipe.stage_hash('crop')}")
    sources = {
        row["source_id"]: {"content_sha256": row["content_sha256"], "places": of_unit(row)}
        for row in iterate_rows(dataset, "sources")
    }
    places = _read_places(dataset, clips)
    total, done = len(clips), 0
    strips: list[Strip] = []
    with ThreadPoolExecutor(num_cores()) as pool:  # decoders and encoders release the interpreter's lock
        for start in range(0, total, _CHUNK_CLIPS):
            rows = clips.slice(start, _CHUNK_CLIPS).to_pylist()
            works = [
                _plan(
                    dataset,
                    row | places.get(row["clip_id"], {}),
                    staged,
                    sources.get(row["source_id"], {}),
                    read_sources,
                )
                for row in rows
            ]
            for strip in pool.map(lambda work: _make_strip(work, recipe, folder / STRIPS_FOLDER), works):
                strips.append(strip)
                done += 1
                if progress:
                    progress(done, total)
    return strips


def remove_strips_except(folder: Path, names: set[str]) -> None:
    """Remove the strips of other clips, and what killed builds left."""
    for path in folder.glob("*") if folder.is_dir() else ():
        is_ours = re.fullmatch(r"[0-9a-f]{16}\.jpg|\.[0-9a-f]{16}\.jpg\..*\.tmp", path.name)
        if is_ours and path.name not in names:
            path.unlink()
    for path in folder.parent.glob(".index.html.*.tmp"):
        path.unlink()


def _read_places(dataset: Dataset, clips: pa.Table) -> dict[str, dict[str, Any]]:
    """Byte offsets and sizes of the frames that the strips of the packed ones of `clips` are made of."""
    db = connect(dataset.root)
    db.register("shown", clips.select(["clip_id"]))
    last = NUM_FRAMES - 1
    spread = f"""CASE WHEN len(frame_offsets) <= {NUM_FRAMES} THEN range(1, len(frame_offsets) + 1)
                 ELSE [(k * (len(frame_offsets) - 1)) // {last} + 1 for k in range({NUM_FRAMES})] END"""
    rows = db.execute(
        f"""SELECT clip_id, list_select(frame_offsets, {spread}), list_select(frame_sizes, {spread})
            FROM clips SEMI JOIN shown USING (clip_id) WHERE shard IS NOT NULL AND len(frame_offsets) > 0"""
    ).fetchall()
    return {clip_id: {"offsets": offsets, "sizes": sizes} for clip_id, offsets, sizes in rows}


def _plan(
    dataset: Dataset, clip: dict[str, Any], staged: dict[str, Place], source: dict[str, Any], read_sources: bool
) -> _Work | Strip:
    if clip.get("offsets"):
        return _Work(clip, "shard", dataset.shards / clip["shard"], source)
    if clip["clip_id"] in staged:
        return _Work(clip, "staged", staged[clip["clip_id"]], source)
    if not read_sources:
        return Strip(problem="not packed and not staged any more; build the page with its sources to see it")
    if not source.get("places"):
        return Strip(problem="its source is not listed any more")
    return _Work(clip, "source", None, source)


def _make_strip(work: _Work | Strip, recipe: Recipe, folder: Path) -> Strip:
    if isinstance(work, Strip):
        return work
    made_of = [_VERSION, work.clip["clip_id"], recipe.stage_hash("crop"), work.origin == "source"]
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16] + ".jpg"
    path = folder / name
    if path.is_file():
        height, width = simplejpeg.decode_jpeg_header(path.read_bytes())[:2]
        return Strip(name, width // height)
    try:
        frames = {"shard": _packed_frames, "staged": _staged_frames, "source": _source_frames}[work.origin](work)
    except SourceGone:
        return Strip(problem="the source is gone, or another file is in its place")
    except Exception as error:  # file systems of every kind raise what they like, and a page lives without a picture
        what = {"shard": "shard", "staged": "staged pictures", "source": "source"}[work.origin]
        return Strip(problem=f"the {what} cannot be read: {type(error).__name__}")
    if not frames:
        return Strip(problem="the source has no pictures at its time any more")
    write_bytes_atomically(path, join_frames(frames))
    return Strip(name, len(frames))


def join_frames(frames: Iterable[np.ndarray]) -> bytes:
    """One JPEG of square RGB pictures uint8 [H, W, 3] of any size, side by side."""
    small = [cv2.resize(frame, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA) for frame in frames]
    strip = np.ascontiguousarray(np.concatenate(small, axis=1))
    return simplejpeg.encode_jpeg(strip, quality=_QUALITY, colorspace="RGB", colorsubsampling="420")


def _packed_frames(work: _Work) -> list[np.ndarray]:
    places = zip(work.clip["offsets"], work.clip["sizes"], strict=True)
    return [_decode(jpeg) for jpeg in read_ranges(work.path, [(start, start + size) for start, size in places])]


def _staged_frames(work: _Work) -> list[np.ndarray]:
    members = read_members(read_bytes(work.path))
    return [_decode(members[f"{sample_key(work.clip['clip_id'], k)}.jpg"]) for k in _spread(len(members) // 2)]


def _decode(jpeg: bytes) -> np.ndarray:
    """The picture, already reduced by the decoder, which is several times faster."""
    return simplejpeg.decode_jpeg(jpeg, min_height=SIDE_PX, min_width=SIDE_PX, min_factor=1.0)


def _source_frames(work: _Work) -> list[np.ndarray]:
    clip = work.clip
    crop = FixedCrop(
        center_x_px=clip["crop_center_x_px"],
        center_y_px=clip["crop_center_y_px"],
        size_px=clip["crop_size_px"],
        output_size_px=SIDE_PX,
    )
    with opened_source(work.source) as path:
        if clip["kind"] == "still":
            return [warp(read_still(path), crop.matrix, SIDE_PX)]
        wanted = {clip["start_frame"] + k for k in _spread(clip["end_frame"] - clip["start_frame"])}
        with open_video(path) as video:  # PyAV whatever the recipe says: the same pictures, and threads are safe
            frames = video.frames(start_pts=clip["start_pts"], end_pts=clip["end_pts"], first_index=clip["start_frame"])
            return [warp(f.rgb(), crop.matrix, SIDE_PX) for f in frames if f.index in wanted]


def _spread(count: int) -> list[int]:
    """At most NUM_FRAMES indices, evenly over `count` frames."""
    if count <= NUM_FRAMES:
        return list(range(count))
    return [k * (count - 1) // (NUM_FRAMES - 1) for k in range(NUM_FRAMES)]
