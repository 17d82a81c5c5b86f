"""The lock on an object store: who may take it, and when, mostly under a clock of the test's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curation import lock
from curation.sandbox import FatalError
from manifests.object_store import PatientS3FileSystem
from manifests.store import Dataset

LOCK = Path("/dataset/.lock")


class Store:
    """A store with a lock in it, and a clock. From `outage` on, until its end, a call is not answered."""

    def __init__(self, written_at: Callable[[float], float], outage: tuple[float, float] = (0.0, 0.0)) -> None:
        self.now = 0.0
        self._written_at, self._outage = written_at, outage
        self.is_taken = False

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def look(self) -> tuple[str, bytes]:
        self._answer()
        return str(self._written_at(self.now)), b"{}"

    def write(self, **condition: str) -> bool:
        self._answer()
        self.is_taken = condition.get("IfMatch") == str(self._written_at(self.now))
        return self.is_taken

    def _answer(self) -> None:
        start, end = self._outage
        self.now = end if start <= self.now < end else self.now + 0.02


@pytest.fixture
def watch(monkeypatch) -> Callable[[Store], Store]:
    def use(store: Store) -> Store:
        monkeypatch.setattr(lock, "time", store)
        monkeypatch.setattr(lock, "_note", dict)
        monkeypatch.setattr(lock._LockObject, "_look", lambda self: store.look())
        monkeypatch.setattr(lock._LockObject, "_write", lambda self, **condition: store.write(**condition))
        return store

    return use


def holder_back_at(outage: tuple[float, float], later_s: float) -> Callable[[float], float]:
    """When the lock was last written by a holder who writes every 5 s and after an outage so many seconds later."""

    def written_at(now: float) -> float:
        start, end = outage
        if now < end + later_s:
            return min(now, start) // 5 * 5
        return end + later_s + (now - end - later_s) // 5 * 5

    return written_at


@pytest.mark.parametrize("length_s", [10, 48, 55, 110])
@pytest.mark.parametrize("later_s", [1, 14, 44])
def test_an_outage_is_not_the_silence_of_the_holder(watch, length_s, later_s):
    """Who waits looks once before and once after it, while the holder sleeps until its next attempt."""
    outage = (1.5, 1.5 + length_s)
    store = watch(Store(holder_back_at(outage, later_s), outage))
    with pytest.raises(lock.DatasetBusy):
        lock._LockObject(LOCK).take()
    assert not store.is_taken
    assert store.now < outage[1] + later_s + 1


def test_a_lock_that_nobody_writes_is_taken_also_after_an_outage(watch):
    for outage, end in (((0.0, 0.0), 60), ((1.5, 91.5), 151.5)):
        store = watch(Store(lambda now: 0.0, outage))
        lock._LockObject(LOCK).take()
        assert store.is_taken
        assert end < store.now < end + 3


def test_readers_do_not_take_an_outage_for_rest(watch):
    outage = (1.5, 51.5)
    watch(Store(holder_back_at(outage, 18), outage))
    with pytest.raises(lock.DatasetBusy):
        lock._require_forsaken(LOCK)
    store = watch(Store(lambda now: 0.0, outage))
    lock._require_forsaken(LOCK)
    assert outage[1] + 25 < store.now < outage[1] + 28


@pytest.fixture
def without_conditions(s3, monkeypatch):
    """A client of a store that does conditional writes whatever the condition."""
    put = PatientS3FileSystem._pipe_file

    async def put_anyway(self, path, data, *, IfNoneMatch=None, IfMatch=None, **options):
        return await put(self, path, data, **options)

    monkeypatch.setattr(PatientS3FileSystem, "_pipe_file", put_anyway)
    monkeypatch.setattr(lock, "RENEW_S", 0.2)
    return s3


def test_a_store_that_ignores_conditions_keeps_the_lock_of_its_holder(without_conditions):
    dataset = Dataset("s3://data/set")
    with lock.only_run(dataset):
        with pytest.raises(lock.DatasetBusy), lock.only_run(dataset):
            pass
        assert b"process" in without_conditions.get_object(Bucket="data", Key="set/.lock")["Body"].read()
    assert "Contents" not in without_conditions.list_objects_v2(Bucket="data", Prefix="set/")


def test_of_two_that_took_the_lock_at_once_the_first_ends(without_conditions):
    def work() -> None:
        with lock.only_run(Dataset("s3://data/set")):
            without_conditions.put_object(Bucket="data", Key="set/.lock", Body=b"{}")
            end = time.monotonic() + 20
            while time.monotonic() < end:
                time.sleep(0.05)

    with pytest.raises(FatalError, match="both began at the same moment on a store without conditional writes"):
        work()
    assert without_conditions.get_object(Bucket="data", Key="set/.lock")["Body"].read() == b"{}"
