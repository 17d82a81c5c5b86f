"""Units are bundled by their cost; none is lost, and nothing expensive waits to the end."""

from __future__ import annotations

import random

import pytest

from curation.distribute import bundle


def units(costs: list[float]) -> list[dict]:
    return [{"name": f"u{k:04d}", "expected_s": cost} for k, cost in enumerate(costs)]


def cost(group: list[dict]) -> float:
    return sum(unit["expected_s"] for unit in group)


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_every_unit_once_the_expensive_first(workers):
    chance = random.Random(1)
    work = units([chance.choice((0.02, 0.5, 3.0, 40.0)) for _ in range(500)])
    bundles = bundle(work, workers)
    assert sorted(u["name"] for group in bundles for u in group) == [u["name"] for u in work]
    flat = [u["expected_s"] for group in bundles for u in group]
    assert flat == sorted(flat, reverse=True)
    limit = max(1.0, cost(work) / (workers * 6))
    assert all(cost(group) <= limit + 1e-9 or len(group) == 1 for group in bundles)


def test_cheap_units_are_put_together():
    assert len(bundle(units([0.02] * 500), 2)) <= 12
    assert len(bundle(units([0.02] * 20), 2)) == 1, "less than a second of work is one bundle"


def test_expensive_units_stay_alone():
    bundles = bundle(units([30.0, 30.0, 0.1, 0.1]), 2)
    assert [len(group) for group in bundles] == [1, 1, 2]


def test_order_of_the_input_does_not_matter():
    work = units([k % 7 / 3 for k in range(100)])
    shuffled = work.copy()
    random.Random(0).shuffle(shuffled)
    assert bundle(shuffled, 3) == bundle(work, 3)


def test_nothing_to_do():
    assert bundle([], 2) == []
