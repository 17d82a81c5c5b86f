"""The demonstration: a few short clips made from a photograph, curated like any other videos."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from curation.distribute import ClusterOptions
from curation.pipeline import open_dataset, run
from curation.recipe import load_recipe
from curation.review import build
from curation.summary import print_summary
from manifests.storage import full_path, printable
from manifests.store import Dataset, read_table
from model.video import VideoWriter

_FPS = 25
_SIZE = (480, 480)
_FACE_PX = (224.0, 110.0)  # between the eyes of scikit-image's astronaut (a NASA photograph, public domain)


def run_demo(output: Path, cluster_options: ClusterOptions) -> int:
    """Make the clips beside `output`, curate them into it, and say where to look.

    Raises:
        ValueError: the output is there and no earlier demonstration; nothing has been made.
    """
    videos = output.parent / f"{output.name}_videos"
    _require_no_other_sources(Dataset(output), videos)
    open_dataset(output)
    make_videos(videos)
    recipe = load_recipe("default")
    run([str(videos)], output, recipe, cluster_options=cluster_options)
    dataset = Dataset(output)
    print_summary(dataset, recipe.select)
    print(f"the clips this was made from: {videos}/")
    print(f"look at it: {build(dataset)}")
    quoted = shlex.quote(str(output))
    print(f'ask it:     python -m manifests {quoted} "SELECT clip_id, decision, failed_rules, duration_s FROM clips"')
    print("your own:   python -m curation run YOUR_VIDEOS --output YOUR_DATASET")
    return 0


def _require_no_other_sources(dataset: Dataset, videos: Path) -> None:
    """By the runs rather than the sources: of a run that was interrupted there may be none yet."""
    inputs = {text for row in read_table(dataset, "runs", ["inputs"]).to_pylist() for text in row["inputs"] or []}
    if others := inputs - {printable(full_path(str(videos)))}:
        raise ValueError(
            f"{dataset.root} is a data set of other sources ({min(others)}), and the demonstration would be mixed into"
            " it: name a new folder as --output"
        )


def make_videos(folder: Path) -> None:
    """Write the demonstration's files: two good clips, one with a cut, a blurred copy, one too small, one broken."""
    folder.mkdir(parents=True, exist_ok=True)
    portrait, coffee = skimage.data.astronaut(), skimage.data.coffee()
    sway = list(_moved(portrait, num_frames=75, zoom=2.0, sway_px=14.0))
    _write(folder / "sway.mp4", sway)
    _write(folder / "zoom.mp4", _moved(portrait, num_frames=60, zoom=1.7, sway_px=6.0, zoom_by=0.25))
    cup = list(_moved(coffee, num_frames=30, zoom=1.1, sway_px=5.0, center=(300.0, 200.0)))
    _write(folder / "cut.mp4", [*_moved(portrait, num_frames=55, zoom=2.2, sway_px=10.0, nods=True), *cup])
    _write(folder / "blurred.mp4", [cv2.GaussianBlur(frame, (0, 0), 4) for frame in sway])
    _write(folder / "far_away.mp4", _moved(portrait, num_frames=50, zoom=0.9, sway_px=5.0, period_frames=17))
    (folder / "broken.mp4").write_bytes((folder / "sway.mp4").read_bytes()[:2000])


def _moved(
    picture: np.ndarray,
    *,
    num_frames: int,
    zoom: float,
    sway_px: float,
    zoom_by: float = 0.0,
    nods: bool = False,
    period_frames: int = 50,
    center: tuple[float, float] = _FACE_PX,
) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, 3] of a camera that sways and zooms before a picture; each moves in a way of its own.

    So only the blurred clip shows the footage of another one.
    """
    for k in range(num_frames):
        phase = 2 * math.pi * k / period_frames
        scale = zoom * (1 + zoom_by * k / num_frames)
        matrix = cv2.getRotationMatrix2D(center, 4 * math.sin(phase), scale)
        matrix[:, 2] += np.array(_SIZE) / 2 - center
        sway = (sway_px * math.sin(phase), sway_px / 2 * math.cos(2 * phase))
        matrix[:, 2] += sway[::-1] if nods else sway
        yield cv2.warpAffine(picture, matrix, _SIZE, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _write(path: Path, frames: Iterator[np.ndarray] | list[np.ndarray]) -> None:
    with VideoWriter(path, _FPS, reproducible=True) as writer:
        for frame in frames:
            writer.write(frame)
