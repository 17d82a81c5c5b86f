"""What the pictures of videos cost, on the same frames: whole, sketched, cropped, letterboxed.

    python -m tests.benchmarks.pictures VIDEOS... [--num-frames 60]

CPU-milliseconds a frame, on one thread:

- decode: without a picture;
- rgb: all of it converted, as faces need it; sketch: the pixels that cuts are looked for on, not converting the rest;
- crop: 512 x 512 of a square of half the picture's shorter side, on whole pixels (a resize), and in general (a warp);
- canvas: the letterboxed picture of a face detector, likewise, from 640 px on.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from curation.cuts import PICTURE_SIDE_PX
from model.faces.alignment import letterbox
from model.framing import FixedCrop, warp
from model.video import open_video

_COLUMNS = ("decode", "rgb", "sketch", "crop", "crop, general", "canvas", "canvas, general")
_ALMOST_WHOLE = np.array([[0.0, 1e-9, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # turned by nothing that shows


def measure(path: str, num_frames: int) -> dict[str, float]:
    """CPU-milliseconds a frame by what was done."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, work):
        start = time.process_time()
        result = work()
        spent[name] += time.process_time() - start
        return result

    num = 0
    with open_video(path) as video:
        width, height = video.info.width, video.info.height
        size = min(width, height) // 2
        center = size / 1024 - 0.5 + size / 2  # the crop's edge on the edge of pixel 0, and from there:
        crop = FixedCrop(center_x_px=center + width // 4, center_y_px=center + height // 4, size_px=size)
        frames = itertools.islice(iter(video), num_frames)
        while (frame := timed("decode", lambda: next(frames, None))) is not None:
            num += 1
            timed("sketch", lambda: frame.sketch(PICTURE_SIDE_PX))
            picture, small = timed("rgb", frame.rgb), frame.small(640)
            matrix, *canvas = letterbox(small.shape[1], small.shape[0], size_px=640, border=0.1)
            for name, turn in (("", 0.0), (", general", 1.0)):
                timed(f"crop{name}", partial(warp, picture, crop.matrix + turn * _ALMOST_WHOLE, 512))
                timed(f"canvas{name}", partial(warp, small, matrix + turn * _ALMOST_WHOLE, tuple(canvas)))
    return {name: 1000 * seconds / max(num, 1) for name, seconds in spent.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--num-frames", type=int, default=60)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{'ms a frame':<34}" + "".join(f"{name:>17}" for name in _COLUMNS))
    rows = []
    for path in options.videos:
        rows.append(measure(path, options.num_frames))
        print(f"{Path(path).name[:32]:<34}" + "".join(f"{rows[-1][name]:17.2f}" for name in _COLUMNS), flush=True)
    means = {name: np.mean([row[name] for row in rows]) for name in _COLUMNS}
    print(f"{'mean':<34}" + "".join(f"{means[name]:17.2f}" for name in _COLUMNS))


if __name__ == "__main__":
    main()
