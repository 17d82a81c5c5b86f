"""Who is the same person across clips and sources, under names that stay when the data set grows.

Clips are clustered by their mean embeddings (`curation.linkage`). How alike two clips of one person are depends on the
network: `model.faces` holds a value for each embedder, and `select.identity_similarity` overrides it. For SFace (the
`open` analyser) it is 0.5, between what 70 real clips show: one person in two pictures 0.67 to 0.90, inside a clip 0.61
and more; two people 0.10 +- 0.09, at most 0.43 in 2,406 pairs. For ArcFace (`insightface`) it is 0.4, as published.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np

from curation.linkage import average_linkage


def cluster_identities(
    clip_ids: list[str], embeddings: np.ndarray, similarity: float, previous: dict[str, str] | None = None
) -> dict[str, str]:
    """Identity of each clip: clips whose mean embeddings are alike are one person.

    embeddings: float32 [n, D], unit length. similarity: least mean cosine inside an identity. previous: the identities
    that clips had before; see `keep_names`.
    """
    order = np.argsort(clip_ids)
    labels = average_linkage(np.asarray(embeddings)[order], similarity) if clip_ids else []
    people: dict[int, list[str]] = {}
    for position, label in zip(order, labels, strict=True):
        people.setdefault(int(label), []).append(clip_ids[position])
    return keep_names(list(people.values()), previous or {})


def keep_names(people: list[list[str]], previous: dict[str, str]) -> dict[str, str]:
    """Identity of each clip, named as before where that is possible.

    people: the clips of each person, sorted. previous: clip -> identity of an earlier selection.

    A person keeps the old name that most of its clips had; where two persons claim a name the one with more of its
    clips gets it, then the one with the smaller first clip. So when two identities prove to be one person, the larger
    one's name stays; when one is divided, its larger part keeps the name. Everybody else is named after the first of
    their clips whose name was never in use.
    """
    claims = []
    for number, clips in enumerate(people):
        counts = Counter(previous[clip] for clip in clips if clip in previous)
        claims += [(-count, clips[0], old, number) for old, count in counts.items()]
    names: dict[int, str] = {}
    taken = set()
    for _, _, old, number in sorted(claims):
        if number not in names and old not in taken:
            names[number] = old
            taken.add(old)
    taken |= set(previous.values())
    for number, clips in enumerate(people):
        if number not in names:
            names[number] = _new_name(clips, taken)
    return {clip: names[number] for number, clips in enumerate(people) for clip in clips}


def name_identity(clip_id: str) -> str:
    """An identity's id from its first clip; it does not contain the clip's, which may have to be forgotten."""
    return f"id_{hashlib.sha256(clip_id.encode()).hexdigest()[:16]}"


def _new_name(clips: list[str], taken: set[str]) -> str:
    for clip in clips:
        if name_identity(clip) not in taken:
            return name_identity(clip)
    number = 2
    while f"{name_identity(clips[0])}_{number}" in taken:
        number += 1
    return f"{name_identity(clips[0])}_{number}"
