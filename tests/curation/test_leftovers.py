"""Units that were lost with their worker: done again, blamed only for what they do alone, and never for ever."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from curation.distribute import _give_up_lost
from curation.leftovers import ATTEMPTS, Actors, Loss, describe_loss, do_again, missing_package
from curation.sandbox import FatalError
from curation.waiting import _has_workers
from curation.worker import NoScratchError


class _Worker:
    """Does what the unit says; `marks` holds a file for each try, and one for each unit that is being done."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks

    def finish(self, unit: dict[str, Any]) -> str:
        name = unit["name"]
        tries = 1 + len(list(self._marks.glob(f"{name}.try*")))
        others = sorted(path.name for path in self._marks.glob("*.busy"))
        (self._marks / f"{name}.try{tries}").write_text(" ".join(others))
        if tries <= unit.get("deaths", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.get("has_no_room"):
            raise NoScratchError(f"no scratch for {name}")
        if unit.get("raises"):
            raise OSError(f"no room for {name}")
        busy = self._marks / f"{name}.busy"
        busy.touch()
        time.sleep(0.05)
        busy.unlink()
        return f"{name} done"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    import ray

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # as `start_embedded`: a process reads it once
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp") as folder:
        ray.init(
            num_cpus=3, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False, _temp_dir=folder
        )
        yield ray
        ray.shutdown()


def test_each_unit_ends_once_and_only_the_culprit_is_lost(ray, tmp_path: Path):
    units = [
        *({"name": f"good{k}"} for k in range(6)),
        {"name": "unlucky", "deaths": 1},
        {"name": "poison", "deaths": 99},
        {"name": "raises", "raises": True},
        {"name": "hungry", "deaths": ATTEMPTS - 1},
    ]
    results = list(do_again(units, Actors(_Worker, {"marks": tmp_path}), 2))
    assert sorted(unit["name"] for unit, _ in results) == sorted(unit["name"] for unit in units), "each exactly once"
    answers = {unit["name"]: answer for unit, answer in results}
    assert {name for name, answer in answers.items() if isinstance(answer, Loss)} == {"poison", "raises"}
    assert all(answer == f"{name} done" for name, answer in answers.items() if not isinstance(answer, Loss))
    assert answers["poison"].attempts == answers["raises"].attempts == ATTEMPTS
    assert "Worker exit type" in answers["poison"].message
    assert "no room for raises" in answers["raises"].message
    assert "\n" not in answers["poison"].message
    tries = {unit["name"]: len(list(tmp_path.glob(f"{unit['name']}.try*"))) for unit in units}
    assert tries == dict.fromkeys((f"good{k}" for k in range(6)), 1) | {
        "unlucky": 2,
        "poison": ATTEMPTS,
        "raises": ATTEMPTS,
        "hungry": ATTEMPTS,
    }
    assert (tmp_path / f"hungry.try{ATTEMPTS}").read_text() == "", "the last time nothing runs beside it"


def test_actors_that_find_no_room_wait_for_those_that_are_done(ray, tmp_path: Path):
    units = [{"name": f"u{k}"} for k in range(6)]
    results = list(do_again(units, Actors(_Worker, {"marks": tmp_path}), 5))  # of which three have a CPU
    assert sorted(answer for _, answer in results) == [f"u{k} done" for k in range(6)]


class _ShrinkingCluster(Actors):
    """Has another node, until an actor waits for it."""

    is_lost = False

    def nodes(self) -> set[str]:
        return super().nodes() | (set() if self.is_lost else {"f" * 56})

    def start(self, avoid: frozenset[str]) -> Any:
        self.is_lost = self.is_lost or bool(avoid)
        return super().start(avoid)


def test_a_unit_without_room_waits_for_no_node_that_is_lost(ray, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("curation.leftovers._LOOK_S", 2.0)
    actors = _ShrinkingCluster(_Worker, {"marks": tmp_path})
    units = [{"name": "large", "has_no_room": True}, {"name": "small"}]
    answers = {unit["name"]: answer for unit, answer in do_again(units, actors, 2)}
    assert answers["small"] == "small done"
    assert isinstance(answers["large"].error, NoScratchError)
    assert len(list(tmp_path.glob("large.try*"))) == 2, "once beside others, once alone"


class _ActorOf:
    """Stands in for an actor on a node; what it is given is lost if that node is lost."""

    def __init__(self, node: str, lost: set[str]) -> None:
        self._node, self._is_lost = node, node in lost
        self.finish = SimpleNamespace(remote=lambda unit: partial(self._do, unit))
        self.__ray_call__ = SimpleNamespace(remote=lambda ask: lambda: node)

    def _do(self, unit: dict[str, Any]) -> str:
        import ray

        if self._is_lost or unit.get("kills"):
            raise ray.exceptions.RayActorError
        if unit.get("needs_memory"):
            raise ray.exceptions.OutOfMemoryError("running low on memory")
        return f"{unit['name']} done"


@pytest.fixture
def two_nodes(monkeypatch) -> None:
    """Ray, as `_ActorOf` needs it, with two nodes, of which the first is lost."""
    import ray

    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer())
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(ray, "wait", lambda answers, **_: (answers[:1], answers[1:]))
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": k, "Alive": k != "a"} for k in "ab"])


def test_a_lost_node_counts_against_none_of_the_units_that_it_had(two_nodes):
    nodes = iter(9 * "a" + 20 * "b")
    units = [{"name": "u1"}, {"name": "u2"}, {"name": "poison", "kills": True}]
    actors = SimpleNamespace(start=lambda avoid: _ActorOf(next(nodes), {"a"}), nodes=lambda: {"a", "b"})
    answers = {unit["name"]: answer for unit, answer in do_again(units, actors, 3)}
    assert answers["u1"] == "u1 done", "it was lost three times with its node"
    assert answers["u2"] == "u2 done"
    assert answers["poison"].attempts == ATTEMPTS, "on the node that is there"


def test_what_was_killed_for_want_of_memory_waits_where_nothing_runs_that_would_give_it_back(two_nodes, monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    units = [{"name": "u1"}, {"name": "large", "needs_memory": True}]
    actors = SimpleNamespace(start=lambda avoid: _ActorOf("b", set()), nodes=lambda: {"b"})
    answers = {unit["name"]: answer for unit, answer in do_again(units, actors, 2)}
    assert answers["u1"] == "u1 done"
    assert (answers["large"].attempts, answers["large"].is_for_memory) == (ATTEMPTS, True)
    assert pauses == [10.0, 10.0]


def test_units_are_taken_as_workers_are_free_for_them(two_nodes):
    """All units of a stage may come back: they are not held together."""
    taken = []
    units = ({"name": f"u{k}"} for k in range(100) if taken.append(k) is None)
    actors = SimpleNamespace(start=lambda avoid: _ActorOf("b", set()), nodes=lambda: {"b"})
    with closing(do_again(units, actors, 3)) as answers:
        assert next(answers)[1] == "u0 done"
        assert taken == [0, 1, 2]
        assert len(list(answers)) == 99


def test_a_worker_is_said_to_have_died_only_where_it_did(tmp_path: Path):
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    def failure_of(error: Exception) -> tuple[str, str]:
        (failure,) = _give_up_lost(tmp_path, "scan", {"name": "u1"}, Loss(ATTEMPTS, error))["failures"]
        return failure["reason"], failure["message"].removeprefix("every worker that it was given to ")

    assert failure_of(OSError("none")) == ("error", "failed, the last one with OSError: none")
    died = "died, the last one: The actor died unexpectedly before finishing this task."
    assert failure_of(ActorDiedError()) == ("worker_died", died)
    reason, message = failure_of(OutOfMemoryError("... killed due to the node running low on memory."))
    assert reason == "killed", "every run tries again"
    assert message.startswith("was killed, the last one for want of memory: ... killed due to the node running low on")


def test_a_node_without_a_package_is_told_and_no_unit_is_blamed(ray, monkeypatch):
    """The package is here, and in none of the processes of Ray."""
    package = ModuleType("only_here")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    base = type("Base", (), {"__module__": package.__name__, "finish": lambda self, unit: unit})
    package.Base = base
    actors = Actors(type("Scan", (base,), {}), {})
    with pytest.raises(FatalError, match=r"node [\d.]+ lacks the Python package only_here: install") as told:
        list(do_again([{"name": "u1"}], actors, 1))
    assert missing_package(told.value.__cause__) == str(told.value)
    assert missing_package(Exception("The actor is dead because its node has died.")) == ""


def test_it_is_seen_whether_a_worker_of_a_stage_has_started(ray):
    scan = type("MapWorker(FlatMap(Scan))", (_Worker,), {})
    actors = [ray.remote(num_cpus=99)(scan).remote(Path()), ray.remote(num_cpus=1)(_Worker).remote(Path())]
    ray.get(actors[1].__ray_ready__.remote())
    assert not _has_workers("scan")
    actors.append(ray.remote(num_cpus=1)(scan).remote(Path()))
    ray.get(actors[2].__ray_ready__.remote())
    assert _has_workers("scan")
    for actor in actors:
        ray.kill(actor)


def test_what_ray_says_becomes_one_line():
    text = "The actor died unexpectedly.\n\tclass_name: Crop\n\tThe actor is dead because its node has died. More."
    assert describe_loss(Exception(text)) == "The actor is dead because its node has died. More."
    assert describe_loss(Exception("\x1b[36mray::Crop()\x1b[39m (pid=1)\nbroke")) == "ray::Crop() (pid=1) broke"
    assert describe_loss(Exception("")) == "Exception"
