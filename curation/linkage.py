"""Average-linkage clustering of unit vectors in memory that grows with their number, not with its square.

The mean cosine between the members of two clusters is the dot product of the clusters' mean vectors, so no matrix of
distances is kept: 50,000 clips would need 10 GB of it, and scikit-learn's AgglomerativeClustering copies it once.
Clusters that are each other's nearest are merged together, round after round. Average linkage is reducible (a merged
cluster is nowhere nearer than the nearer of its parts), so the result is that of merging one closest pair at a time
(F. Murtagh, "A survey of recent advances in hierarchical clustering algorithms", 1983).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

EXACT_LIMIT = 50_000
"""Up to so many vectors every pair is compared; beyond, only pairs in neighbouring cells."""

_TILE = 2048
_VECTORS_PER_CELL = 400
_NUM_PROBES = 32


def average_linkage(vectors: np.ndarray, similarity: float, *, exact_limit: int = EXACT_LIMIT) -> np.ndarray:
    """Cluster of each vector: int [n], numbered by first appearance.

    Clusters are merged while the mean cosine between their members is at least `similarity`. vectors: float [n, D] of
    unit length. Beyond `exact_limit` vectors a cluster is compared with those in the cells nearest to its mean only.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    distinct, owner, counts = np.unique(_rows_as_items(vectors), return_inverse=True, return_counts=True)
    vectors = distinct.view(np.float32).reshape(len(distinct), -1)
    num = len(vectors)  # owner: of each vector given the cluster it is in, named by one of its distinct vectors
    state = _Clusters(vectors, counts)
    coarse = _Cells(vectors) if num > exact_limit else None
    while len(state.names) > 1:
        state.find_nearest(coarse)
        state.drop_finished(similarity)
        if not len(state.names):
            break
        one, other = state.mutual_pairs()
        owner_of = np.arange(num)
        owner_of[state.names[other]] = state.names[one]
        owner = owner_of[owner]
        state.merge(one, other)
    _, first, labels = np.unique(owner, return_index=True, return_inverse=True)
    rank = np.empty(len(first), int)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[labels]


def _rows_as_items(vectors: np.ndarray) -> np.ndarray:
    """[n]: rows that compare by their bytes: equal vectors, all nearest to each other, are one cluster at once."""
    return vectors.view(np.dtype((np.void, vectors.dtype.itemsize * vectors.shape[1]))).ravel()


