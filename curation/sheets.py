"""Contact sheets: a strip of frames of every clip, kept and rejected apart, with what was decided and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from curation.index import local_copy
from curation.recipe import recipe_of
from curation.stills import read_still
from manifests.store import Dataset, read_table, write_bytes_atomically
from model.framing import FixedCrop, warp
from model.video import VideoError, open_video

_NUM_FRAMES, _SIDE_PX, _CLIPS_PER_SHEET = 8, 128, 12
_TEXT_PX = 34


def draw_sheets(folder: Path) -> list[Path]:
    """Write report/{kept,rejected}-NNN.jpg of a data set; returns their paths.

    Kept clips come from the shards, rejected ones from their sources again, as far as these can still be read.
    """
    dataset = Dataset(folder.expanduser())
    decoder = recipe_of(dataset.root).decoder
    sources = {row["source_id"]: row for row in read_table(dataset, "sources").to_pylist()}
    clips = read_table(dataset, "clips").to_pylist()
    written = []
    for decision in ("keep", "reject"):
        chosen = [c for c in clips if c["decision"] == decision]
        chosen.sort(key=lambda c: (sources[c["source_id"]]["uris"][0], c["start_frame"]))
        for number in range(0, len(chosen), _CLIPS_PER_SHEET):
            strips = [
                _strip(dataset, clip, sources[clip["source_id"]], decoder)
                for clip in chosen[number : number + _CLIPS_PER_SHEET]
            ]
            name = {"keep": "kept", "reject": "rejected"}[decision]
            path = dataset.report / f"{name}-{number // _CLIPS_PER_SHEET:03d}.jpg"
            sheet = np.ascontiguousarray(np.concatenate(strips))
            write_bytes_atomically(path, simplejpeg.encode_jpeg(sheet, quality=85, colorspace="RGB"))
            written.append(path)
    return written


def _strip(dataset: Dataset, clip: dict[str, Any], source: dict[str, Any], decoder: str) -> np.ndarray:
    """uint8 [_TEXT_PX + _SIDE_PX, _NUM_FRAMES * _SIDE_PX, 3]: a caption over frames spread over the clip."""
    strip = np.full((_TEXT_PX + _SIDE_PX, _NUM_FRAMES * _SIDE_PX, 3), 32, np.uint8)
    frames = _packed_frames(dataset, clip) if clip["shard"] else _source_frames(clip, source, decoder)
    for k, frame in enumerate(frames):
        small = cv2.resize(frame, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
        strip[_TEXT_PX:, k * _SIDE_PX : (k + 1) * _SIDE_PX] = small
    name = source["uris"][0].rsplit("/", 1)[-1]
    lines = (
        f"{name[:60]}  frames {clip['start_frame']}-{clip['end_frame']}  {clip['duration_s']:.1f} s"
        f"  face {clip['face_height_median_px']:.0f} px",
        f"{clip['decision']} {clip['split'] or ''} {clip['identity_id'] or ''}  {' '.join(clip['failed_rules'] or [])}",
    )
    for row, text in enumerate(lines):
        place = (4, 13 + 15 * row)
        cv2.putText(strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return strip


def _packed_frames(dataset: Dataset, clip: dict[str, Any]) -> list[np.ndarray]:
    with open(dataset.shards / clip["shard"], "rb") as file:
        return [
            simplejpeg.decode_jpeg(os.pread(file.fileno(), clip["frame_sizes"][k], clip["frame_offsets"][k]))
            for k in _spread(clip["num_frames"])
        ]


def _source_frames(clip: dict[str, Any], source: dict[str, Any], decoder: str) -> list[np.ndarray]:
    crop = FixedCrop(
        center_x_px=clip["crop_center_x_px"],
        center_y_px=clip["crop_center_y_px"],
        size_px=clip["crop_size_px"],
        output_size_px=_SIDE_PX,
    )
    try:
        with local_copy(source["uris"][0]) as path:
            if clip["kind"] == "still":
                return [warp(read_still(path), crop.matrix, _SIDE_PX)]
            wanted = {clip["start_frame"] + k for k in _spread(clip["end_frame"] - clip["start_frame"])}
            with open_video(path, decoder) as video:
                frames = video.frames(
                    start_pts=clip["start_pts"], end_pts=clip["end_pts"], first_index=clip["start_frame"]
                )
                return [warp(f.rgb(), crop.matrix, _SIDE_PX) for f in frames if f.index in wanted]
    except (VideoError, OSError):
        return []


def _spread(count: int) -> list[int]:
    """At most _NUM_FRAMES indices, evenly over `count` frames."""
    return sorted({int(k) for k in np.linspace(0, count - 1, min(count, _NUM_FRAMES))})
