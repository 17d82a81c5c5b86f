from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import spearmanr

from training.evaluation.control import obedience, rank_correlation
from training.evaluation.evaluate import Evaluate
from training.evaluation.measuring import mean_of
from training.retargeting import RetargetingRecipe


def test_rank_correlation() -> None:
    pairs = [(0.0, 0.1), (0.2, 0.3), (0.4, 0.2), (0.6, 0.5)]
    assert rank_correlation(pairs) == pytest.approx(1 - 6 * (1 + 1) / (4 * 15))  # two neighbours are swapped
    assert rank_correlation(pairs) == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)
    assert rank_correlation([(a, 1 - b) for a, b in pairs]) == pytest.approx(-0.8)
    assert rank_correlation([(a, 0.3) for a, _ in pairs]) == 0
    assert rank_correlation(pairs[:2]) is None


def test_means_leave_out_what_is_not_there() -> None:
    assert mean_of([1.0, None, float("nan"), 3.0]) == 2.0
    assert mean_of([None]) is None


def test_copying_is_judged_over_the_steps_that_show_a_face() -> None:
    control, copied, spearman = obedience((0.0, 0.2, 0.4, 0.8), [0.1, 0.2, 0.3, None], at_rest=0.1)
    assert control == pytest.approx((0.1 + 0.0 + 0.1) / 3)
    assert copied == pytest.approx((0.1 + 0.1 + 0.3) / 3)
    assert spearman == pytest.approx(1)
    assert obedience((0.0, 0.2), [None, None], at_rest=0.1) == (None, None, None)
    assert obedience((0.0, 0.2), [0.1, 0.1], at_rest=None)[1] is None


def test_sweeps_ask_for_what_stage_2_trains() -> None:
    options, recipe = Evaluate(weights=Path(), data=""), RetargetingRecipe()
    assert (max(options.eye_sweep), max(options.lip_sweep)) == (recipe.max_eyes, recipe.max_lip)
