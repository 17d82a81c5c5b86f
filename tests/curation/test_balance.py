"""Sampling weights: rare people, poses and expressions are drawn more often, within bounds."""

from __future__ import annotations

import numpy as np
import pytest

from curation.balance import BALANCE_COLUMNS, sampling_weights
from curation.recipe import SelectOptions

OFF = {"balance_identity": 0.0, "balance_pose": 0.0, "balance_expression": 0.0}


def weigh(options: SelectOptions, people: list[str | None], splits: list[str] | None = None, **columns) -> np.ndarray:
    """Weights of clips of 10 s that face the camera and move alike, but for `columns`."""
    usual = dict(zip(BALANCE_COLUMNS, (10.0, 0.0, 0.0, 0.2, 0.3), strict=True))
    values = {n: np.broadcast_to(np.asarray(columns.get(n, v), float), len(people)).copy() for n, v in usual.items()}
    return sampling_weights(values, people, splits or ["train"] * len(people), options)


def test_people_weigh_the_root_of_their_material():
    weights = weigh(SelectOptions(**OFF | {"balance_identity": 0.5}), ["a"] * 9 + ["b"])
    assert weights[9] / weights[0] == pytest.approx(3.0)
    assert weights[:9] == pytest.approx(weights[0])
    assert weights.mean() == pytest.approx(1.0)
    longer = weigh(SelectOptions(**OFF | {"balance_identity": 0.5}), ["a", "b"], duration_s=[10.0, 40.0])
    assert longer[0] / longer[1] == pytest.approx(2.0), "by length, not by number of clips"
    still = weigh(SelectOptions(**OFF | {"balance_identity": 0.5}), ["a", "b"], duration_s=[0.0, 4.0])
    assert still[0] / still[1] == pytest.approx(2.0), "a still counts as one second"
    nobody = weigh(SelectOptions(**OFF | {"balance_identity": 0.5}), [None, None, "a"])
    assert nobody == pytest.approx(1.0), "each is a person of its own"


def test_poses_and_expressions():
    pose = weigh(SelectOptions(**OFF | {"balance_pose": 0.5}), list("abcde"), yaw_deg=[0, 2, -3, 5, 40])
    assert pose[4] / pose[0] == pytest.approx(2.0)
    nod = weigh(SelectOptions(**OFF | {"balance_pose": 0.5}), list("abcde"), pitch_deg=[0, 2, -3, 5, 40])
    assert nod == pytest.approx(pose)
    lively = weigh(SelectOptions(**OFF | {"balance_expression": 1.0}), list("abc"), lip_openness_range=[0.0, 0.3, 0.6])
    assert lively[0] < lively[1] < lively[2]
    assert lively[2] / lively[1] == pytest.approx((1.5 + 0.5) / (1.0 + 0.5))


def test_switched_off_all_weigh_one():
    weights = weigh(SelectOptions(**OFF), ["a", "a", "b"], yaw_deg=[0, 40, 80], lip_openness_range=[0, 1, 2])
    assert (weights == 1.0).all()


def test_weights_are_capped_and_still_one_on_average():
    people = ["a"] * 1000 + ["b"]
    free = weigh(SelectOptions(max_weight=1000.0), people)
    assert free[-1] > 20
    capped = weigh(SelectOptions(max_weight=4.0), people)
    assert capped[-1] == pytest.approx(4.0)
    assert capped.mean() == pytest.approx(1.0)
    chance = np.random.default_rng(0)
    people = [f"p{int(k)}" for k in chance.zipf(1.5, 500) % 97]
    weights = weigh(SelectOptions(max_weight=2.0), people, duration_s=chance.exponential(10, 500))
    assert weights.min() >= 0.5
    assert weights.max() <= 2.0
    assert weights.mean() == pytest.approx(1.0)


def test_splits_do_not_see_each_other():
    alone = weigh(SelectOptions(), ["a", "a", "b"])
    both = weigh(SelectOptions(), ["a", "a", "b", "c", "c"], ["train"] * 3 + ["val"] * 2)
    assert (both[:3] == alone).all()
    assert both[3:] == pytest.approx([1.0, 1.0])


def test_unknown_is_neither_favoured_nor_put_back():
    weights = weigh(
        SelectOptions(), [None, None, None], yaw_deg=[np.nan, 0.0, 0.0], lip_openness_range=[np.nan, 0.3, 0.3]
    )
    assert weights == pytest.approx(1.0)
    assert weigh(SelectOptions(), list("ab"), lip_openness_range=0.0, eye_openness_range=0.0) == pytest.approx(1.0)
    for angle in ("yaw_deg", "pitch_deg"):
        pose = weigh(SelectOptions(**OFF | {"balance_pose": 0.5}), list("abcd"), **{angle: [np.nan, 0.0, 0.0, 60.0]})
        # Bins of 20, 20 and 10 s, 50 / 3 on average; what is unknown has the weight of the average.
        assert pose / pose[0] == pytest.approx([1.0, 1.2**-0.5, 1.2**-0.5, 0.6**-0.5])
    assert len(weigh(SelectOptions(), [])) == 0
