"""Thousands of tiny sources with a face analyser that costs nothing: what the machinery around the work takes.

    python -m tests.benchmarks.many_sources [--sources 2500 5000 10000] [--workers 2] [--hours 5] [--here]
        [--folder FOLDER]

For each number of sources: a whole run, the same command again, and for the largest number one that is killed in the
middle of crop and continued; of each the driver's seconds and memory by phase, how they grow, and what a million
sources would take if they went on like that. Then a video of some hours, made by repeating packets: its spans and how
they were spread over the workers. --here: without Ray, all work in the driver's process. Ends with 1 where a continued
run made other shards. Linux only; times depend on what else the machine does, CPU-seconds much less.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil

from manifests.store import Dataset, read_table
from tests.benchmarks.curation import loop_video
from tests.benchmarks.null_faces import RECIPE_OPTIONS, paint_person

ROOT = Path(__file__).resolve().parents[2]
MANY = 1_000_000
SIDE_PX = 256
BLOCK_PX = 32
PICTURES_OF_FOLDER = 500
SOURCES_OF_PERSON = 4
RULES_OFF = (
    "min-face-px",
    "min-face-p05-px",
    "max-upscale",
    "min-sharpness",
    "max-dark-fraction",
    "max-outside-fraction",
)


def write_pictures(folder: Path, num: int) -> list[Path]:
    """Folders of 500 small pictures each, all different, four in a row of one person."""
    for start in range(0, num, PICTURES_OF_FOLDER):
        target = folder / f"{start:07d}"
        if (target / "done").is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        for number in range(start, start + PICTURES_OF_FOLDER):
            rng = np.random.default_rng(number)
            blocks = rng.integers(20, 230, (SIDE_PX // BLOCK_PX, SIDE_PX // BLOCK_PX, 3), np.uint8)
            picture = np.ascontiguousarray(blocks.repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1))
            paint_person(picture, number // SOURCES_OF_PERSON)
            cv2.imwrite(str(target / f"{number:07d}.png"), picture[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        (target / "done").touch()
    return [folder / f"{start:07d}" for start in range(0, num, PICTURES_OF_FOLDER)]


def start_run(inputs: list[Path], output: Path, workers: int) -> subprocess.Popen:
    """Start a run under `tests.benchmarks.phases`, without Ray for 0 workers; its report will be OUTPUT.json."""
    rules = [text for rule in RULES_OFF for text in (f"--select.{rule}", "none")]
    command = [sys.executable, "-m", "tests.benchmarks.phases", f"{output}.json", *(() if workers else ("--here",))]
    command += ["run", *map(str, inputs), "--output", str(output), "--workers", str(workers), *RECIPE_OPTIONS, *rules]
    with open(f"{output}.log", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def finish_run(process: subprocess.Popen, output: Path) -> dict[str, Any]:
    """The report of a run, when it has ended."""
    if process.wait():
        raise RuntimeError(f"the run ended with {process.returncode}; the end of its log:\n{tail(output)}")
    return json.loads(Path(f"{output}.json").read_text())


def tail(output: Path) -> str:
    return "\n".join(Path(f"{output}.log").read_text(errors="replace").splitlines()[-20:])


def kill_in_crop(process: subprocess.Popen, output: Path, num: int) -> None:
    """Kill the run and what it started once half the units of crop have committed."""
    while process.poll() is None:
        staged = sum(1 for folder in (output / "staging").glob("crop-*") for _ in folder.glob("*.json"))
        if staged >= num // 2:
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            psutil.wait_procs(family, timeout=60)  # Ray's processes and the workers' children end with the driver
            return
        time.sleep(0.1)
    raise RuntimeError(f"the run ended before it could be killed; the end of its log:\n{tail(output)}")


def shard_hashes(output: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((output / "shards").glob("*.tar"))}


def print_growth(title: str, reports: dict[int, dict[str, Any]]) -> None:
    """CPU-seconds and memory by phase and number of sources, how they grow, and the same for a million."""
    sizes = sorted(reports)
    few, many = sizes[0], sizes[-1]
    cpu = {
        label: [sum(reports[n][kind].get(label, 0.0) for kind in ("cpu_s", "family_cpu_s")) for n in sizes]
        for label in reports[many]["wall_s"]
    }
    peaks = {label: [reports[n]["peak_mb"].get(label, 0.0) for n in sizes] for label in cpu}
    wall = {label: reports[many]["wall_s"][label] for label in cpu}
    cpu["all"] = [sum(values) for values in zip(*cpu.values(), strict=True)]
    peaks["all"] = [max(values) for values in zip(*peaks.values(), strict=True)]
    wall["all"] = sum(wall.values())
    heads = "".join(f"{num:>9}" for num in sizes)
    print(f"\n{title}: CPU-seconds of all processes, wall seconds for {many} sources, peak MB of the driver")
    print(f"{'':<22}{heads}{f'x of {many / few:.1f}x':>12}{'ms each':>9}{f'at {MANY}':>12}{'wall':>9}  {heads} MB")
    for label, seconds in cpu.items():
        growth = f"{seconds[-1] / seconds[0]:.1f}" if seconds[0] > 0.2 else "-"
        each = max(seconds[-1] - seconds[0], 0.0) / (many - few) if many > few else math.nan
        print(
            f"{label:<22}{''.join(f'{s:9.2f}' for s in seconds)}{growth:>12}{1000 * each:9.2f}"
            f"{clock(each * MANY):>12}{wall[label]:9.2f}  {''.join(f'{mb:9.0f}' for mb in peaks[label])}"
        )
    if many > few:
        slope_mb = (peaks["all"][-1] - peaks["all"][0]) / (many - few)
        print(f"memory of the driver: {1000 * slope_mb:.1f} kB a source; at {MANY}: {slope_mb * MANY / 1000:.1f} GB")


def clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def make_long_video(path: Path, hours: float) -> None:
    """A tiny video (96x64, 10 fps; no face for `NullFaces`) of that length: a minute's packets over and over."""
    minute = path.with_name("minute.mp4")
    with av.open(str(minute), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"preset": "ultrafast", "g": "50"})
        stream.width, stream.height = 96, 64
        rng = np.random.default_rng(0)
        base = rng.integers(0, 255, (4, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        for number in range(600):
            frame = av.VideoFrame.from_ndarray(np.roll(base, number, 1), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    loop_video(str(minute), 60 * hours, path)


def measure_long_video(folder: Path, hours: float, workers: int) -> None:
    """Run one long video and say how its spans were spread."""
    path, output = folder / "long.mp4", folder / "long"
    make_long_video(path, hours)
    shutil.rmtree(output, ignore_errors=True)
    report = finish_run(start_run([path], output, workers), output)
    units = read_table(Dataset(output), "units").to_pylist()
    spans = [unit for unit in units if unit["stage"].startswith("scan")]
    busy: Counter[str] = Counter()
    for unit in spans:
        busy[unit["worker"]] += unit["wall_s"]
    source = read_table(Dataset(output), "sources").to_pylist()[0]
    frames = sum(unit["num_frames"] for unit in spans)
    lengths = [unit["num_frames"] for unit in spans]
    print(f"\n{source['duration_s'] / 3600:.2f} hours of video in one file of {path.stat().st_size / 1e6:.0f} MB")
    print(f"index {report['wall_s']['index: work']:.1f} s, scan {report['wall_s']['scan: work']:.1f} s")
    print(f"{len(spans)} spans of {min(lengths)} to {max(lengths)} frames, {frames} in all")
    for worker, seconds in sorted(busy.items()):
        print(f"  {worker}: {sum(u['worker'] == worker for u in spans)} spans, {seconds:.1f} s of work")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", type=int, default=[2500, 5000, 10_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--here", action="store_true", help="without Ray")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    parser.add_argument("--hours", type=float, default=5.0, help="length of the long video; 0: none")
    options = parser.parse_args()
    if any(num % PICTURES_OF_FOLDER for num in options.sources):
        parser.error(f"--sources: expected multiples of {PICTURES_OF_FOLDER}")
    with tempfile.TemporaryDirectory(prefix="many-") as temporary:
        workers = 0 if options.here else options.workers
        return measure(options.folder or Path(temporary), sorted(options.sources), workers, options.hours)


def measure(folder: Path, sizes: list[int], workers: int, hours: float) -> int:
    """Everything, in `folder`; returns the exit status."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start, {workers or 'no'} workers")
    inputs = write_pictures(folder / "pictures", sizes[-1]) if sizes else []
    whole, again = {}, {}
    for num in sizes:
        output = folder / f"run-{num}"
        shutil.rmtree(output, ignore_errors=True)
        mine = inputs[: num // PICTURES_OF_FOLDER]
        whole[num] = finish_run(start_run(mine, output, workers), output)
        again[num] = finish_run(start_run(mine, output, workers), output)
        print(f"{num} sources: {sum(whole[num]['wall_s'].values()):.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    print_growth("a whole run", whole)
    print_growth("the same command when all is done", again)
    is_same = True
    if sizes:
        output = folder / "killed"
        shutil.rmtree(output, ignore_errors=True)
        kill_in_crop(start_run(inputs, output, workers), output, sizes[-1])
        print_growth(
            "continued after a kill in crop", {sizes[-1]: finish_run(start_run(inputs, output, workers), output)}
        )
        is_same = shard_hashes(output) == shard_hashes(folder / f"run-{sizes[-1]}")
        print(f"shards of the continued run: {'the same bytes' if is_same else 'DIFFERENT'}")
    if hours:
        measure_long_video(folder, hours, workers)
    return 0 if is_same else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
