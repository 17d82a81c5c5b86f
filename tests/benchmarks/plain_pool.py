"""What a capable user writes without us: two processes, a file each, and the same kernels.

    python -m tests.benchmarks.plain_pool OUTPUT --workers 2 VIDEOS...

A video is decoded twice: cuts, faces on 5 frames a second, tracks by overlap; then fixed crops at 25 fps with landmarks
on every frame, into one tar a video. No manifests, no measurements, no resume, no deadline, no selection.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from curation.cuts import PICTURE_SIDE_PX, CutFinder
from curation.recipe import Recipe
from curation.samples import SampleWriter
from model.faces import Detections, load_analyser
from model.framing import fixed_crop, transform_points, warp
from model.video import open_video

RECIPE = Recipe()
MIN_OVERLAP = 0.3
MAX_GAP_S = 0.65
_analyser = None


@dataclass(slots=True)
class Track:
    """A face followed through a shot."""

    shot: int
    width_px: int
    height_px: int
    boxes: list[np.ndarray] = field(default_factory=list)
    landmarks: list[np.ndarray] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    embedded_s: float = -9.0


def start_worker() -> None:
    """Load the networks, once a process."""
    global _analyser
    cv2.setNumThreads(1)
    _analyser = load_analyser(RECIPE.faces)


def curate(job: tuple[str, str]) -> int:
    """One video into one tar; returns the number of frames."""
    path, output = job
    tracks = [t for t in find_tracks(path) if t.times_s[-1] - t.times_s[0] >= RECIPE.scan.min_clip_s]
    return write_crops(path, tracks, Path(output)) if tracks else 0


def find_tracks(path: str) -> list[Track]:
    """First pass: cuts on every frame, faces on some."""
    done, live = [], []
    next_s = -1.0
    with open_video(path) as video:
        finder = CutFinder(RECIPE.scan, 25.0)
        for frame in video:
            finder.add(frame.sketch(PICTURE_SIDE_PX))
            if frame.pts_s < next_s:
                continue
            next_s = frame.pts_s + 1 / RECIPE.scan.sample_fps
            picture, small = frame.rgb(), frame.small(RECIPE.faces.detection_size_px)
            faces = _analyser.detect([small])[0]
            scale = max(1.0, max(picture.shape[:2]) / RECIPE.faces.detection_size_px)
            faces.boxes *= scale
            faces.points *= scale
            faces = faces[faces.boxes[:, 3] - faces.boxes[:, 1] >= RECIPE.scan.min_track_face_px]
            shot = len(finder.cuts)
            done += [t for t in live if t.shot != shot or frame.pts_s - t.times_s[-1] > MAX_GAP_S]
            live = [t for t in live if t.shot == shot and frame.pts_s - t.times_s[-1] <= MAX_GAP_S]
            if not len(faces):
                continue
            found = _analyser.landmarks(picture, faces)
            for k, box in enumerate(faces.boxes):
                near = max(live, key=lambda t: overlap(t.boxes[-1], box), default=None)
                if near is None or overlap(near.boxes[-1], box) < MIN_OVERLAP:
                    near = Track(shot, picture.shape[1], picture.shape[0])
                    live.append(near)
                near.boxes.append(box)
                near.landmarks.append(found.points68[k])
                near.times_s.append(frame.pts_s)
                if frame.pts_s - near.embedded_s >= RECIPE.scan.embed_every_s:
                    _analyser.embed(picture, found.points5[k : k + 1])
                    near.embedded_s = frame.pts_s
    return done + live


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes [4]."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = np.prod(np.maximum(sides, 0))
    return float(common / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - common))


def write_crops(path: str, tracks: list[Track], output: Path) -> int:
    """Second pass: a fixed crop of each track, at 25 fps, with landmarks."""
    crops, last, next_s, num = [], [], [t.times_s[0] for t in tracks], 0
    for track in tracks:
        crops.append(fixed_crop(np.stack(track.landmarks), width_px=track.width_px, height_px=track.height_px))
        last.append(transform_points(track.landmarks[0].astype(np.float64), crops[-1].matrix))
    with open(output, "wb") as file, open_video(path) as video:
        writer = SampleWriter(file)
        for frame in video:
            for k, track in enumerate(tracks):
                while next_s[k] <= frame.pts_s <= track.times_s[-1]:
                    next_s[k] += 1 / RECIPE.crop.fps
                    crop = warp(frame.rgb(), crops[k].matrix, 512)
                    face = _analyser.landmarks(crop, Detections.from_points68(last[k][None]))
                    last[k] = face.points68[0]
                    jpeg = simplejpeg.encode_jpeg(crop, quality=95, colorspace="RGB", colorsubsampling="420")
                    label = {"landmarks": last[k].round(2).tolist(), "pose_deg": face.pose_deg[0].tolist()}
                    writer.add(f"{k}_{num:06d}.jpg", jpeg)
                    writer.add(f"{k}_{num:06d}.json", json.dumps(label).encode())
                    num += 1
        writer.finish()
    return num


def main() -> None:
    """Spread the files over the processes, the largest first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    videos = sorted(options.videos, key=lambda p: -Path(p).stat().st_size)
    jobs = [(video, str(options.output / f"{k:04d}.tar")) for k, video in enumerate(videos)]
    with multiprocessing.get_context("spawn").Pool(options.workers, start_worker) as pool:
        print(sum(pool.imap_unordered(curate, jobs)), "frames")


if __name__ == "__main__":
    main()
