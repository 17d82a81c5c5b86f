"""Pictures that go in, stills of any format and videos as frames at a constant rate; and stills that come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from model.stills import read_still
from model.video import VideoError, VideoInfo, complete_or_absent, open_video, probe_video

DEFAULT_FPS = Fraction(25)
STILL_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Stills that are written."""
Item = TypeVar("Item")


def load_still(path: str | Path) -> np.ndarray:
    """A still as uint8 [H, W, 3], RGB, upright as its EXIF data says, over white where transparent. ValueError."""
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file")
    try:
        return read_still(path)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is neither a picture nor a video that can be read ({error})") from error


def names_a_still(path: str | Path) -> bool:
    """Whether a result of this name is a still."""
    return Path(path).suffix.lower() in STILL_SUFFIXES


def save_still(picture: np.ndarray, path: str | Path) -> None:
    """Write uint8 [H, W, 3] in the format of the name; it appears when complete."""
    with complete_or_absent(Path(path)) as partial:
        Image.fromarray(picture).save(partial, quality=95)


@dataclass(kw_only=True)
class Clip:
    """A video read at a constant rate: output frame i shows what the video shows in the middle of [i, i + 1) / fps."""

    path: Path
    info: VideoInfo
    fps: Fraction
    max_frames: int | None = None
    stopped_early: str | None = field(default=None, init=False)
    """Why `frames()` ended before the file did, and when; None where it did not, or was not read to the end."""
    left_out: str | None = field(default=None, init=False)
    """What damage cost inside, where the last frame before it is shown on; None: nothing, as far as was read."""

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3], RGB, one after the other; the video is never held in memory."""
        period_s = float(1 / self.fps)
        index = 0
        start_s = 0.0
        with open_video(self.path, guess_matrix=True) as video:
            shown = None
            for upcoming in video:
                if shown is not None:
                    while self._is_wanted(index) and start_s + (index + 0.5) * period_s < upcoming.pts_s:
                        yield shown.rgb()
                        index += 1
                else:
                    start_s = upcoming.pts_s
                if not self._is_wanted(index):
                    self.left_out = video.left_out
                    return
                shown = upcoming
            if shown is None:
                raise ValueError(f"{self.path}: no frame can be decoded")
            self.left_out = video.left_out
            last_s = shown.pts_s + float(1 / (self.info.fps_fraction or self.fps))
            if video.stopped_early:
                self.stopped_early = f"{video.stopped_early}, after {last_s - start_s:.1f} s"
            while self._is_wanted(index) and (index == 0 or start_s + (index + 0.5) * period_s < last_s):
                yield shown.rgb()
                index += 1

    def _is_wanted(self, index: int) -> bool:
        return self.max_frames is None or index < self.max_frames


def open_clip(path: str | Path, *, fps: Fraction | None = None, max_s: float | None = None) -> Clip | None:
    """A video at the given rate (its own average rate if None); None if the file is a still. VideoError otherwise."""
    try:
        info = probe_video(path)
    except VideoError as error:
        if error.reason in ("still_image", "not_a_video"):
            return None  # not a video; whether it is a picture is for the reader of pictures to say
        raise
    fps = fps or info.fps_fraction or DEFAULT_FPS
    max_frames = None if max_s is None else max(1, round(max_s * fps))
    return Clip(path=Path(path), info=info, fps=fps, max_frames=max_frames)


def scaled_within(picture: np.ndarray, max_size_px: int) -> np.ndarray:
    """uint8 [H, W, 3] scaled down to even sides of at most `max_size_px`; unchanged if no larger, or if that is 0."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    if not 0 < max_size_px < longer:
        return picture
    size = tuple(max(2, side * max_size_px // longer // 2 * 2) for side in (width, height))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def resize_transform(picture: np.ndarray, resized: np.ndarray) -> np.ndarray:
    """Pixels of a picture to those of the same at another size, float64 [3, 3]; centres have integer coordinates."""
    x, y = resized.shape[1] / picture.shape[1], resized.shape[0] / picture.shape[0]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def check_output(output: str | Path, *inputs: str | Path) -> None:
    """ValueError where the result would replace one of its inputs."""
    for source in inputs:
        if Path(output).absolute().resolve() == Path(source).absolute().resolve():
            raise ValueError(f"the output {output} would replace the file that it is made from; give another name")
