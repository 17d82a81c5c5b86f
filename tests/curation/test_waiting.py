"""A run that finds no room waits, and says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from curation import waiting
from curation.distribute import Cluster, ClusterOptions
from curation.waiting import telling_of_the_wait


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Those that have started in a cluster of four CPUs, of which another job has three."""
    import ray

    started: list[dict[str, str]] = []
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "memory": 1e9})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr("ray._private.state.actors", lambda **_: dict(enumerate(started)))
    monkeypatch.setattr(waiting, "_FIRST_S", 0.01)
    monkeypatch.setattr(waiting, "_EVERY_S", 0.02)
    return started


def test_waiting_is_told_until_a_worker_starts(actors, monkeypatch, capsys):
    looks, look = [], waiting._has_workers
    monkeypatch.setattr(waiting, "_has_workers", lambda stage: looks.append(stage) or look(stage))
    line = "scan: waiting for a worker to start: the cluster has 4 CPUs (1 free)"
    line += waiting._MEMORY
    with telling_of_the_wait("scan"):
        _until(lambda: len(looks) > 2)
    assert capsys.readouterr().err.splitlines()[:2] == [line, line], "now and again"
    actors.append({"JobID": "01", "ActorClassName": "MapWorker(FlatMap(Index))"})
    looks.clear()
    with telling_of_the_wait("scan"):
        _until(lambda: looks)
    assert capsys.readouterr().err.startswith(line), "of another stage"
    actors.append({"JobID": "01", "ActorClassName": "MapWorker(FlatMap(Scan))"})
    looks.clear()
    with telling_of_the_wait("scan"):
        _until(lambda: len(looks) > 2)
    assert capsys.readouterr().err == "", "its first unit may take long"


def test_nothing_is_asked_while_rows_come(actors, monkeypatch, capsys):
    looks = []
    monkeypatch.setattr(waiting, "_EVERY_S", 60.0)
    monkeypatch.setattr(waiting, "_FIRST_S", 0.5)
    monkeypatch.setattr(waiting, "_has_workers", looks.append)
    with telling_of_the_wait("scan") as row_came:
        row_came()
        time.sleep(0.7)
    assert not looks
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("there", "options", "workers"),
    [
        ({}, {}, 0),
        ({"CPU": 1.0}, {}, 1),
        ({"CPU": 8.0}, {}, 7),
        ({"CPU": 8.0}, {"workers": 3}, 3),
        ({"CPU": 8.0}, {"gpus_per_worker": 0.5}, 0),
        ({"CPU": 8.0, "GPU": 1.0}, {"gpus_per_worker": 0.5}, 2),
    ],
)
def test_room_for_workers(monkeypatch, there, options, workers):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert Cluster(ClusterOptions(**options)).workers == workers


def _until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
