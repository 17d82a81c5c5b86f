"""The identity loss on real faces: aligned and embedded as the analyser does it, with a gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model import framing
from model.faces.alignment import ARCFACE_POINTS, arcface_crop
from model.faces.schemes import points5_from_points68
from training.losses import IdentityLoss
from training.losses.identity import face_grid, points5_from_landmarks, sample_faces
from training.networks.recogniser import FaceRecogniser, RandomEmbedder, load_recogniser


@pytest.fixture(scope="module")
def identity_loss(sface_folder):
    return IdentityLoss(load_recogniser(weights_dir=sface_folder))


@pytest.fixture(scope="module")
def random_loss():
    return IdentityLoss(FaceRecogniser(RandomEmbedder()))


def align(loss, image, landmarks):
    return sample_faces(image, face_grid(landmarks, loss.template, image.shape[-2:]))


def test_aligned_crop_is_that_of_the_analyser(real_faces, random_loss):
    for face in real_faces:
        expected = arcface_crop(face.crop, points5_from_points68(face.landmarks_px))
        mine = align(random_loss, face.image, face.landmarks)[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(mine - expected).mean() < 2.5  # of 255; the analyser averages blocks, this 2 x 2 samples
        assert np.corrcoef(mine.ravel(), expected.ravel())[0, 1] > 0.99


def test_embedding_in_the_graph_is_that_of_the_analyser(real_faces, identity_loss):
    for face in real_faces:
        embedding = identity_loss.recogniser(align(identity_loss, face.image, face.landmarks))[0]
        assert embedding.numpy() @ face.embedding > 0.995  # measured 0.9976 to 0.9994


@pytest.mark.parametrize("size", [(96, 96), (60, 120)])
def test_alignment_puts_five_points_on_the_template(face_landmarks, random_loss, size):
    """A picture of its own coordinates shows where each output pixel comes from, also when it is not square."""
    height, width = size
    x, y = (torch.arange(n, dtype=torch.float32) for n in (width, height))
    coordinates = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]
    scale = torch.tensor([width, height], dtype=torch.float32)
    angle = 0.3
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    points_px = (face_landmarks @ turn) * min(size) / 2.6 + scale / 2 - 0.5
    aligned = align(random_loss, coordinates, (2 * points_px + 1) / scale - 1)[0].numpy()

    five = points5_from_points68(points_px[0].numpy())
    # Least squares written out: [u, v] = [[a, -b], [b, a]] [x, y] + [c, d].
    rows, values = [], []
    for (px, py), (u, v) in zip(five, ARCFACE_POINTS, strict=True):
        rows += [[px, -py, 1, 0], [py, px, 0, 1]]
        values += [u, v]
    a, b, c, d = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    inverse = np.linalg.inv([[a, -b, c], [b, a, d], [0, 0, 1]])
    for u, v in ((40, 50), (56, 72), (70, 90)):
        expected = inverse @ [u, v, 1]
        np.testing.assert_allclose(aligned[:, v, u], expected[:2], atol=0.02)


def test_five_points_are_those_of_the_model(face_landmarks):
    mine = points5_from_landmarks(face_landmarks)[0]
    np.testing.assert_allclose(mine, points5_from_points68(face_landmarks[0].numpy()), atol=1e-6)


def test_loss_is_one_minus_the_cosine_of_the_analyser(real_faces, identity_loss):
    first, *others = real_faces
    for other in others:
        # Both pictures are aligned by one set of landmarks, so bring the second face onto the first one's.
        moved = framing.warp(other.crop, framing_matrix(other, first), 512)
        embeddings = identity_loss.recogniser(
            torch.cat([align(identity_loss, image, first.landmarks) for image in (first.image, to_tensor(moved))])
        )
        loss = identity_loss(to_tensor(moved), first.image, first.landmarks)
        assert loss.item() == pytest.approx(1 - float(embeddings[0] @ embeddings[1]), abs=1e-5)
        assert loss.item() == pytest.approx(1 - first.embedding @ other.embedding, abs=0.06)
        assert loss > 0.5


def framing_matrix(source, target) -> np.ndarray:
    from model.faces.alignment import similarity_transform

    return similarity_transform(*(points5_from_points68(face.landmarks_px) for face in (source, target)))


def to_tensor(crop: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(crop).permute(2, 0, 1)[None] / 255


def test_same_face_costs_nothing_and_unknown_landmarks_add_zero(real_faces, identity_loss):
    image = torch.cat([face.image for face in real_faces[:2]])
    landmarks = torch.cat([face.landmarks for face in real_faces[:2]])
    assert identity_loss(image, image, landmarks).item() == pytest.approx(0, abs=1e-5)
    other = image.flip(0)
    unknown = landmarks.clone()
    unknown[1, 40, 0] = math.nan
    alone = identity_loss(other[:1], image[:1], landmarks[:1])
    prediction = other.clone().requires_grad_()
    half = identity_loss(prediction, image, unknown)
    assert half.item() == pytest.approx(alone.item() / 2, rel=1e-4)
    half.backward()
    assert prediction.grad.isfinite().all()
    assert prediction.grad[0].abs().max() > 0
    assert prediction.grad[1].abs().max() == 0


def test_following_the_gradient_brings_the_identity_back(real_faces, identity_loss):
    face = real_faces[0]
    noise = torch.randn(face.image.shape, generator=torch.Generator().manual_seed(0))
    prediction = (face.image + 0.15 * noise).clamp(0, 1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        first = identity_loss(prediction, face.image, face.landmarks)
    assert first.dtype == torch.float32
    assert torch.equal(first, identity_loss(prediction, face.image, face.landmarks))
    first.backward()
    assert prediction.grad.isfinite().all()
    step = prediction.detach() - 0.01 * prediction.grad.sign()
    assert identity_loss(step, face.image, face.landmarks) < 0.8 * first.item()
    assert all(value.grad is None for value in identity_loss.recogniser.parameters())


def test_loss_holds_nothing_to_checkpoint(random_loss):
    assert not random_loss.state_dict()
    assert not list(random_loss.parameters())
