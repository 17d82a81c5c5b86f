"""What the pictures of videos cost, on the same frames: whole, sketched, cropped, letterboxed.

    python -m tests.benchmarks.pictures VIDEOS... [--num-frames 60]

CPU-milliseconds a frame, on one thread:

- decode: without a picture;
- rgb: all of it converted, as faces need it; sketch: the pixels that cuts are looked for on, not converting the rest
  where that pays (small pictures are converted whole for it);
- crop: 512 x 512 of a square of half the picture's shorter side, on whole pixels (a resize), and in general (a warp);
- canvas: the letterboxed picture of a face detector, likewise, from 640 px on.

Then what it costs to bring one Full HD picture of HDR to the brightness of others: as it is done, plane by plane with
OpenCV's tables, and as one would write it first, in NumPy, side by side; both give the same bits.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from curation.cuts import PICTURE_SIDE_PX
from model.faces.alignment import letterbox
from model.framing import FixedCrop, warp
from model.video import brightness, open_video

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
            frame._rgb = None  # which a sketch may have left
            picture, small = timed("rgb", frame.rgb), frame.small(640)
            matrix, *canvas = letterbox(small.shape[1], small.shape[0], size_px=640, border=0.1)
            for name, turn in (("", 0.0), (", general", 1.0)):
                timed(f"crop{name}", partial(warp, picture, crop.matrix + turn * _ALMOST_WHOLE, 512))
                timed(f"canvas{name}", partial(warp, small, matrix + turn * _ALMOST_WHOLE, tuple(canvas)))
    return {name: 1000 * seconds / max(num, 1) for name, seconds in spent.items()}


def plain_sdr(values: np.ndarray, transfer: int) -> np.ndarray:
    """`brightness.to_sdr` of BT.2020 colours, written straight down."""
    light = (brightness._pq_table() if transfer == brightness._PQ else brightness._hlg_table())[values >> 4]
    if transfer == brightness._HLG:
        shares = np.sqrt(_mixed(light, brightness._LUMINANCE).clip(0, 1))
        light = light * brightness._hlg_gain_table()[_positions(shares)][..., None]
    light = np.stack([_mixed(light, row) for row in brightness._BT2020_TO_BT709], -1)
    peak = brightness._PEAK
    return brightness._shown_table()[_positions(np.sqrt(light.clip(0, peak) / np.float32(peak)))]


def _mixed(light: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return light[..., 0] * weights[0] + light[..., 1] * weights[1] + light[..., 2] * weights[2]


def _positions(shares: np.ndarray) -> np.ndarray:
    return (shares * np.float32(brightness._STEPS - 1) + np.float32(0.5)).astype(np.int32)


def measure_hdr(rounds: int = 7) -> None:
    """Print CPU-milliseconds of a picture, both ways in turn."""
    values = np.random.default_rng(0).integers(0, 2**16, (1080, 1920, 3), np.uint16)
    for name, transfer in (("PQ", brightness._PQ), ("HLG", brightness._HLG)):
        picture = SimpleNamespace(color_trc=transfer, color_primaries=brightness._BT2020)
        ways = {"NumPy": partial(plain_sdr, values, transfer), "planes": partial(brightness.to_sdr, values, picture)}
        assert np.array_equal(*(way() for way in ways.values()))
        spent = defaultdict(list)
        for _ in range(rounds):
            for way, work in ways.items():
                start = time.process_time()
                work()
                spent[way].append(1000 * (time.process_time() - start))
        told = ", ".join(f"{way} {np.median(times):.1f} ms" for way, times in spent.items())
        print(f"HDR of Full HD by {name}: {told}")


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
    measure_hdr()


if __name__ == "__main__":
    main()