class _Clusters:
    """The clusters that may still grow, each with its nearest other one."""

    def __init__(self, vectors: np.ndarray, counts: np.ndarray) -> None:
        self.names = np.arange(len(vectors))
        self._sizes = counts.astype(np.float64)
        self._sums = vectors.astype(np.float64) * self._sizes[:, None]
        self._nearest = np.zeros(len(vectors), int)
        self._cosine = np.full(len(vectors), -np.inf, np.float32)
        self._is_stale = np.ones(len(vectors), bool)

    def find_nearest(self, coarse: _Cells | None) -> None:
        """Find the nearest cluster of those for which it is not known."""
        means = (self._sums / self._sizes[:, None]).astype(np.float32)
        stale = np.flatnonzero(self._is_stale)
        self._cosine[stale] = -np.inf
        tiles = coarse.tiles(means, stale) if coarse else _all_tiles(len(means), stale)
        for rows, columns in tiles:
            cosines = means[rows] @ means[columns].T
            cosines[rows[:, None] == columns[None]] = -np.inf
            best = cosines.argmax(1)
            cosine = cosines[np.arange(len(rows)), best]
            is_nearer = cosine > self._cosine[rows]
            self._cosine[rows[is_nearer]] = cosine[is_nearer]
            self._nearest[rows[is_nearer]] = columns[best[is_nearer]]
        self._is_stale[:] = False
        self._tell_back()

    def _tell_back(self) -> None:
        """A cluster is as near as its neighbour says, also where cells or rounding hid that from it."""
        known = np.flatnonzero(self._cosine > -np.inf)
        order = known[np.lexsort((known, -self._cosine[known]))]
        target, first = np.unique(self._nearest[order], return_index=True)
        teller = order[first]
        is_nearer = self._cosine[teller] > self._cosine[target]
        self._nearest[target[is_nearer]] = teller[is_nearer]
        self._cosine[target[is_nearer]] = self._cosine[teller[is_nearer]]

    def drop_finished(self, similarity: float) -> None:
        """Clusters with nobody near enough never get a nearer neighbour: they leave."""
        keeps = self._cosine >= similarity
        place = np.cumsum(keeps) - 1
        self._nearest = place[self._nearest]
        self._select(keeps)

    def _select(self, keeps: np.ndarray) -> None:
        for name in ("names", "_sums", "_sizes", "_nearest", "_cosine", "_is_stale"):
            setattr(self, name, getattr(self, name)[keeps])

    def mutual_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Clusters that are each other's nearest.

        Among equals rounding may send everybody in a circle: then the nearest pair of all.
        """
        here = np.arange(len(self.names))
        is_mutual = (self._nearest[self._nearest] == here) & (here < self._nearest)
        if not is_mutual.any():
            one = np.array([self._cosine.argmax()])
            return one, self._nearest[one]
        return here[is_mutual], self._nearest[is_mutual]

    def merge(self, one: np.ndarray, other: np.ndarray) -> None:
        """Join pairs of clusters. Those that were near to one of them must look again."""
        self._sums[one] += self._sums[other]
        self._sizes[one] += self._sizes[other]
        touched = np.zeros(len(self.names), bool)
        touched[one] = touched[other] = True
        self._is_stale |= touched | touched[self._nearest]
        keeps = np.ones(len(self.names), bool)
        keeps[other] = False
        self._nearest = (np.cumsum(keeps) - 1)[self._nearest]
        self._select(keeps)


def _all_tiles(num: int, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(rows), _TILE):
        for first in range(0, num, 4 * _TILE):
            yield rows[start : start + _TILE], np.arange(first, min(first + 4 * _TILE, num))


class _Cells:
    """A coarse division of the sphere; vectors that are alike are in the same cell or in one nearby."""

    def __init__(self, vectors: np.ndarray) -> None:
        from sklearn.cluster import MiniBatchKMeans

        num_cells = max(2 * _NUM_PROBES, len(vectors) // _VECTORS_PER_CELL)
        means = MiniBatchKMeans(num_cells, batch_size=4096, max_iter=10, n_init=1, random_state=0, init="random")
        centers = means.fit(vectors).cluster_centers_.astype(np.float32)
        self._centers = centers / np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-6)

    def tiles(self, means: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of row and column indices: each row meets the clusters in the cells that it is nearest to."""
        probes = np.concatenate(
            [self._nearest_cells(means[start : start + _TILE]) for start in range(0, len(means), _TILE)]
        )
        columns_of = _groups(probes[:, 0], np.arange(len(means)), len(self._centers))
        asking = probes[rows].ravel()
        rows_of = _groups(asking, np.repeat(rows, probes.shape[1]), len(self._centers))
        for rows_here, columns in zip(rows_of, columns_of, strict=True):
            if len(rows_here) and len(columns):
                for start in range(0, len(rows_here), 4 * _TILE):
                    yield rows_here[start : start + 4 * _TILE], columns

    def _nearest_cells(self, means: np.ndarray) -> np.ndarray:
        """int [n, probes]: the cells that each mean is nearest to, the nearest first."""
        cosines = means @ self._centers.T
        probes = np.argpartition(-cosines, _NUM_PROBES - 1, axis=1)[:, :_NUM_PROBES]
        order = np.argsort(-np.take_along_axis(cosines, probes, 1), axis=1, kind="stable")
        return np.take_along_axis(probes, order, 1)


def _groups(keys: np.ndarray, values: np.ndarray, num: int) -> list[np.ndarray]:
    """`values` by key 0 .. num - 1."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, num)))
