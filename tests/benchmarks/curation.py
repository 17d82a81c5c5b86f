"""Whole curation runs against the sum of their bare kernels, on the same files in the same call.

    python -m tests.benchmarks.curation VIDEOS... [--long-minutes 20] [--workers 1 2]

Prints CPU-seconds and wall seconds of whole runs (every process of Ray counted; start-up apart: the median of three
runs on a few small stills, so that all workers start, after one that does not count), CPU-seconds of the kernels alone
(decode, convert, detect, landmarks, embed, warp, encode, write), the peak memory of a worker, and the ratios, `nan`
where the videos are too short to tell from start-up. A benchmark, not a test: these figures depend on what else the
machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import simplejpeg
import skimage.data

from curation.recipe import load_recipe
from curation.samples import SampleWriter
from manifests.store import Dataset, read_table
from model.faces import load_analyser
from model.framing import FixedCrop, transform_points, warp
from model.video import open_video

ROOT = Path(__file__).resolve().parents[2]
_STILLS = 12
_STARTUPS = 3


@dataclass(slots=True)
class Measured:
    """One whole run."""

    wall_s: float
    cpu_s: float
    stage_s: float
    worker_mb: float


def whole_run(inputs: list[str], output: Path, workers: int) -> Measured:
    """Run the command in a process of its own and add up the CPU time of everything below it."""
    command = [sys.executable, "-m", "curation", "run", *inputs, "--output", str(output), "--workers", str(workers)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    root = psutil.Process(process.pid)
    cpu: dict[tuple[int, float], float] = {}
    worker_mb = 0.0
    while process.poll() is None:
        for child in [root, *_descendants(root)]:
            try:
                times = child.cpu_times()
                cpu[child.pid, child.create_time()] = times.user + times.system
                if "curation.sandbox" in " ".join(child.cmdline()):
                    worker_mb = max(worker_mb, child.memory_info().rss / 1e6)
            except psutil.Error:
                continue
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    stage_s = sum(json.loads(line)["seconds"] for line in (output / "metrics.jsonl").read_text().splitlines())
    return Measured(time.perf_counter() - start, sum(cpu.values()), stage_s, worker_mb)


def write_stills(folder: Path) -> list[str]:
    """Small pictures of a face, which go through all stages, enough that every worker gets some."""
    stills = [folder / f"still-{k}.png" for k in range(_STILLS)]
    for k, still in enumerate(stills):
        cv2.imwrite(str(still), cv2.cvtColor(skimage.data.astronaut()[k:], cv2.COLOR_RGB2BGR))
    return [str(still) for still in stills]


def startup_of(workers: int, stills: list[str], folder: Path) -> tuple[float, float]:
    """Wall and CPU-seconds of a run on next to nothing: medians."""
    runs = [whole_run(stills, folder / f"startup-{workers}-{k}", workers) for k in range(_STARTUPS)]
    return statistics.median(run.wall_s for run in runs), statistics.median(run.cpu_s for run in runs)


def ratio(one: float, other: float) -> float:
    """NaN where one of them is not positive: start-up was longer than a whole run, the videos are too short to tell."""
    return one / other if one > 0 and other > 0 else math.nan


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


class Kernels:
    """CPU-seconds and calls by kernel, in this process on one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start
        self.calls[name] += 1


def bare_kernels(dataset: Dataset, share: int = 0, num_shares: int = 1) -> Kernels:
    """The kernels with the inputs that the run gave them: each video decoded once, faces on sampled frames, every
    frame of every candidate cropped at the target rate; only these frames are converted to RGB. Of the videos, by
    length, every `num_shares`-th."""
    recipe = load_recipe("default")
    analyser = load_analyser(recipe.faces)
    kernels = Kernels()
    tracks = defaultdict(list)
    for row in read_table(dataset, "tracks").to_pylist():
        tracks[row["source_id"]] += row["candidates"]
    sources = [s for s in read_table(dataset, "sources").to_pylist() if s["status"] == "ok" and s["kind"] == "video"]
    for source in sorted(sources, key=lambda s: -(s["duration_s"] or 0.0))[share::num_shares]:
        _bare_video(source["uris"][0], tracks[source["source_id"]], recipe, analyser, kernels)
    return kernels


