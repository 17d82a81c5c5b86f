"""Quality, time and memory of identity clustering on made embeddings with the spread of real ones.

    python -m tests.benchmarks.identities                              # 100,000 clips of 20,000 people
    python -m tests.benchmarks.identities --num-clips 50000 --num-people 10000
    python -m tests.benchmarks.identities --dataset ~/dataset          # the clips of a data set among them

The made embeddings follow what SFace shows on real clips: two people 0.10 +- 0.09 (largest of 2,400 pairs 0.43), one
person in two recordings about 0.7, two clips of one recording 0.87. How much recordings differ varies from one to the
next, and so does the number of clips of a person.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from curation.linkage import EXACT_LIMIT, average_linkage
from manifests.store import Dataset, read_table

_SIZE = 128
_SIMILARITY = 0.5


def draw_people(num_people: int, num_clips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 [num_clips, 128] of unit length, and whose each is: int [num_clips].

    Everybody has at least one clip; the rest is drawn by a power law. A recording has about two clips.
    """
    chance = np.random.default_rng(seed)
    spectrum = np.arange(1, _SIZE + 1) ** -0.25  # people differ more along some directions than along others
    people = _unit(chance.normal(size=(num_people, _SIZE)) * spectrum)
    people = _unit(np.sqrt(0.86) * people + np.sqrt(0.14) * _unit(chance.normal(size=_SIZE)))  # all are faces
    fame = (chance.permutation(num_people) + 10.0) ** -0.7
    who = np.concatenate(
        [np.arange(num_people), chance.choice(num_people, num_clips - num_people, p=fame / fame.sum())]
    )
    recording = np.unique(
        np.stack([who, chance.integers(0, np.maximum(np.bincount(who)[who] // 2, 1))]), axis=1, return_inverse=True
    )[1].ravel()
    strength = 0.49 * np.exp(chance.normal(0.0, 0.3, recording.max() + 1))
    circumstances = _unit(chance.normal(size=(recording.max() + 1, _SIZE))) * strength[:, None]
    moments = _unit(chance.normal(size=(num_clips, _SIZE))) * 0.39
    return _unit(_unit(people[who] + circumstances[recording]) + moments).astype(np.float32), who


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def pairwise_scores(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 over all pairs of clips: one person or two."""

    def num_pairs(labels: np.ndarray) -> int:
        counts = np.unique(labels, return_counts=True)[1]
        return int((counts * (counts - 1) // 2).sum())

    both = num_pairs(found.astype(np.int64) * (int(truth.max()) + 1) + truth)
    precision, recall = both / max(num_pairs(found), 1), both / max(num_pairs(truth), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)


def print_spread(vectors: np.ndarray, who: np.ndarray) -> None:
    """Print how alike the made clips are, so that it can be compared with real ones."""
    chance = np.random.default_rng(1)
    one, other = chance.integers(0, len(who), (2, 2_000_000))
    apart = who[one] != who[other]
    cosine = np.einsum("nd,nd->n", vectors[one[apart][:200_000]], vectors[other[apart][:200_000]])
    order = np.argsort(who, kind="stable")
    together = who[order][1:] == who[order][:-1]
    same = np.einsum("nd,nd->n", vectors[order][1:][together], vectors[order][:-1][together])
    print(f"two people  mean {cosine.mean():.3f} +- {cosine.std():.3f}, 99.9 % below {np.quantile(cosine, 0.999):.3f}")
    print(f"one person  median {np.median(same):.3f}, 1 % below {np.quantile(same, 0.01):.3f}")


def measure(name: str, vectors: np.ndarray, who: np.ndarray, exact_limit: int) -> np.ndarray:
    """Cluster once and print how good, how fast and in how much memory."""
    start = time.perf_counter()
    labels = average_linkage(vectors, _SIMILARITY, exact_limit=exact_limit)
    wall_s = time.perf_counter() - start
    precision, recall, f1 = pairwise_scores(labels[: len(who)], who)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{name:12} {len(vectors)} clips, {labels.max() + 1} found of {who.max() + 1} people:"
        f" precision {precision:.5f} recall {recall:.5f} F1 {f1:.5f}, {wall_s:.1f} s, peak {peak_gb:.2f} GB"
    )
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-clips", type=int, default=100_000)
    parser.add_argument("--num-people", type=int, default=20_000)
    parser.add_argument("--dataset", type=Path, help="adds the clips of this data set and says what becomes of them")
    parser.add_argument("--exact", action="store_true", help="compare all pairs too, whatever the number")
    options = parser.parse_args()
    vectors, who = draw_people(options.num_people, options.num_clips)
    print_spread(vectors, who)
    real = np.zeros((0, _SIZE), np.float32)
    if options.dataset:
        column = read_table(Dataset(options.dataset.expanduser()), "clips", ["embedding"])["embedding"].drop_null()
        real = np.array(column.to_pylist(), np.float32)
    everything = np.concatenate([vectors, real])
    ways = {"as select does": EXACT_LIMIT} | ({"all pairs": len(everything)} if options.exact else {})
    alone = average_linkage(real, _SIMILARITY)
    for name, exact_limit in ways.items():
        labels = measure(name, everything, who, exact_limit)
        if len(real):
            among = labels[len(who) :]
            same = (alone[:, None] == alone) == (among[:, None] == among)
            print(
                f"{'':12} {len(real)} real clips: {int((~same).sum()) // 2} of {len(real) * (len(real) - 1) // 2} pairs"
                f" otherwise than alone, {np.isin(among, labels[: len(who)]).sum()} with made people"
            )


if __name__ == "__main__":
    main()
