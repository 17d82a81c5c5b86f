"""Data sets in the real layout whose pictures tell which frame of which clip they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from curation.samples import SampleWriter, encode_label, sample_key
from manifests.schema import make_table
from manifests.store import Dataset, write_parquet
from training.data import DataConfig
from training.data.clips import MOTION

SIDE_PX = 64
NUM_VIDEOS, NUM_STILLS = 12, 6
CLIPS_A_SHARD = 6


def picture_of(clip: int, frame: int) -> np.ndarray:
    """uint8 [64, 64, 3]: red tells the clip, green the frame; blue falls from left to right."""
    picture = np.empty((SIDE_PX, SIDE_PX, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 12 * clip, 6 * frame
    picture[..., 2] = np.linspace(250, 5, SIDE_PX)
    return picture


def _write_dataset(
    folder: Path,
    *,
    prefix: str = "c",
    weights: list[float] | None = None,
    blink_frame: int | None = None,
    still_numbers: tuple[int, ...] = tuple(range(2, 18, 3)),
) -> Path:
    """12 videos of 10 to 32 frames and 6 stills in 3 shards; two clips a person; clip 0 repeats frame 3 twice."""
    (folder / "shards").mkdir(parents=True)
    clips, frames, shards = [], [], []
    for start in range(0, NUM_VIDEOS + NUM_STILLS, CLIPS_A_SHARD):
        shard = f"train-{start // CLIPS_A_SHARD:06d}.tar"
        with open(folder / "shards" / shard, "wb") as file:
            writer = SampleWriter(file)
            numbers = range(start, start + CLIPS_A_SHARD)
            for number in numbers:
                clips.append(
                    _add_clip(
                        writer, number, f"{prefix}{number:02d}_0", shard, frames, blink_frame, number in still_numbers
                    )
                )
                if weights is not None:
                    clips[-1]["weight"] = weights[number]
            num = sum(clip["num_frames"] for clip in clips[-CLIPS_A_SHARD:])
            shards.append({"shard": shard, "split": "train", "num_samples": num, "size_bytes": writer.finish()})
    dataset = Dataset(folder)
    for name, rows in (("clips", clips), ("frames", frames), ("shards", shards)):
        write_parquet(dataset.table_folder(name) / f"{name}.parquet", make_table(name, rows))
    return folder


def _add_clip(
    writer: SampleWriter,
    number: int,
    clip_id: str,
    shard: str,
    rows: list[dict],
    blink_frame: int | None,
    is_still: bool,
) -> dict[str, Any]:
    num_frames = 1 if is_still else 10 + 2 * (number % 12)
    clip: dict[str, Any] = {
        "clip_id": clip_id,
        "kind": "still" if is_still else "video",
        "num_frames": num_frames,
        "num_repeats": 2 if number == 0 else 0,
        "num_corrupt": 0,
        "crop_fps": None if is_still else 25.0,
        "decision": "keep",
        "split": "train",
        "identity_id": f"person{number // 2}",
        "shard": shard,
        "frame_offsets": [],
        "frame_sizes": [],
        "label_offsets": [],
        "label_sizes": [],
    }
    for frame in range(num_frames):
        label = {
            "clip_id": clip_id,
            "frame": frame,
            "landmarks": [[float(k), float(number)] for k in range(68)],
            "pitch_deg": 1.0 * frame,
            "yaw_deg": 2.0 * frame,
            "roll_deg": None if number == 1 else -1.0 * frame,
            "eye_openness_right": 0.0 if frame == blink_frame else 0.25,
            "eye_openness_left": 0.0 if frame == blink_frame else 0.5,
            "lip_openness": 0.125,
        }
        jpeg = simplejpeg.encode_jpeg(picture_of(number, frame), quality=95, colorspace="RGB")
        members = (("frame", f"{sample_key(clip_id, frame)}.jpg", jpeg),)
        members += (("label", f"{sample_key(clip_id, frame)}.json", encode_label(label)),)
        for kind, name, data in members:
            clip[f"{kind}_offsets"].append(writer.add(name, data))
            clip[f"{kind}_sizes"].append(len(data))
        motion = {name: label[name] for name in MOTION}
        is_repeat = number == 0 and frame in (4, 5)
        rows.append({"clip_id": clip_id, "frame": frame, "is_repeat": is_repeat, "is_corrupt": False} | motion)
    return clip


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """Writes such a data set: `write_dataset(folder, prefix="c", weights=[...])`."""
    return _write_dataset


@pytest.fixture(scope="session")
def coded_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One without weights; not to be changed."""
    return _write_dataset(tmp_path_factory.mktemp("coded") / "dataset")


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="session")
def config(index_folder: str) -> Callable[..., DataConfig]:
    """A DataConfig without workers and with a short gap, changed by keywords."""
    return lambda **options: DataConfig(**{"num_workers": 0, "min_gap_s": 0.2, "index_folder": index_folder} | options)


@pytest.fixture(scope="session")
def assert_pictures_match() -> Callable[..., None]:
    """Fails unless every picture and label of a batch is that of the frame which the batch names."""

    def check(batch: Any) -> None:
        for side in (batch.source, batch.driving):
            for row, (clip_id, frame) in enumerate(zip(side.clip_ids, side.frames, strict=True)):
                number = int(clip_id.split("_")[0][-2:])
                expected = picture_of(number, frame).astype(int)
                found = side.images[row].permute(1, 2, 0).numpy().astype(int)
                assert abs(found - expected).max() <= 8, f"{clip_id} frame {frame}"
                assert side.landmarks[row, :, 0].tolist() == list(range(68))
                assert set(side.landmarks[row, :, 1].tolist()) == {number}
                assert side.pose[row, :2].tolist() == [frame, 2 * frame]
                assert side.pose[row, 2].isnan() if number == 1 else side.pose[row, 2] == -frame
                assert side.identities[row] == f"person{number // 2}"

    return check


@pytest.fixture(scope="session")
def upload() -> Callable[[Any, Path], str]:
    """Puts a data set on the server; returns its URL."""

    def put(client: Any, folder: Path) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), "data", f"set/{path.relative_to(folder)}")
        return "s3://data/set"

    return put
