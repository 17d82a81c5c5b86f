"""Every named query on a data set of the size of LivePortrait's, made up: times and memory.

    python -m tests.benchmarks.manifests FOLDER [--sources 115000] [--queries pose_coverage splits]

Writes the data set to FOLDER unless it is there (115000 sources: 69 million frames, 2.3 million clips, 18,900
identities; 7 GB), then runs each query in a process of its own, on two cores: opening the data set, the first answer,
the better of two more, CPU-seconds of that one, and the peak of resident memory. Ends with 1 when a warm answer takes
more than 3 s (15 s where every frame is looked at) or a process more than 4 GB. Linux only. Times depend on what else
the machine does; CPU-seconds much less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import duckdb

from manifests.query import ask, find_query, named_queries
from manifests.store import Dataset
from manifests.summary import print_summary
from manifests.views import connect
from tests.benchmarks.paper_scale import Plan, write_dataset

ROOT = Path(__file__).resolve().parents[2]
PAPER_SOURCES, PAPER_IDENTITIES = 115_000, 18_900
PER_FRAME = ("pose_coverage", "expression_coverage", "frame_quality", "inconsistencies")
LIMIT_S, LIMIT_PER_FRAME_S, LIMIT_GB = 3.0, 15.0, 4.0
NUM_THREADS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sources", type=int, default=PAPER_SOURCES)
    parser.add_argument("--queries", nargs="*", default=["summary", *named_queries()])
    parser.add_argument("--step", help=argparse.SUPPRESS)  # what a process of ours is to do
    options = parser.parse_args()
    if options.step:
        is_generate = options.step == "generate"
        result = generate(options.folder, options.sources) if is_generate else measure(options.folder, options.step)
        print(json.dumps(result | {"peak_gb": peak_gb()}))
        return 0
    if not (options.folder / "manifests" / "tombstones").is_dir():  # the table that is written last
        made = run_step(options, "generate")
        print(f"written in {made['seconds']:.0f} s, peak {made['peak_gb']:.2f} GB")
    print_tables(options.folder)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    print(f"{'query':22} {'rows':>8} {'open s':>7} {'first s':>8} {'warm s':>7} {'CPU s':>6} {'peak GB':>8}")
    num_over = 0
    for name in options.queries:
        result = run_step(options, name)
        over = result["warm_s"] > (LIMIT_PER_FRAME_S if name in PER_FRAME else LIMIT_S) or result["peak_gb"] > LIMIT_GB
        num_over += over
        print(
            f"{name:22} {result['num_rows']:8} {result['open_s']:7.2f} {result['first_s']:8.2f} {result['warm_s']:7.2f}"
            f" {result['cpu_s']:6.2f} {result['peak_gb']:8.2f}{'  OVER THE LIMIT' if over else ''}",
            flush=True,
        )
    return 1 if num_over else 0


def run_step(options: argparse.Namespace, step: str) -> dict[str, float]:
    """Do one step in a process of its own."""
    arguments = [str(options.folder.resolve()), "--sources", str(options.sources), "--step", step]
    command = [sys.executable, "-m", "tests.benchmarks.manifests", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def generate(folder: Path, num_sources: int) -> dict[str, float]:
    start = time.perf_counter()
    write_dataset(
        folder, Plan(num_sources=num_sources, num_identities=max(1, PAPER_IDENTITIES * num_sources // PAPER_SOURCES))
    )
    return {"seconds": time.perf_counter() - start}


def measure(folder: Path, name: str) -> dict[str, float]:
    """Open the data set and answer a query three times; `summary` stands for what the command shows without one."""
    start = time.perf_counter()
    db = connect(folder, threads=NUM_THREADS)
    open_s = time.perf_counter() - start
    values = {} if name == "summary" else example_values(db, find_query(name).required)
    times = []
    rows: list[tuple] = []
    for _ in range(3):
        start, cpu = time.perf_counter(), time.process_time()
        if name == "summary":
            print_summary(db, Dataset(folder))
        else:
            rows = ask(db, name, **values).fetchall()
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    warm_s, cpu_s = min(times[1:])
    return {"num_rows": len(rows), "open_s": open_s, "first_s": times[0][0], "warm_s": warm_s, "cpu_s": cpu_s}


def example_values(db: duckdb.DuckDBPyConnection, wanted: list[str]) -> dict[str, str]:
    """Of a clip from the middle of the data set: its id, its source and its person."""
    if not wanted:
        return {}
    columns = {"clip": "clip_id", "source": "source_id", "identity": "identity_id"}
    chosen = ", ".join(columns[name] for name in wanted)
    rows = db.execute(f"SELECT {chosen} FROM clips WHERE decision = 'keep' AND clip_id > '8' ORDER BY clip_id LIMIT 1")
    return dict(zip(wanted, rows.fetchall()[0], strict=True))


def print_tables(folder: Path) -> None:
    """How the tables lie on disk."""
    for part, num_files, num_rows, size_bytes, _ in ask(connect(folder), "storage").fetchall():
        if not part.endswith("/"):
            print(f"{part:12} {num_files:4} files {num_rows:12,} rows {size_bytes / 1e6:10,.1f} MB")


def peak_gb() -> float:
    """Largest resident memory of this process so far (getrusage would count the parent's before the start)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("no VmHWM in /proc/self/status")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
