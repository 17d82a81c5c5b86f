"""Units are bundled by their cost; none is lost, and nothing expensive waits to the end. Their files."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest

from curation.plans import Plan, bundle, read_bundle
from manifests.storage import place


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


def test_bundles_shrink_towards_the_end():
    """So that no worker has many seconds of work in hand when the others run out of it."""
    costs = [cost(group) for group in bundle(units([0.5] * 200), 2)]
    assert costs[0] == pytest.approx(8.0)
    assert costs == sorted(costs, reverse=True)
    assert max(costs[-6:]) <= 1.0


def test_no_bundle_keeps_progress_waiting():
    assert max(len(group) for group in bundle(units([0.001] * 20_000), 2)) == 500
    assert max(cost(group) for group in bundle(units([10.0] * 1000), 2)) == pytest.approx(60)


def test_order_of_the_input_does_not_matter():
    work = units([k % 7 / 3 for k in range(100)])
    shuffled = work.copy()
    random.Random(0).shuffle(shuffled)
    assert bundle(shuffled, 3) == bundle(work, 3)


def test_nothing_to_do():
    assert bundle([], 2) == []


def test_a_plan_holds_every_unit_until_it_is_answered_for(tmp_path: Path):
    """More units than are planned at a time, twice into the same folder."""
    work = [unit | {"uri": f"/videos/{unit['name']}.mp4"} for unit in units([0.1] * 3000 + [50.0])]
    Plan(tmp_path / "plan", work[:100], 2)
    plan = Plan(tmp_path / "plan", iter(work), 2)
    found = [read_bundle(path) for path in plan.bundles()]
    assert [u["name"] for u in found[0]] == ["u3000"], "the expensive one first, though it was planned last"
    assert [cost(group) for group in found] == sorted(map(cost, found), reverse=True)
    assert sorted((u for group in found for u in group), key=lambda u: u["name"]) == [
        unit | {"seen_at": []} for unit in work
    ]
    assert len(list((tmp_path / "plan").iterdir())) == len(found), "nothing of the plan before"
    assert not plan.has_remote_sources
    assert all(plan.answered(unit["name"]) for unit in work[:-2])
    assert not plan.answered("u0000"), "that was known"
    assert (plan.num_unanswered, sorted(u["name"] for u in plan.unanswered())) == (2, ["u2999", "u3000"])
    plan.remove()
    assert not (tmp_path / "plan").exists()


def test_a_plan_knows_of_remote_sources(tmp_path: Path):
    assert Plan(tmp_path, [{"name": "u", "uri": "s3://raw/a.mp4"}], 2).has_remote_sources


def test_a_plan_knows_the_folder_of_local_sources(tmp_path: Path):
    def folder_of(*uris: str) -> str:
        return Plan(tmp_path, [{"name": f"u{k}", "uri": uri} for k, uri in enumerate(uris)], 2).source_folder

    assert folder_of("/mnt/raw/a.mp4") == "/mnt/raw"
    assert folder_of("/mnt/raw/b/a.mp4", "s3://raw/a.mp4", "/mnt/raw/c/a.mp4") == "/mnt/raw"
    assert folder_of("s3://raw/a.mp4") == Plan(tmp_path, units([1.0]), 2).source_folder == ""


def test_a_plan_says_where_local_sources_were_seen(tmp_path: Path):
    """All places of a source, unless it is on an object store, too; those of now, where it was not answered for."""
    here, there, gone = (tmp_path / name for name in ("here.mp4", "there.mp4", "gone.mp4"))
    here.touch()
    there.touch()
    places = [{"uri": str(path)} for path in (here, gone, there)]
    work = [
        {"name": "u0", "uri": str(here)},
        {"name": "u1", "uri": str(here), "places": places},
        {"name": "u2", "uri": str(here), "places": [*places, {"uri": "s3://raw/a.mp4"}]},
        {"name": "u3"},
    ]
    plan = Plan(tmp_path / "plan", work, 2)
    planned = [unit["seen_at"] for path in plan.bundles() for unit in read_bundle(path)]
    assert planned == [[str(here)], [str(here), str(there)], [], []]
    here.unlink()
    assert [unit["seen_at"] for unit in plan.unanswered()] == [[], [str(there)], [], []]


def test_bundles_on_an_object_store_are_written_side_by_side(flaky_s3):
    """There may be ten thousand; more go at once than the ten connections that a client has by itself."""
    flaky_s3.failed_share, flaky_s3.delay_s = 0.0, 0.3
    plan = Plan(place("s3://data/plan"), units([100.0] * 32), 2)
    flaky_s3.delay_s = 0.0
    assert [read_bundle(path)[0]["name"] for path in plan.bundles()] == [f"u{k:04d}" for k in range(32)]
    assert flaky_s3.most_at_once > 10


def test_a_plan_does_not_hold_what_its_units_need(tmp_path: Path):
    """Some ten kilobytes each, as candidates have them; what is left of them is a name."""

    def many(num: int):
        for k in range(num):
            yield {
                "name": f"u{k:07d}",
                "expected_s": 1.0,
                "candidates": [{"embedding": [k + i / 7 for i in range(300)]}],
            }

    def held_bytes(num: int) -> int:
        tracemalloc.start()
        plan = Plan(tmp_path / str(num), many(num), 2)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert plan.num_unanswered == num
        return held

    assert (held_bytes(1500) - held_bytes(500)) / 1000 < 500
