"""A small data set in the real layout: two videos of two people (by name) and a still, from one photograph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import skimage.data
import torch

from curation.samples import SampleWriter, encode_label, sample_key
from manifests.schema import make_table
from manifests.store import Dataset, write_parquet
from model.animation.progress import ignore
from model.config import ModelConfig
from model.faces import FaceAnalyser, FacesConfig, eye_openness, lip_openness, load_analyser
from model.networks import LivePortrait
from training.evaluation.evaluate import Evaluate, evaluate

SIZE_PX = 512
CLIPS = (("aa_0", "anna", 7, False), ("bb_0", "bert", 6, True), ("cc_0", "carl", 1, False))
"""Clip, identity, frames, mirrored."""


@pytest.fixture(scope="session")
def faces(models: Path) -> FacesConfig:
    return FacesConfig(weights_dir=str(models / "open"))


@pytest.fixture(scope="session")
def analyser(faces: FacesConfig) -> FaceAnalyser:
    return load_analyser(faces)


def moved_photograph(num_frames: int, mirrored: bool) -> np.ndarray:
    """uint8 [T, 512, 512, 3]: an astronaut before a swaying camera."""
    picture = skimage.data.astronaut()
    picture = np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture
    center = (picture.shape[1] - 225.0 if mirrored else 225.0, 150.0)
    frames = []
    for k in range(num_frames):
        matrix = cv2.getRotationMatrix2D(center, 6 * math.sin(k), 1.6)
        matrix[:, 2] += np.array([SIZE_PX / 2 + 9 * math.sin(0.7 * k), SIZE_PX / 2 - 20]) - center
        frames.append(cv2.warpAffine(picture, matrix, (SIZE_PX, SIZE_PX), borderMode=cv2.BORDER_REPLICATE))
    return np.stack(frames)


@pytest.fixture(scope="session")
def dataset(analyser: FaceAnalyser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything in the split `test`. Not to be changed."""
    folder = tmp_path_factory.mktemp("evaluation") / "people"
    rows = []
    (folder / "shards").mkdir(parents=True)
    with open(folder / "shards/test-000000.tar", "wb") as file:
        writer = SampleWriter(file)
        for clip_id, identity, num_frames, mirrored in CLIPS:
            row = {"clip_id": clip_id, "kind": "video" if num_frames > 1 else "still", "num_frames": num_frames}
            row |= {"identity_id": identity, "split": "test", "decision": "keep", "shard": "test-000000.tar"}
            places = {name: [] for name in ("frame_offsets", "frame_sizes", "label_offsets", "label_sizes")}
            for k, frame in enumerate(moved_photograph(num_frames, mirrored)):
                jpeg = simplejpeg.encode_jpeg(frame, quality=95, colorspace="RGB")
                found = analyser.landmarks(frame, analyser.detect([frame])[0][:1])
                yaw, pitch, roll = found.pose_deg[0].tolist()
                eyes, lip = eye_openness(found.points68)[0].tolist(), float(lip_openness(found.points68)[0])
                label = encode_label(
                    {
                        "clip_id": clip_id,
                        "frame": k,
                        "identity": identity,
                        "landmarks": found.points68[0].tolist(),
                        "yaw_deg": yaw,
                        "pitch_deg": pitch,
                        "roll_deg": roll,
                        "eye_openness_right": eyes[0],
                        "eye_openness_left": eyes[1],
                        "lip_openness": lip,
                    }
                )
                for kind, suffix, data in (("frame", ".jpg", jpeg), ("label", ".json", label)):
                    places[f"{kind}_offsets"].append(writer.add(sample_key(clip_id, k) + suffix, data))
                    places[f"{kind}_sizes"].append(len(data))
            rows.append(row | places)
        writer.finish()
    write_parquet(Dataset(folder).table_folder("clips") / "clips.parquet", make_table("clips", rows))
    shard = {"shard": "test-000000.tar", "size_bytes": (folder / "shards/test-000000.tar").stat().st_size}
    write_parquet(Dataset(folder).table_folder("shards") / "shards.parquet", make_table("shards", [shard]))
    (folder / "recipe.toml").write_text('hash = "0badcafe"\n')
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder with a tiny network whose stitching and retargeting do something, at random."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    portrait = LivePortrait.untrained(config=ModelConfig.tiny())
    generator = torch.Generator().manual_seed(1)
    for network in (portrait.stitching, portrait.retarget_eye, portrait.retarget_lip):
        for parameter in network.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    portrait.save(folder)
    return folder


@pytest.fixture(scope="session")
def evaluation(options: Evaluate) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and pictures of everything. Not to be changed."""
    return evaluate(options, ignore)


@pytest.fixture(scope="session")
def options(dataset: Path, faces: FacesConfig, weights: Path) -> Evaluate:
    return Evaluate(
        weights=weights, data=str(dataset), faces=faces, eye_sweep=(0.1, 0.3, 0.5), lip_sweep=(0.0, 0.4, 0.8)
    )
