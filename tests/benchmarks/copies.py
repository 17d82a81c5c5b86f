"""Time and memory of the search for copies among many clips of one person, on made hashes.

    python -m tests.benchmarks.copies                                  # 500, 1,000 and 2,000 clips of 10 s
    python -m tests.benchmarks.copies --num-clips 10000 --clip-s 30

Every tenth clip is a copy of the one before, with a tenth of its bits turned around; all others show other moments.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from curation.duplicates import find_copies
from curation.fingerprints import STEPS_PER_S


def make_hashes(num_clips: int, clip_s: float, seed: int = 0) -> list[np.ndarray]:
    """uint64 [2 * steps] of each clip: one look, changes by chance."""
    chance = np.random.default_rng(seed)
    num_steps = round(clip_s * STEPS_PER_S)
    clips = []
    for k in range(num_clips):
        words = np.zeros((num_steps, 2), np.uint64)
        words[:, 1] = chance.integers(1, 2**64, num_steps, dtype=np.uint64)
        if k % 10 == 9:
            turned = np.packbits(chance.random((num_steps, 64)) < 0.1, axis=1).view(np.uint64)[:, 0]
            words[:, 1] = clips[-1][1::2] ^ turned
        words[:2, 1] = 0
        clips.append(words.ravel())
    return clips


def measure(num_clips: int, clip_s: float) -> None:
    hashes = make_hashes(num_clips, clip_s)
    names = [f"c{k:07d}" for k in range(num_clips)]
    start, start_cpu = time.perf_counter(), time.process_time()
    copies = find_copies(names, hashes, [False] * num_clips, [None] * num_clips, dict.fromkeys(names, "one"))
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    found = {(copy.one, copy.other) for copy in copies}
    made = {(names[k - 1], names[k]) for k in range(9, num_clips, 10)}
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{num_clips} clips of {clip_s:g} s: {len(found & made)} of {len(made)} copies found,"
        f" {len(found - made)} wrong, {wall_s:.1f} s"
        f" ({cpu_s:.1f} s of processors, {cpu_s / max(num_clips * (num_clips - 1) / 2, 1) * 1e6:.1f} us a pair),"
        f" peak {peak_gb:.2f} GB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-clips", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--clip-s", type=float, default=10.0)
    options = parser.parse_args()
    for num_clips in sorted(options.num_clips):  # the peak is that of the process so far
        measure(num_clips, options.clip_s)


if __name__ == "__main__":
    main()
