"""FaceMesh in torch against LiteRT, which labels the shards, on a photograph."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from model.faces import Detections, FacesConfig, load_analyser
from model.keypoints import open_ratios_68
from training.networks.facemesh import MeshLandmarks


@pytest.fixture(scope="module")
def network(models: Path) -> MeshLandmarks:
    return MeshLandmarks(models / "open" / "face_landmark.tflite")


@pytest.fixture(scope="module")
def seen(models: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures uint8 [2, 512, 512, 3] of one face, the second turned; where it is about, and what LiteRT sees, px."""
    analyser = load_analyser(FacesConfig(weights_dir=str(models / "open")))
    photograph = cv2.resize(skimage.data.astronaut()[0:300, 80:380], (512, 512))
    turned = cv2.warpAffine(photograph, cv2.getRotationMatrix2D((256, 256), 25, 0.9), (512, 512))
    near, found = [], []
    for picture in (photograph, turned):
        face = analyser.detect([picture])[0][:1]
        near.append(analyser.landmarks(picture, face).points68[0])
        found.append(analyser.landmarks(picture, Detections.from_points68(near[-1][None])).points68[0])
    return np.stack([photograph, turned]), np.stack(near), np.stack(found)


def to_tensors(pictures: np.ndarray, near: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy((near + 0.5) / 512 * 2 - 1).float()


def test_it_sees_what_litert_sees(network: MeshLandmarks, seen) -> None:
    pictures, near, expected = seen
    with torch.no_grad():
        found = network(*to_tensors(pictures, near))
    assert np.abs((found.numpy() + 1) / 2 * 512 - 0.5 - expected).max() < 0.2


def test_small_pictures_are_enlarged_and_unknown_places_give_nan(network: MeshLandmarks, seen) -> None:
    pictures, near, expected = seen
    images, places = to_tensors(pictures, near)
    small = torch.nn.functional.avg_pool2d(images, 4).requires_grad_()
    places[1] = torch.nan
    found = network(small, places)
    assert np.abs((found[0].detach().numpy() + 1) / 2 * 512 - 0.5 - expected[0]).max() < 6
    assert found[1].isnan().all()
    eyes, lip = open_ratios_68(found)
    (eyes[0].sum() + lip[0].sum()).backward()
    assert small.grad[0].any()
    assert small.grad.isfinite().all()
    assert not small.grad[1].any()


def test_following_the_gradient_opens_the_mouth(network: MeshLandmarks, seen) -> None:
    images, places = to_tensors(*seen[:2])
    images.requires_grad_()
    _, lip = open_ratios_68(network(images, places))
    lip.sum().backward()
    step = torch.nn.functional.normalize(images.grad.flatten(1)).view_as(images)
    with torch.no_grad():
        _, opened = open_ratios_68(network(images + step, places))
    assert (opened > lip).all()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.tflite"
    path.write_bytes(b"not a model at all, but long enough to be read")
    with pytest.raises(ValueError, match="no TFLite file"):
        MeshLandmarks(path)
