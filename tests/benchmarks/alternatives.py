"""Curation side by side with its bare kernels, a plain multiprocessing script, and Data-Juicer, on the same files.

    python -m tests.benchmarks.alternatives VIDEOS... [--workers 2] [--rounds 2] [--data-juicer VENV/bin/python]

Source-seconds a second, CPU-seconds a source-second and peak memory (proportional set size, all processes) of each,
start-up apart: it is measured three times on a few small files, with all workers started, and the median is taken off
(`nan`: the videos are too short to tell from it). Rounds go A B C A B C, so that what else the machine does meets all
alike; while it is busy, the CPU-seconds are what can be compared.

- bare kernels: decoding once, faces on sampled frames, every frame of every candidate cropped; `--workers` processes
  side by side, a share of the videos each (see `tests.benchmarks.curation`). Their seconds of work are CPU-seconds
  over workers: an ideal, which other load on the machine does not touch. "two passes": the same with the decoding
  counted twice, because where a face stays in reach of a fixed crop is known only when its whole track has been seen.
- ours: `python -m curation run`, from files to shards, manifests, measurements, copies and splits.
- plain pool: `tests.benchmarks.plain_pool`.
- Data-Juicer: split into scenes, then the share of frames with a face, on its Ray executor. No crops, landmarks or
  shards: less work than the others. Its face detector (dlib) looks at as many frames as the others' do. To have it:

      python -m venv VENV && VENV/bin/pip install torch==2.13.0 py-data-juicer "ray[default,data]" av scenedetect
      VENV/bin/pip install opencv-python-headless dlib-bin imageio-ffmpeg

Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import psutil
import skimage.data

from curation.recipe import Recipe
from manifests.store import Dataset
from model.video import probe_video
from tests.benchmarks.curation import bare_kernels, ratio, write_stills

ROOT = Path(__file__).resolve().parents[2]
_SAMPLE_S = 0.2
_MEMORY_EVERY_S = 2.0  # the kernel counts a process's pages for that, about 15 ms a GB
_STARTUPS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """One command."""

    wall_s: float
    cpu_s: float
    peak_mb: float


class Watch:
    """CPU time of a process and all below it, and the peak of their memory together."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self.peak_mb = 0.0

    def finish(self) -> float:
        """CPU-seconds."""
        self._is_over.set()
        self._thread.join()
        return sum(self._cpu_s.values())

    def _watch(self) -> None:
        next_memory = time.perf_counter()
        while not self._is_over.wait(_SAMPLE_S):
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                return
            for process in family:
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    self._cpu_s[process.pid, process.create_time()] = times.user + times.system
            if time.perf_counter() >= next_memory:
                self.peak_mb = max(self.peak_mb, sum(_proportional_mb(process.pid) for process in family))
                next_memory = time.perf_counter() + _MEMORY_EVERY_S


def _proportional_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    return 0.0


def measure(command: list[str], log: Path, env: dict[str, str] | None = None) -> Measured:
    """Run a command to its end."""
    start = time.perf_counter()
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=os.environ | (env or {}))
        watch = Watch(process.pid)
        status = process.wait()
    wall_s = time.perf_counter() - start
    cpu_s = watch.finish()
    if status:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command[:4])} ended with {status}:\n{end}")
    return Measured(wall_s, cpu_s, watch.peak_mb)


def median(runs: Iterable[Measured]) -> Measured:
    """Of each figure by itself; of the memory the maximum."""
    walls_s, cpus_s, peaks_mb = zip(*((run.wall_s, run.cpu_s, run.peak_mb) for run in runs), strict=True)
    return Measured(statistics.median(walls_s), statistics.median(cpus_s), max(peaks_mb))


def run_ours(videos: list[str], folder: Path, workers: int) -> Measured:
    command = [sys.executable, "-m", "curation", "run", *videos, "--output", str(folder), "--workers", str(workers)]
    return measure(command, folder.with_suffix(".log"))


def run_pool(videos: list[str], folder: Path, workers: int) -> Measured:
    command = [sys.executable, "-m", "tests.benchmarks.plain_pool", str(folder), "--workers", str(workers), *videos]
    return measure(command, folder.with_suffix(".log"))


def data_juicer_runner(python: Path) -> Callable[[list[str], Path, int], Measured]:
    """Runs Data-Juicer of the virtual environment of that interpreter."""

    def run(videos: list[str], folder: Path, workers: int) -> Measured:
        folder.mkdir()
        lines = [json.dumps({"videos": [video], "text": "<__dj__video> <|__dj__eoc|>"}) for video in videos]
        (folder / "videos.jsonl").write_text("\n".join(lines) + "\n")
        interval = round(25 / Recipe().scan.sample_fps)
        (folder / "config.yaml").write_text(
            f"project_name: side-by-side\nexecutor_type: ray\nray_address: local\nnp: {workers}\n"
            f"dataset_path: {folder / 'videos.jsonl'}\nexport_path: {folder / 'out'}\nwork_dir: {folder / 'work'}\n"
            "video_key: videos\nskip_op_error: false\nprocess:\n"
            f"  - video_split_by_scene_mapper: {{save_dir: {folder / 'scenes'}}}\n"
            f"  - video_face_ratio_filter: {{threshold: 0.5, detect_interval: {interval}}}\n"
        )
        binaries = folder / "bin"
        binaries.mkdir()
        find = [str(python), "-c", "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"]
        (binaries / "ffmpeg").symlink_to(
            subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()
        )
        env = {"PATH": os.pathsep.join([str(binaries), str(python.parent), os.environ["PATH"]])}
        env |= {"RAY_USAGE_STATS_ENABLED": "0", "DATA_JUICER_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": ""}
        command = [str(python), str(python.parent / "dj-process"), "--config", str(folder / "config.yaml")]
        return measure(command, folder.with_suffix(".log"), env)

    return run


