"""Order of samples: a pure function, exact shares, weights kept, frames far enough apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest

from training.base import BaseRecipe
from training.data.clips import open_index
from training.data.draws import draw_bits, draw_uniform, shuffled, uniform_of_each
from training.data.pairs import PairOptions, PairOrder, _fit, num_training_frames, share_of_stills
from training.data.storage import DatasetStorage
from training.motion import MotionRecipe
from training.recipe import load_recipe


@pytest.fixture(scope="module")
def index(coded_dataset, index_folder):
    return open_index(DatasetStorage(str(coded_dataset)), "train", folder=index_folder)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_shuffled_is_a_permutation_that_the_keys_select(size: int):
    orders = [[shuffled(k, size, seed, 5) for k in range(size)] for seed in (1, 2)]
    assert [sorted(order) for order in orders] == [list(range(size))] * 2
    assert size < 7 or orders[0] != orders[1]


def test_draws_of_arrays_are_the_draws_of_numbers_and_uniform():
    values = np.arange(4000)
    drawn = uniform_of_each(values, 3, 9)
    assert drawn[:50].tolist() == [draw_uniform(3, 9, k) for k in range(50)]
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert np.histogram(drawn, 10, (0, 1))[0].min() > 330
    assert draw_bits(0) != draw_bits(0, 0)


def test_every_pair_is_a_function_of_seed_and_index(index):
    orders = [PairOrder(index, PairOptions(), seed=seed) for seed in (1, 1, 2)]
    numbers = [0, 10**9, 5, 17]
    first, again, other = ([order.pair(g) for g in numbers] for order in orders)
    assert first == again
    assert first != other
    assert orders[1].pair(17) == first[3]


def test_without_weights_an_epoch_shows_each_clip_once_in_a_new_order(index):
    order = PairOrder(index, PairOptions(still_share=0.0), seed=3)
    videos = np.flatnonzero(~index.is_still).tolist()
    epochs = [[order.pair(e * len(videos) + k).source_clip for k in range(len(videos))] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [videos] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    mixed = PairOrder(index, PairOptions(), seed=3)
    assert sorted(mixed.pair(g).source_clip for g in range(len(index))) == list(range(len(index)))


def test_weights_are_kept_in_every_epoch_and_over_many(write_dataset, tmp_path, index_folder):
    weights = [0.5, 2.5, 1.0, 0.0, 0.25, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.25, 1.0, 1.0, 1.0, 1.0]
    folder = write_dataset(tmp_path / "weighted", weights=weights)
    index = open_index(DatasetStorage(folder), "train", folder=index_folder)
    assert index.has_weights
    order = PairOrder(index, PairOptions(still_share=0.0), seed=3)
    videos = np.flatnonzero(~index.is_still & (index.weight > 0))
    expected = index.weight[videos] / index.weight[videos].mean()
    num_epochs = 400
    total = Counter()
    for epoch in range(num_epochs):
        counts = Counter(order.pair(epoch * len(videos) + k).source_clip for k in range(len(videos)))
        total.update(counts)
        for clip, wanted in zip(videos, expected, strict=True):
            assert abs(counts[clip] - wanted) < 1
    assert set(total) == set(videos)
    found = np.array([total[clip] for clip in videos]) / num_epochs
    np.testing.assert_allclose(found, expected, atol=0.08)


@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 1.0])
def test_stills_come_in_the_set_ratio_wherever_one_looks(index, share: float):
    order = PairOrder(index, PairOptions(still_share=share), seed=1)
    is_still = [order.pair(g).is_still for g in range(240)]
    assert sum(is_still) == round(240 * share)
    for start in range(228):
        assert abs(sum(is_still[start : start + 12]) - 12 * share) <= 1


def test_without_a_ratio_stills_come_as_their_weights_say(index):
    assert PairOrder(index, PairOptions(), seed=1).still_share == Fraction(1, 3)
    assert share_of_stills(0.5, 0.0, 3.0) == 1
    assert share_of_stills(0.5, 3.0, 0.0) == 0
    with pytest.raises(ValueError, match=r"still_share is 1\.5"):
        PairOptions(still_share=1.5)


def test_much_of_stills_is_told_where_motion_is_learned(index, write_dataset, tmp_path, index_folder):
    def told(clips, share=None, learns_motion=True):
        return PairOrder(clips, PairOptions(still_share=share), seed=1).describe_stills(learns_motion=learns_motion)

    assert told(index, 0.05) == told(index, 0.05, False) == "5.0 % of the pairs are stills"
    many = "33.3 % of the pairs are stills"
    assert told(index) == f"{many}, in which nothing moves: set --data.still-share, as to 0.05"
    assert told(index, learns_motion=False) == many
    for name, numbers in (("videos", ()), ("stills", range(18))):
        folder = write_dataset(tmp_path / name, still_numbers=tuple(numbers))
        clips = open_index(DatasetStorage(folder), "train", folder=index_folder)
        expected = "no stills" if name == "videos" else "100.0 % of the pairs are stills, in which nothing moves: add"
        assert told(clips, 0.05).startswith(expected)


def test_the_recipes_at_full_size_learn_from_videos_above_all():
    """Whatever the weights say, which are of 61 K stills of as many persons and 766 h of videos here."""
    for cls, stage, name in (
        (BaseRecipe, "base", "paper"),
        (BaseRecipe, "base", "finetune"),
        (MotionRecipe, "motion", "default"),
    ):
        asked = load_recipe(cls, stage, name).data.still_share
        assert float(share_of_stills(asked, 162_000.0, 288_000.0)) == pytest.approx(0.05)
        assert share_of_stills(asked, 1.0, 0.0) == 0
        assert share_of_stills(asked, 0.0, 1.0) == 1


def test_frames_are_far_enough_apart_and_never_repeats(index):
    order = PairOrder(index, PairOptions(still_share=0.0, min_gap_s=0.28), seed=1)
    seen = {clip: set() for clip in range(len(index))}
    gaps, partners = set(), defaultdict(set)
    for g in range(3000):
        pair = order.pair(g)
        assert pair.source_clip == pair.driving_clip
        gaps.add(pair.driving_frame - pair.source_frame)
        partners[pair.source_clip, pair.source_frame].add(pair.driving_frame)
        seen[pair.source_clip] |= {pair.source_frame, pair.driving_frame}
    assert min(map(abs, gaps)) == 7
    assert gaps >= {-7, 7}
    assert np.mean([len(frames) for frames in partners.values()]) > 4, "the source does not tell the driving frame"
    assert not seen[0] & {4, 5}
    assert seen[1] == {0, 1, 2, 3, 4, 7, 8, 9, 10, 11}  # of 12 frames, all that have a partner


def test_one_fit_frame_alone_makes_no_pair():
    assert _fit(np.array([True, False, False])).tolist() == [1, 2]
    assert _fit(np.array([True, False, True])).tolist() == [0, 1, 2]
    assert _fit(np.array([True])).tolist() == [0]


def test_a_clip_too_short_gives_its_farthest_frames(index):
    order = PairOrder(index, PairOptions(still_share=0.0, min_gap_s=5.0), seed=1)
    for g in range(50):
        pair = order.pair(g)
        assert {pair.source_frame, pair.driving_frame} == {0, index.num_frames(pair.source_clip) - 1}


def test_stills_pair_a_picture_with_itself(index):
    pair = PairOrder(index, PairOptions(still_share=1.0), seed=1).pair(4)
    assert (pair.is_still, pair.source_frame, pair.driving_frame) == (True, 0, 0)
    assert pair.source_clip == pair.driving_clip


def test_more_candidates_move_farther(coded_dataset, index_folder):
    index = open_index(DatasetStorage(coded_dataset), "train", with_motion=True, folder=index_folder)
    moves = []
    for candidates in (1, 4):
        order = PairOrder(index, PairOptions(still_share=0.0, min_gap_s=0.04, driving_candidates=candidates), seed=1)
        pairs = [order.pair(g) for g in range(400)]
        moves.append(np.mean([abs(p.source_frame - p.driving_frame) for p in pairs]))  # the pose follows the frame
    assert moves[1] > 1.3 * moves[0]


def test_a_blink_is_found_among_candidates(write_dataset, tmp_path, index_folder):
    """One frame of each clip has its eyes closed, and heads turn by 2 degrees a frame."""
    folder = write_dataset(tmp_path / "blinks", blink_frame=3)
    index = open_index(DatasetStorage(folder), "train", with_motion=True, folder=index_folder)
    assert index.motion(0)[3].tolist() == [3.0, 6.0, -3.0, 0.0, 0.0, 0.125]
    shares = []
    for candidates in (1, 6):
        order = PairOrder(index, PairOptions(still_share=0.0, min_gap_s=0.04, driving_candidates=candidates), seed=1)
        pairs = [order.pair(g) for g in range(600)]
        shares.append(np.mean([p.driving_frame == 3 for p in pairs if 0 < abs(p.source_frame - 3) <= 6]))
    assert shares[1] > 1.5 * shares[0]


def test_cross_identity_pairs_show_two_persons(index):
    order = PairOrder(index, PairOptions(), seed=1, cross_identity=True)
    pairs = [order.pair(g) for g in range(300)]
    assert all(index.identity[p.source_clip] != index.identity[p.driving_clip] for p in pairs)
    assert not any(p.is_still for p in pairs)
    assert {p.driving_clip for p in pairs} == set(np.flatnonzero(~index.is_still))
    assert pairs == [PairOrder(index, PairOptions(), seed=1, cross_identity=True).pair(g) for g in range(300)]


def test_held_out_frames_are_never_trained_on_and_drive_their_own_clip(index):
    options = PairOptions(still_share=0.0, min_gap_s=0.12, held_out_share=0.25)
    training, held_out = (PairOrder(index, options, seed=1, held_out=value) for value in (False, True))
    for g in range(500):
        pair, other = training.pair(g), held_out.pair(g)
        start = num_training_frames(index.num_frames(pair.source_clip), 0.25)
        assert max(pair.source_frame, pair.driving_frame) < start
        start = num_training_frames(index.num_frames(other.source_clip), 0.25)
        assert other.source_clip == other.driving_clip
        assert other.source_frame < start <= other.driving_frame
        assert other.driving_frame - other.source_frame >= 3
    assert PairOrder(index, PairOptions(held_out_share=0.25), seed=1, held_out=True).still_share == 0
    assert num_training_frames(np.array([1, 2, 4, 5, 40]), 0.25).tolist() == [1, 2, 3, 4, 30]
    assert num_training_frames(np.array([1, 2, 3, 10]), 0.9).tolist() == [1, 2, 2, 2], "two are left to train on"


def test_replacements_are_of_the_same_kind_and_reproducible(index):
    order = PairOrder(index, PairOptions(), seed=1)
    for g in range(60):
        damaged = order.pair(g)
        other = order.replacement(damaged, 1)
        assert other.index == g
        assert other.is_still == damaged.is_still
        assert other == order.replacement(damaged, 1)
    drawn = {order.replacement(order.pair(1), attempt).source_clip for attempt in range(1, 60)}
    assert len(drawn) > 6
    assert len({order.replacement(order.pair(g), 1).source_clip for g in range(60)}) > 6
