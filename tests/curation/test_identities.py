"""Who is the same person, under names that stay."""

from __future__ import annotations

import numpy as np

from curation.identities import cluster_identities, keep_names, name_identity


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
    assert identities["clip008"] == name_identity("clip001"), "named after the first of its clips"


def test_order_of_clips_does_not_matter():
    ids, embeddings, _ = people(num_people=5, num_clips=20, noise=0.5)
    order = np.random.default_rng(0).permutation(20)
    again = cluster_identities([ids[k] for k in order], embeddings[order], 0.5)
    assert again == cluster_identities(ids, embeddings, 0.5)


def test_few_clips():
    assert cluster_identities([], np.zeros((0, 128), np.float32), 0.5) == {}
    assert cluster_identities(["a"], np.ones((1, 4), np.float32), 0.5) == {"a": name_identity("a")}


def test_growing_keeps_old_names():
    """Clips that come first by name join old people and make new ones; nobody is renamed."""
    ids, embeddings, who = people(num_people=7, num_clips=40, noise=0.4)
    ids = [i.replace("clip", "a_new" if k % 3 == 0 else "clip") for k, i in enumerate(ids)]
    old = [k for k in range(40) if k % 3 and who[k] < 5]
    before = cluster_identities([ids[k] for k in old], embeddings[old], 0.5)
    after = cluster_identities(ids, embeddings, 0.5, before)
    assert {i: after[i] for i in before} == before
    assert cluster_identities(ids, embeddings, 0.5)[ids[old[0]]] != before[ids[old[0]]], "the test would see renaming"
    assert cluster_identities(ids, embeddings, 0.5, after) == after
    assert len(set(after.values())) == 7


def test_when_two_identities_become_one_the_larger_one_gives_the_name():
    before = {"a": "id_few", "b": "id_many", "c": "id_many"}
    assert keep_names([["a", "b", "c"]], before) == dict.fromkeys("abc", "id_many")
    tie = {"a": "id_z", "b": "id_y"}
    assert keep_names([["a", "b"]], tie) == dict.fromkeys("ab", "id_y")


def test_when_an_identity_is_divided_the_larger_part_keeps_the_name():
    name = name_identity("a")
    before = dict.fromkeys("abc", name)
    assert keep_names([["a"], ["b", "c"]], before) == {"a": f"{name}_2", "b": name, "c": name}, (
        "the name that `a` would get is in use"
    )
    assert keep_names([["a"], ["b"]], dict.fromkeys("ab", "id_old")) == {"a": "id_old", "b": name_identity("b")}


def test_names_never_come_back_for_somebody_else():
    """`b` was named after `a`, which is gone; a new person that starts with `a` gets another name."""
    before = {"b": name_identity("a"), "c": name_identity("a")}
    names = keep_names([["a"], ["b", "c"]], before)
    assert names["b"] == names["c"] == name_identity("a")
    assert names["a"] == f"{name_identity('a')}_2"
    merged = {"b": name_identity("a"), "c": "id_many", "d": "id_many"}
    names = keep_names([["a"], ["b", "c", "d"]], merged)
    assert names == {"a": f"{name_identity('a')}_2"} | dict.fromkeys("bcd", "id_many"), "also where nobody has it now"
    both = {"b": name_identity("a"), "c": f"{name_identity('a')}_2"}
    assert keep_names([["a"], ["b"], ["c"]], both)["a"] == f"{name_identity('a')}_3"