def _bare_video(path: str, candidates: list[dict], recipe, analyser, kernels: Kernels) -> None:
    clips = [
        {
            "crop": FixedCrop(
                center_x_px=c["crop_center_x_px"], center_y_px=c["crop_center_y_px"], size_px=c["crop_size_px"]
            ),
            "next_s": c["start_s"],
            **c,
        }
        for c in candidates
    ]
    next_sample_s = next_embedding_s = -1.0
    with tempfile.TemporaryFile() as file, open_video(path) as video:
        writer = SampleWriter(file)
        frames = iter(video)
        while True:
            with kernels.time("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            due = [c for c in clips if c["start_s"] <= frame.pts_s < c["end_s"] and frame.pts_s >= c["next_s"] - 1e-6]
            if frame.pts_s >= next_sample_s or due:
                with kernels.time("convert"):
                    picture = frame.rgb()
            if frame.pts_s >= next_sample_s:
                next_sample_s = frame.pts_s + 1 / recipe.scan.sample_fps
                with kernels.time("detect"):
                    found = analyser.detect([frame.small(recipe.faces.detection_size_px)])[0]
                scale = max(1.0, max(picture.shape[:2]) / recipe.faces.detection_size_px)
                found.boxes *= scale
                found.points *= scale
                found = found[found.boxes[:, 3] - found.boxes[:, 1] >= recipe.scan.min_track_face_px]
                if len(found):
                    with kernels.time("landmarks"):
                        faces = analyser.landmarks(picture, found)
                    if frame.pts_s >= next_embedding_s:
                        next_embedding_s = frame.pts_s + recipe.scan.embed_every_s
                        with kernels.time("embed"):
                            analyser.embed(picture, faces.points5)
            for clip in due:
                while frame.pts_s >= clip["next_s"] - 1e-6:
                    clip["next_s"] += 1 / recipe.crop.fps
                    _bare_frame(picture, clip, analyser, writer, kernels)


def _bare_frame(picture: np.ndarray, clip: dict, analyser, writer: SampleWriter, kernels: Kernels) -> None:
    from model.faces import Detections

    with kernels.time("warp"):
        crop = warp(picture, clip["crop"].matrix, 512)
    last = clip.get("landmarks")
    if last is None:
        last = transform_points(np.reshape(clip["first_landmarks"], (68, 2)), clip["crop"].matrix)
    with kernels.time("landmarks"):
        clip["landmarks"] = analyser.landmarks(crop, Detections.from_points68(last[None])).points68[0]
    with kernels.time("encode"):
        jpeg = simplejpeg.encode_jpeg(crop, quality=95, colorspace="RGB", colorsubsampling="420")
    with kernels.time("write"):
        writer.add("frame.jpg", jpeg)


def loop_video(path: str, minutes: float, output: Path) -> None:
    """Repeat a video's packets, without encoding again, until it is `minutes` long."""
    with av.open(str(output), "w") as target:
        stream, offset, base = None, 0, None
        while base is None or offset * base < minutes * 60:
            with av.open(path) as source:
                origin = source.streams.video[0]
                stream = stream or target.add_stream_from_template(origin)
                base = origin.time_base
                last = 0
                for packet in source.demux(origin):
                    if packet.dts is None:
                        continue
                    last = max(last, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    target.mux(packet)
                offset += last


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--long-minutes", type=float, default=0.0, help="also a video of this length, made by looping")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    inputs = [str(Path(i).resolve()) for i in options.inputs]
    with tempfile.TemporaryDirectory() as folder:
        stills = write_stills(Path(folder))
        whole_run(stills, Path(folder) / "first", 1)  # which reads libraries from the disk
        runs, startups = {}, {}
        for workers in options.workers:
            startups[workers] = startup_of(workers, stills, Path(folder))
            print("start-up, {} worker(s): wall {:.1f} s, CPU {:.1f} s".format(workers, *startups[workers]))
            runs[workers] = run = whole_run(inputs, Path(folder) / f"run{workers}", workers)
            print(
                f"whole run, {workers} worker(s): wall {run.wall_s:.1f} s, in stages {run.stage_s:.1f} s,"
                f" CPU {run.cpu_s:.1f} s, a worker's peak {run.worker_mb:.0f} MB"
            )
        kernels = bare_kernels(Dataset(Path(folder) / f"run{options.workers[0]}"))
        total = sum(kernels.seconds.values())
        for name, seconds in sorted(kernels.seconds.items(), key=lambda item: -item[1]):
            calls = kernels.calls[name]
            print(f"  {name:<10}{seconds:7.1f} CPU-s {calls:6d} calls {1000 * seconds / calls:7.2f} ms")
        print(f"  {'all':<10}{total:7.1f} CPU-s")
        for workers, run in runs.items():
            own = run.cpu_s - startups[workers][1]
            print(
                f"{workers} worker(s): kernels / whole run without start-up {ratio(total, own):.2f};"
                f" with the decoding counted for both passes {ratio(total + kernels.seconds['decode'], own):.2f}"
            )
        if len(runs) > 1:
            one, other = (runs[w].wall_s - startups[w][0] for w in options.workers[:2])
            print(f"{options.workers[1]} workers against {options.workers[0]}: {ratio(one, other):.2f}x")
        if options.long_minutes:
            path = Path(folder) / "long.mp4"
            video = next(p for i in inputs for p in ([Path(i)] if Path(i).is_file() else sorted(Path(i).glob("*.mp4"))))
            loop_video(str(video), options.long_minutes, path)
            run = whole_run([str(path)], Path(folder) / "long", max(options.workers))
            print(
                f"{options.long_minutes:.0f} minutes of {video.name}: wall {run.wall_s:.1f} s, CPU {run.cpu_s:.1f} s,"
                f" a worker's peak {run.worker_mb:.0f} MB"
            )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
