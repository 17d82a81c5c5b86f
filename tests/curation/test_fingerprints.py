"""Hashes of a moving face that do not depend on how the picture was cut, scaled or encoded."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from curation.fingerprints import CHANGE_STEPS, MIRROR, MIRROR_CHANGE, FaceHasher

_FLIPPED = np.array(  # iBUG points after mirroring
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37, 36,
     41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)  # fmt: skip


@pytest.fixture(scope="module")
def filmed(make_face68) -> list[tuple[np.ndarray, np.ndarray]]:
    """51 pictures uint8 [512, 512] of a blotchy face that moves and changes, with their landmarks."""
    chance = np.random.default_rng(0)
    blotches = [
        cv2.resize(chance.uniform(0, 255, (24, 24)).astype(np.float32), (512, 512), interpolation=cv2.INTER_CUBIC)
        for _ in range(5)
    ]
    frames = []
    for t in range(51):
        picture = 0.6 * blotches[0] + sum(0.2 * np.sin(t / (2 + k) + k) * blotches[k] for k in range(1, 5))
        shift = np.array([20 * np.sin(t / 9), 12 * np.cos(t / 7)])
        moved = cv2.warpAffine(picture, np.float32([[1, 0, shift[0]], [0, 1, shift[1]]]), (512, 512), borderMode=4)
        frames.append((np.clip(moved, 0, 255).astype(np.uint8), make_face68((256 + shift[0], 256 + shift[1]), 200.0)))
    return frames


def hashes(frames: list[tuple[np.ndarray, np.ndarray]], fps: float | None = 25.0) -> np.ndarray:
    """uint64 [steps, 2]."""
    hasher = FaceHasher(fps)
    for gray, landmarks in frames:
        hasher.add(gray, landmarks)
    return hasher.words().reshape(-1, 2)


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of differing bits of looks and of changes."""
    bits = np.bitwise_count(one ^ other)
    return np.array([bits[:, 0].mean(), bits[CHANGE_STEPS:, 1].mean()]) / 64


def test_two_words_a_fifth_of_a_second(filmed):
    words = hashes(filmed)
    assert words.shape == (10, 2)
    assert words.dtype == np.uint64
    assert (words[:CHANGE_STEPS, 1] == 0).all()
    assert (words[CHANGE_STEPS:, 1] != 0).all()
    assert len(hashes(filmed[:4])) == 0
    assert len(hashes(filmed, fps=30.0)) == 8
    assert len(hashes(filmed[:48], fps=24.0)) == 10, "48 pictures at 24 a second are two seconds"


def test_other_size_cut_and_noise(filmed):
    """A quarter as large, cut asymmetrically, darker, with noise."""
    chance = np.random.default_rng(1)
    changed = []
    for gray, landmarks in filmed:
        small = cv2.resize(gray[40:500, 30:490], (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32)
        small = 0.7 * small + chance.normal(0, 4, small.shape)
        points = (landmarks - (30, 40) + 0.5) * (256 / 460) - 0.5
        changed.append((np.clip(small, 0, 255).astype(np.uint8), points + chance.normal(0, 0.4, points.shape)))
    assert (distance(hashes(filmed), hashes(changed)) < (0.06, 0.12)).all()


def test_other_moments_have_other_changes(filmed):
    words = hashes(filmed)
    look, change = distance(words[:6], words[4:])
    assert change > 0.3
    assert look < change, "it is the same face"


def test_mirrored_picture_has_the_mirrored_hash(filmed):
    mirrored = [(np.ascontiguousarray(g[:, ::-1]), (511 - lm[:, 0], lm[:, 1])) for g, lm in filmed]
    mirrored = [(g, np.stack(points, axis=1)[_FLIPPED]) for g, points in mirrored]
    one, other = hashes(filmed), hashes(mirrored)
    assert (distance(one, other) > 0.3).all()
    assert (distance(one ^ np.array([MIRROR[0], MIRROR_CHANGE]), other) < 0.03).all()
    still, flipped = hashes(filmed[:1], fps=None), hashes(mirrored[:1], fps=None)
    assert np.bitwise_count(still ^ MIRROR ^ flipped).sum() <= 4


def test_a_still_has_one_step(filmed):
    words = hashes(filmed[:1], fps=None)
    assert words.shape == (1, 2)
    assert words[0, 0] == hashes([filmed[0]] * 5)[0, 0], "the same look as a video in which nothing moves"
    assert words[0, 1] != 0


def test_repeats_count_like_pictures(filmed):
    hasher = FaceHasher(25.0)
    for gray, landmarks in filmed[::2]:
        hasher.add(gray, landmarks)
        hasher.repeat()
    doubled = [frame for frame in filmed[::2] for _ in range(2)]
    assert (hasher.words().reshape(-1, 2) == hashes(doubled)).all()
