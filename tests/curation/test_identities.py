"""Who is the same person, and splits that share nobody."""

from __future__ import annotations

import numpy as np

from curation.identities import assign_splits, cluster_identities


def people(num_people: int, num_clips: int, noise: float) -> tuple[list[str], np.ndarray, list[int]]:
    """Clips of some people whose embeddings differ a little from clip to clip."""
    chance = np.random.default_rng(5)
    faces = chance.normal(size=(num_people, 128))
    who = [k % num_people for k in range(num_clips)]
    embeddings = faces[who] + noise * chance.normal(size=(num_clips, 128))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return [f"clip{k:03d}" for k in range(num_clips)], embeddings.astype(np.float32), who


def test_clips_of_a_person_are_one_identity():
    ids, embeddings, who = people(num_people=7, num_clips=40, noise=0.4)
    identities = cluster_identities(ids, embeddings, 0.5)
    for one in range(40):
        for other in range(one):
            assert (identities[ids[one]] == identities[ids[other]]) == (who[one] == who[other])
    assert identities["clip008"] == "id_clip001", "named after the first of its clips"


def test_order_of_clips_does_not_matter():
    ids, embeddings, _ = people(num_people=5, num_clips=20, noise=0.5)
    order = np.random.default_rng(0).permutation(20)
    again = cluster_identities([ids[k] for k in order], embeddings[order], 0.5)
    assert again == cluster_identities(ids, embeddings, 0.5)


def test_few_clips():
    assert cluster_identities([], np.zeros((0, 128), np.float32), 0.5) == {}
    assert cluster_identities(["a"], np.ones((1, 4), np.float32), 0.5) == {"a": "id_a"}


def test_splits_share_no_identity_and_no_source():
    chance = np.random.default_rng(1)
    clip_ids = [f"c{k:04d}" for k in range(1500)]
    groups = [(f"source{chance.integers(600)}", f"id{chance.integers(600)}") for _ in clip_ids]
    splits = assign_splits(groups, clip_ids, 0, 0.2, 0.2)
    assert set(splits) == set(clip_ids)
    by_key: dict[str, set[str]] = {}
    for clip_id, keys in zip(clip_ids, groups, strict=True):
        for key in keys:
            by_key.setdefault(key, set()).add(splits[clip_id])
    assert all(len(found) == 1 for found in by_key.values())


def test_shares_are_met():
    clip_ids = [f"c{k:05d}" for k in range(20000)]
    groups = [(f"source{k}",) for k in range(20000)]
    splits = list(assign_splits(groups, clip_ids, 0, 0.05, 0.02).values())
    assert abs(splits.count("val") / 20000 - 0.05) < 0.006
    assert abs(splits.count("test") / 20000 - 0.02) < 0.004
    assert set(assign_splits(groups, clip_ids, 0, 0.0, 0.0).values()) == {"train"}


def test_splits_depend_on_the_seed_and_on_nothing_else():
    clip_ids = [f"c{k}" for k in range(300)]
    groups = [(f"s{k // 2}", f"i{k // 3}") for k in range(300)]
    splits = assign_splits(groups, clip_ids, 0, 0.2, 0.2)
    backwards = assign_splits(groups[::-1], clip_ids[::-1], 0, 0.2, 0.2)
    assert backwards == splits
    assert assign_splits(groups, clip_ids, 1, 0.2, 0.2) != splits


def test_a_new_clip_leaves_the_others_where_they_are():
    clip_ids = [f"c{k}" for k in range(200)]
    groups = [(f"s{k}",) for k in range(200)]
    splits = assign_splits(groups, clip_ids, 0, 0.2, 0.2)
    more = assign_splits([*groups, ("s_new",)], [*clip_ids, "c_new"], 0, 0.2, 0.2)
    assert {k: v for k, v in more.items() if k != "c_new"} == splits
