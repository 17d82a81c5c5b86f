"""Average linkage without a matrix of distances."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from curation.linkage import _Clusters, average_linkage


def draw(num_people: int, num: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32 [num, 128] around `num_people` random ones, and whose each of them is."""
    chance = np.random.default_rng(seed)
    people = chance.normal(size=(num_people, 128))
    who = np.concatenate([np.arange(num_people), chance.integers(0, num_people, num - num_people)])
    vectors = people[who] + noise * chance.normal(size=(num, 128))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), who


def pairwise_f1(found: np.ndarray, truth: np.ndarray) -> float:
    """F1 over all pairs of vectors: in one cluster or not."""

    def num_pairs(labels: np.ndarray) -> int:
        counts = np.unique(labels, return_counts=True)[1]
        return int((counts * (counts - 1) // 2).sum())

    both = num_pairs(found.astype(np.int64) * (int(truth.max()) + 1) + truth)
    return 2 * both / (num_pairs(found) + num_pairs(truth))


@pytest.mark.parametrize("noise", [0.5, 0.9, 1.3])
def test_equals_scikit_learn(noise):
    """Also where people overlap and clusters chain."""
    vectors, _ = draw(num_people=120, num=700, noise=noise)
    theirs = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=0.5
    ).fit_predict(vectors)
    assert pairwise_f1(average_linkage(vectors, 0.5), theirs) == 1.0
    assert len(np.unique(theirs)) < 700


def test_numbered_by_first_appearance():
    vectors, who = draw(num_people=9, num=60, noise=0.4)
    order = np.random.default_rng(1).permutation(60)
    labels = average_linkage(vectors[order], 0.5)
    first = [int(np.flatnonzero(labels == k)[0]) for k in range(9)]
    assert first == sorted(first)
    assert pairwise_f1(labels, who[order]) == 1.0


def test_nearly_identical_vectors():
    """Similarities differ by rounding only, so that who is whose nearest goes in circles."""
    people, _ = draw(num_people=6, num=6, noise=0.0)
    chance = np.random.default_rng(2)
    vectors = np.repeat(people, 40, axis=0) + chance.normal(size=(240, 128)) * 1e-6
    labels = average_linkage(vectors.astype(np.float32), 0.5)
    assert labels.tolist() == np.repeat(np.arange(6), 40).tolist()


def test_identical_vectors():
    """All similarities are ties."""
    vectors = np.repeat(np.eye(4, dtype=np.float32)[:3], 5000, axis=0)
    assert average_linkage(vectors, 0.9).tolist() == [0] * 5000 + [1] * 5000 + [2] * 5000
    assert average_linkage(vectors[:1], 0.9).tolist() == [0]
    near = np.array([[1, 0], [1, 0], [1, 0], [0.8, 0.6], [0.26, 0.9656]], np.float32)
    assert average_linkage(near, 0.5).tolist() == [0, 0, 0, 0, 1], "0.26 to three of four, 0.79 to one"
    assert average_linkage(np.array([[1, 0], [0.5, 0.75**0.5]]), 0.5).tolist() == [0, 0], "0.5 is at least 0.5"


class OneWay:
    """Cells that show the last vector to all others, and nobody to the last."""

    def tiles(self, means: np.ndarray, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(rows[:-1], rows[-1:])]


def test_a_cluster_hears_of_the_nearest_that_cells_hid_from_it():
    vectors = np.array([[0.8, 0.6], [0.96, 0.28], [0.0, 1.0], [1.0, 0.0]], np.float32)  # 0.8, 0.96, 0 from the last
    state = _Clusters(vectors, np.ones(4, int))
    state.find_nearest(OneWay())
    state.drop_finished(0.5)
    assert state.names.tolist() == [0, 1, 3]
    assert [pair.tolist() for pair in state.mutual_pairs()] == [[1], [2]]


def test_cells_find_the_same_people():
    """10,000 clips of 2,000 people with the spread of real ones, beyond the limit for comparing all pairs."""
    vectors, who = draw(num_people=2000, num=10_000, noise=0.6)
    labels = average_linkage(vectors, 0.5, exact_limit=1000)
    assert pairwise_f1(labels, who) >= 0.995
    assert (average_linkage(vectors, 0.5, exact_limit=1000) == labels).all()
