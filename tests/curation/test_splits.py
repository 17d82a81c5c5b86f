"""Splits that share no person, source or footage, and that stay when data is added."""

from __future__ import annotations

from collections import Counter

import numpy as np

from curation.splits import Shares, group_clips, groups_of_splits

SHARES = Shares(seed=0, val_share=0.2, test_share=0.2)


def splits_of(clip_ids: list[str], keys: list[tuple[str, ...]], shares: Shares = SHARES) -> dict[str, str]:
    return {clip: shares.split_of(group) for clip, group in group_clips(clip_ids, keys, {}, shares).items()}


def test_splits_share_no_identity_and_no_source():
    chance = np.random.default_rng(1)
    clip_ids = [f"c{k:04d}" for k in range(1500)]
    keys = [(f"source{chance.integers(900)}", f"id{chance.integers(2000)}") for _ in clip_ids]
    splits = splits_of(clip_ids, keys)
    assert set(splits) == set(clip_ids)
    assert len(set(splits.values())) == 3
    by_key: dict[str, set[str]] = {}
    for clip_id, shared in zip(clip_ids, keys, strict=True):
        for key in shared:
            by_key.setdefault(key, set()).add(splits[clip_id])
    assert all(len(found) == 1 for found in by_key.values())


def test_shares_are_met():
    clip_ids = [f"c{k:05d}" for k in range(20000)]
    keys = [(f"source{k}",) for k in range(20000)]
    counts = Counter(splits_of(clip_ids, keys, Shares(seed=0, val_share=0.05, test_share=0.02)).values())
    assert abs(counts["val"] / 20000 - 0.05) < 0.006
    assert abs(counts["test"] / 20000 - 0.02) < 0.004
    assert set(splits_of(clip_ids, keys, Shares(seed=0, val_share=0.0, test_share=0.0)).values()) == {"train"}


def test_splits_depend_on_the_seed_and_not_on_the_order():
    clip_ids = [f"c{k}" for k in range(300)]
    keys = [(f"s{k // 2}", f"i{k // 3}") for k in range(300)]
    splits = splits_of(clip_ids, keys)
    assert splits_of(clip_ids[::-1], keys[::-1]) == splits
    assert splits_of(clip_ids, keys, Shares(seed=1, val_share=0.2, test_share=0.2)) != splits


def test_larger_shares_move_only_what_they_need():
    clip_ids = [f"c{k}" for k in range(500)]
    keys = [(f"s{k}",) for k in range(500)]
    before = splits_of(clip_ids, keys)
    after = splits_of(clip_ids, keys, Shares(seed=0, val_share=0.25, test_share=0.2))
    moved = Counter((before[c], after[c]) for c in clip_ids if before[c] != after[c])
    assert set(moved) == {("train", "val")}
    assert 10 < moved["train", "val"] < 45


def test_growing_moves_nobody():
    """New clips of old and new people and sources, among them such that come first by name."""
    chance = np.random.default_rng(3)
    clip_ids = [f"m{k:03d}" for k in range(400)]
    keys = [(f"s{k // 2}", f"i{k // 2}") for k in range(400)]
    before = group_clips(clip_ids, keys, {}, SHARES)
    more_ids = [f"{letter}{k:03d}" for letter in "az" for k in range(300)]
    more_keys = [(f"new{k}", f"i{chance.integers(400)}") for k, _ in enumerate(more_ids)]
    after = group_clips([*more_ids, *clip_ids], [*more_keys, *keys], before, SHARES)
    assert {c: after[c] for c in clip_ids} == before
    for clip, (_, person) in zip(more_ids, more_keys, strict=True):
        if int(person[1:]) < 200:
            assert after[clip] == before[f"m{2 * int(person[1:]):03d}"], "with the person that it shows"


def test_a_new_link_draws_clips_towards_train():
    """Whatever two groups a new clip links, nothing that was in train comes to val or test."""
    clip_ids = [f"c{k:03d}" for k in range(60)]
    keys = [(f"s{k}",) for k in range(60)]
    before = group_clips(clip_ids, keys, {}, SHARES)
    seen = set()
    for one in range(60):
        for other in range(one):
            link = ("a", (f"s{one}", f"s{other}"))
            after = group_clips([*clip_ids, link[0]], [*keys, link[1]], before, SHARES)
            was = {SHARES.split_of(before[f"c{k:03d}"]) for k in (one, other)}
            assert after["a"] == after[f"c{one:03d}"] == after[f"c{other:03d}"]
            assert SHARES.split_of(after["a"]) == next(s for s in ("train", "val", "test") if s in was)
            seen.add(frozenset(was))
            untouched = [c for k, c in enumerate(clip_ids) if k not in (one, other)]
            assert [after[c] for c in untouched] == [before[c] for c in untouched]
    assert len(seen) == 6


def test_the_larger_group_of_one_split_gives_the_name():
    train = Shares(seed=0, val_share=0.0, test_share=0.0)
    keys = [("s",)] * 4
    assert group_clips(list("abcd"), keys, {"a": "g1", "b": "g2", "c": "g2"}, train) == dict.fromkeys("abcd", "g2")
    assert group_clips(list("abcd"), keys, {"a": "g2", "b": "g1"}, train) == dict.fromkeys("abcd", "g1")


def test_a_lost_link_leaves_both_parts_where_they_are():
    keys = [("s1", "i1"), ("s2", "i1"), ("s2", "i2")]
    before = group_clips(["a", "b", "c"], keys, {}, SHARES)
    assert len(set(before.values())) == 1
    assert group_clips(["a", "c"], [keys[0], keys[2]], before, SHARES) == {k: before[k] for k in "ac"}


def test_splits_from_before_groups_were_written_stay():
    clip_ids = [f"c{k:03d}" for k in range(90)]
    keys = [(f"s{k // 3}",) for k in range(90)]
    old = [("train", "val", "test")[k // 3 % 3] for k in range(90)]
    groups = groups_of_splits(clip_ids, keys, old, SHARES)
    assert [SHARES.split_of(groups[c]) for c in clip_ids] == old
    assert len(set(groups.values())) == 30
    without_val = Shares(seed=0, val_share=0.0, test_share=0.2)
    given_up = groups_of_splits(clip_ids, keys, old, without_val)
    assert {without_val.split_of(g) for g in given_up.values()} <= {"train", "test"}


def test_names_of_groups_do_not_contain_clips():
    assert "secret" not in "".join(group_clips(["secret"], [("s",)], {}, SHARES).values())
