"""What an actor does: units of a stage, one after the other, in a child process that may die (see `sandbox`)."""

from __future__ import annotations

import functools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from curation.fetching import keep_up_to
from curation.metrics import count_unit
from curation.plans import read_bundle
from curation.recipe import Recipe
from curation.sandbox import FatalError, NoSpaceError, Sandbox, SandboxError
from curation.units import UnitResult, commit_unit
from manifests.errors import NoBucket, StoreUnreachable
from manifests.scratch import temporary_folder
from manifests.storage import Place, is_local, place, read_bytes

ATTEMPTS = 2


def stage_class(name: str) -> Any:
    """The class that does the work of a stage; imported only where it runs."""
    if name == "index":
        from curation.index import IndexStage as Stage
    elif name == "scan":
        from curation.scan import ScanStage as Stage
    elif name == "crop":
        from curation.crop import CropStage as Stage
    else:
        assert name == "pack", name
        from curation.pack import PackStage as Stage
    return Stage


def make_unit_worker(
    stage: str, recipe: Recipe, folder: Place, kept_bytes: int = 0
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What the child process runs: do a unit, commit it, return its ledger row and its failures.

    kept_bytes: see `fetching.keep_up_to`.
    """
    import cv2

    cv2.setNumThreads(1)
    keep_up_to(kept_bytes)
    work = stage_class(stage)(recipe, folder)

    def do(unit: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        result = work.process(unit)
        if unit.get("pixels_only"):
            return {"unit": unit["name"], "num_frames": result.num_frames, "video_s": result.video_s, "failures": []}
        row = commit_unit(folder, stage, unit, result, time.perf_counter() - start, _worker_name())
        return _summary(row, result)

    return do


def _summary(row: dict[str, Any], result: UnitResult) -> dict[str, Any]:
    failures = [{k: f[k] for k in ("reason", "message", "uri")} for f in result.rows.get("failures", [])]
    rejected = sum(r.get("status") == "rejected" for r in result.rows.get("sources", []))
    counts = {table: len(rows) for table, rows in result.rows.items() if table != "failures"}
    measured = [r for table in ("sources", "clips", "shards") for r in result.rows.get(table, [])]
    size_bytes = sum(r.get("staged_bytes") or r.get("size_bytes") or 0 for r in measured)
    return {**row, "failures": failures, "rejected": rejected, "counts": counts, "size_bytes": size_bytes}


def committed_summary(folder: Place, unit: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a unit whose commit file is there."""
    if unit.get("pixels_only"):
        return None
    try:
        content = json.loads(read_bytes(folder / f"{unit['name']}.json"))
    except FileNotFoundError:
        return None
    return _summary(content["ledger"], UnitResult(rows=content["rows"]))


def _worker_name() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def _not_seen(where: Place | str, what: str) -> str:
    return (
        f"node {socket.gethostname()} does not see {where}: {what} must be on a file system that all nodes see;"
        " mount it there, or leave the node out, and run again"
    )


def _require_folder(folder: Place) -> None:
    """FatalError on a node that does not see where the results go, and would write them to its own disk."""
    if is_local(folder) and not os.path.isdir(folder):
        raise FatalError(_not_seen(folder, "a local output"))


class UnseenSource(FatalError):
    """This node does not see a local source at `path`, where the driver has seen it."""

    def __init__(self, path: str) -> None:
        super().__init__(_not_seen(path, "a local source"))
        self.path = path


def _require_source(unit: dict[str, Any]) -> None:
    """UnseenSource on a node that would report the sources of a whole folder as missing, because it has not mounted
    what lies there. A single file that is not in its folder is no matter of the node."""
    seen_at = unit.get("seen_at", [])
    if seen_at and not any(os.path.exists(path) or _holds_anything(os.path.dirname(path)) for path in seen_at):
        raise UnseenSource(seen_at[0])


def _holds_anything(folder: str) -> bool:
    """Whether something is in a folder that can be listed; where nothing is mounted there may be an empty one."""
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def fatal_answer(error: Exception) -> dict[str, str]:
    """What a worker answers that can do nothing any more, whatever the unit; on a cluster the driver names the node.
    `unseen`: the path of an `UnseenSource`, for the driver to see whether it is still there."""
    unseen = {"unseen": error.path} if isinstance(error, UnseenSource) else {}
    return {"fatal": str(error), "node": socket.gethostname(), **unseen}


@contextmanager
def _reading(file: Place | str) -> Iterator[None]:
    """Around what reads a file of the data set: FatalError where this node cannot, as for want of a key or of rights.
    No unit is to blame, and another would fare no better; a store that fails for a while has been waited for."""
    try:
        yield
    except StoreUnreachable:
        raise
    except (OSError, ValueError) as error:  # a ValueError: no such bucket, or no package for such a store
        raise FatalError(f"cannot read {file}: {error}") from error


def _read_shared(bundle: str) -> list[dict[str, Any]]:
    with _reading(bundle):
        try:
            return read_bundle(bundle)
        except FileNotFoundError:  # a folder of the same name is there, but not the shared one
            _require_folder(place(bundle).parent)
            raise


def _scratch_name() -> str:
    try:
        return f" {temporary_folder()}"
    except OSError:
        return ""  # the error that is told names what was tried


class NoScratchError(OSError):
    """The disk of this node is full or read-only, and the results go elsewhere: another node may do the unit."""


class UnitWorker:
    """The actor: does bundles of units in its sandbox and accounts for those that fail."""

    room_pauses_s = (10.0, 50.0)
    """Before it looks again whether there is room for what is left of a bundle. A node that refused at once would be
    given all bundles while the others work."""

    def __init__(self, *, stage: str, recipe: Recipe, folder: Place, deadline_s: float, kept_bytes: int) -> None:
        self._stage, self._folder, self._deadline_s = stage, folder, deadline_s
        self._sandbox = Sandbox(functools.partial(make_unit_worker, stage, recipe, folder, kept_bytes), deadline_s=3600)

    def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """`row["bundle"]`: where a bundle of units lies; returns one row with a summary, as JSON, for each unit for
        which there is room: the others are left to `leftovers`. After a `fatal_answer` there are no more."""
        summaries: list[dict[str, Any]] = []
        try:
            _require_folder(self._folder)
            left = self._do_what_has_room(_read_shared(row["bundle"]), summaries)
            for pause_s in self.room_pauses_s:
                if left:
                    time.sleep(pause_s)
                    left = self._do_what_has_room(left, summaries)
        except (FatalError, StoreUnreachable) as error:
            summaries.append(fatal_answer(error))
        return [{"summary": json.dumps(summary)} for summary in summaries]

    def _do_what_has_room(self, units: list[dict[str, Any]], summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add the summaries of those for which there is room; returns the others."""
        left = []
        for unit in units:
            try:
                summaries.append(count_unit(self._stage, unit, self._do(unit)))
            except NoScratchError:
                left.append(unit)
        return left

    def finish(self, unit: dict[str, Any]) -> dict[str, Any]:
        """The summary of a unit that another actor may have committed, and counted, before it died: `was_committed`.
        Others are not counted yet: this actor may die before it has exported its counters."""
        try:
            _require_folder(self._folder)
            with _reading(self._folder / f"{unit['name']}.json"):
                summary = committed_summary(self._folder, unit)
            if summary:
                return summary | {"was_committed": True}
            return self._do(unit)
        except (FatalError, StoreUnreachable) as error:
            return fatal_answer(error)

    def _do(self, unit: dict[str, Any]) -> dict[str, Any]:
        _require_source(unit)
        deadline_s = self._deadline_s or 300 + 20 * unit.get("expected_s", 0.0)
        attempts = 0
        while attempts < ATTEMPTS:
            attempts += 1
            try:
                return self._sandbox(unit, deadline_s)
            except NoSpaceError as error:
                if is_local(self._folder):
                    raise
                raise NoScratchError(
                    f"node {socket.gethostname()} cannot write to its scratch{_scratch_name()}: {error}"
                ) from error
            except SandboxError as error:
                reason, message = error.reason, str(error)
            except RuntimeError as error:
                reason, message = "error", str(error)
                break  # an exception is no accident: the same again would give the same
        return give_up(self._folder, self._stage, unit, reason, message, attempts)


def give_up(
    folder: Place, stage: str, unit: dict[str, Any], reason: str, message: str, attempts: int
) -> dict[str, Any]:
    """Commit that a unit failed; returns its summary.

    Raises:
        FatalError: without this unit there is no data set, or no unit can be committed any more.
    """
    if stage == "pack":
        raise FatalError(f"the shard {unit['shard']} cannot be written: {message}")
    result = UnitResult()
    result.fail(stage, unit, reason, message, attempts)
    row = {"unit": unit["name"]}
    if not unit.get("pixels_only"):  # such a unit has been committed, only its pictures are made again
        try:
            row = commit_unit(folder, stage, unit, result, 0.0, _worker_name())
        except StoreUnreachable:
            raise
        except (OSError, NoBucket) as error:  # as the child's commit was: no other unit fares better
            raise FatalError(f"cannot write to {folder}: {error}") from error
    return _summary(row, result)