def run_bare(dataset: Path, workers: int) -> tuple[Measured, Measured]:
    """The kernels alone, in processes of their own, with the decoding counted once and twice. Seconds of work, start-up
    left out."""
    command = [sys.executable, "-m", "tests.benchmarks.alternatives", str(dataset), "--workers", str(workers)]
    logs = [dataset.with_name(f"bare-{k}.log") for k in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        runs = list(pool.map(lambda k: measure([*command, "--bare", str(k)], logs[k]), range(workers)))
    seconds = [json.loads(log.read_text().splitlines()[-1]) for log in logs]
    once, decode = (sum(of[kind] for of in seconds) for kind in ("all", "decode"))
    peak_mb = sum(run.peak_mb for run in runs)
    return tuple(Measured(cpu_s / workers, cpu_s, peak_mb) for cpu_s in (once, once + decode))


def write_smallest(folder: Path) -> tuple[list[str], list[str]]:
    """Stills, and a video of a few frames."""
    video, picture = folder / "few.mp4", skimage.data.astronaut()
    with av.open(str(video), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *picture.shape[1::-1], "yuv420p"
        for _ in range(8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return write_stills(folder), [str(video)]


def print_table(rounds: dict[str, list[Measured]], startup: dict[str, Measured], source_s: float, workers: int) -> None:
    """Medians of the rounds, start-up taken off, and each against ours."""
    heads = ("start-up s", "CPU s", "work s", "CPU s", "source-s/s", "by CPU", "peak MB")
    print(f"\n{'':<26}" + "".join(f"{head:>12}" for head in heads))
    by_wall, by_cpu = {}, {}
    for name, runs in rounds.items():
        start, typical = startup.get(name, Measured(0.0, 0.0, 0.0)), median(runs)
        wall_s, cpu_s = typical.wall_s - start.wall_s, typical.cpu_s - start.cpu_s
        by_wall[name], by_cpu[name] = ratio(source_s, wall_s), ratio(workers * source_s, cpu_s)
        print(
            f"{name:<26}{start.wall_s:12.1f}{start.cpu_s:12.1f}{wall_s:12.1f}{cpu_s:12.1f}"
            f"{by_wall[name]:12.2f}{by_cpu[name]:12.2f}{typical.peak_mb:12.0f}"
        )
    print("by CPU: source-seconds a second if nobody else used the cores")
    for name in rounds:
        if name != "ours":
            ratios = (figures["ours"] / figures[name] for figures in (by_wall, by_cpu))
            print("ours against {}: {:.2f} by wall seconds, {:.2f} by CPU-seconds".format(name, *ratios))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", help="video files, or folders of nothing else")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data-juicer", type=Path, help="interpreter of the virtual environment that it is in")
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)  # which share a process of ours is to do
    options = parser.parse_args()
    if options.bare is not None:
        cv2.setNumThreads(1)
        seconds = bare_kernels(Dataset(options.videos[0]), options.bare, options.workers).seconds
        print(json.dumps({"all": sum(seconds.values()), "decode": seconds["decode"]}))
        return
    paths = [Path(video).resolve() for video in options.videos]
    videos = [str(file) for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    lengths_s = {video: probe_video(video).duration_s or 0.0 for video in videos}
    source_s = sum(lengths_s.values())
    systems = {"ours": run_ours, "plain pool": run_pool}
    if options.data_juicer:
        systems["Data-Juicer"] = data_juicer_runner(options.data_juicer.absolute())
    print(f"{len(videos)} files, {source_s:.1f} s of video; {os.cpu_count()} cores, {options.workers} workers")
    with tempfile.TemporaryDirectory(prefix="side-") as temporary:
        folder = Path(temporary)
        stills, video = write_smallest(folder)
        startup = {
            name: median(
                run(stills if name == "ours" else video, folder / f"startup-{k}-{number}", options.workers)
                for number in range(_STARTUPS)
            )
            for k, (name, run) in enumerate(systems.items())
        }
        rounds: dict[str, list[Measured]] = defaultdict(list)
        for number in range(options.rounds):
            for k, (name, run) in enumerate(systems.items()):
                rounds[name].append(run(videos, folder / f"run-{number}-{k}", options.workers))
                print(f"{name}: {rounds[name][-1]}, load {os.getloadavg()[0]:.1f}", flush=True)
                if name == "ours":
                    once, twice = run_bare(folder / f"run-{number}-{k}", options.workers)
                    rounds["bare kernels"].append(once)
                    rounds["bare kernels, two passes"].append(twice)
                    print(f"bare kernels: {once}", flush=True)
                else:
                    shutil.rmtree(folder / f"run-{number}-{k}", ignore_errors=True)
        print_table(rounds, startup, source_s, options.workers)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
