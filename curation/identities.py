"""Who is the same person across clips and sources, and which split each of them belongs to."""

from __future__ import annotations

import hashlib

import numpy as np
from sklearn.cluster import AgglomerativeClustering


def cluster_identities(clip_ids: list[str], embeddings: np.ndarray, similarity: float) -> dict[str, str]:
    """Identity of each clip: clips whose mean embeddings are alike are one person.

    Average-linkage clustering at a cosine distance of 1 - `similarity`; an identity is named after the first of its
    clips. embeddings: float32 [n, D], unit length.
    """
    if not clip_ids:
        return {}
    order = np.argsort(clip_ids)
    labels = np.zeros(1, int)
    if len(clip_ids) > 1:
        clustering = AgglomerativeClustering(
            n_clusters=None, metric="cosine", linkage="average", distance_threshold=1 - similarity
        )
        labels = clustering.fit_predict(embeddings[order])
    first: dict[int, str] = {}
    identities = {}
    for position, label in zip(order, labels, strict=True):
        identities[clip_ids[position]] = first.setdefault(label, f"id_{clip_ids[position]}")
    return identities


def assign_splits(
    groups: list[tuple[str, ...]], clip_ids: list[str], seed: int, val_share: float, test_share: float
) -> dict[str, str]:
    """Split of each clip; clips that share any key of their group (identity, source) share the split.

    Linked clips form components; a component's place on [0, 1) is a hash of the seed and its smallest clip id, so that
    every person and every source is in one split only.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for clip_id, keys in zip(clip_ids, groups, strict=True):
        for key in keys:
            one, other = sorted((root(f"0 {clip_id}"), root(f"1 {key}")))  # so a component's root is its smallest clip
            parent[other] = one
    splits = {}
    for clip_id in clip_ids:
        digest = hashlib.sha256(f"{seed} {root(f'0 {clip_id}')}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        splits[clip_id] = "test" if place < test_share else "val" if place < test_share + val_share else "train"
    return splits
