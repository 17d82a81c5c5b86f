from __future__ import annotations

import pytest
from scipy.stats import spearmanr

from training.evaluation.control import rank_correlation
from training.evaluation.measuring import mean_of


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
