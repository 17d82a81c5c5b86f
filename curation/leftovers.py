"""Units that were lost with their worker or its node: done again until they are done or are themselves to blame.

Ray Data starts an actor that died anew and gives it the same task again, for ever. Here that is off: what a dead actor
had in hand is missing at the end of a stage, and comes here; so does what a node had no room for. First the units run
side by side, each alone in its actor; one that takes two actors down, or that no node has room for, runs once more with
nothing beside it (the machine may have been short of memory, or the disk full of what others were reading).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from curation.sandbox import FatalError
from curation.worker import NoScratchError

ATTEMPTS = 3  # at a unit that comes here and takes its actors down
_LOOK_S = 60.0
_MEMORY_PAUSE_S = 10.0  # when nothing ran beside a unit: what takes its node's memory is of others


@dataclass(frozen=True, slots=True)
class Loss:
    """A unit that took down every worker that it was given to, or that none could do."""

    attempts: int
    error: BaseException
    """What was heard of the last one: what it raised, or what Ray says of its death."""

    @property
    def is_death(self) -> bool:
        """Whether the last one died; else it raised what nobody had foreseen."""
        import ray

        return isinstance(self.error, ray.exceptions.RayError)

    @property
    def is_for_memory(self) -> bool:
        """Whether Ray has killed the last one because its node was short of memory."""
        return _is_for_memory(self.error)

    @property
    def message(self) -> str:
        """That in one line."""
        return describe_loss(self.error)


class Actors:
    """Starts actors that do units, each in one CPU."""

    def __init__(self, kind: Any, arguments: dict[str, Any], num_gpus: float = 0.0) -> None:
        """kind: a class with a method `finish(unit)`, made of `arguments`. num_gpus: what each takes of a GPU."""
        import ray

        self._class = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0, max_task_retries=0)(kind)
        self._arguments, self._num_gpus = arguments, num_gpus

    def nodes(self) -> set[str]:
        """The nodes on which one may be: alive and large enough."""
        import ray

        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        return {
            name for name, there in alive.items() if there.get("CPU", 0) >= 1 and there.get("GPU", 0) >= self._num_gpus
        }

    def start(self, avoid: frozenset[str]) -> Any:
        """One on none of these nodes; it waits for a CPU on another."""
        from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

        elsewhere = NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*avoid)}) if avoid else "DEFAULT"
        return self._class.options(scheduling_strategy=elsewhere).remote(**self._arguments)


@dataclass(slots=True)
class _Case:
    unit: dict[str, Any]
    deaths: int = 0
    refused_on: set[str] = field(default_factory=set)
    """Nodes that had no room for it."""
    error: BaseException = field(default_factory=BaseException)


@dataclass(frozen=True, slots=True)
class _Worker:
    actor: Any
    avoid: frozenset[str]
    node: Any
    """The answer of `_node_id`, once the actor has started."""

    @property
    def node_id(self) -> str:
        import ray

        return ray.get(self.node)


def do_again(
    units: Iterable[dict[str, Any]], actors: Actors, workers: int
) -> Iterator[tuple[dict[str, Any], Any | Loss]]:
    """Each unit once, with the answer of an actor or with its `Loss`, in any order; up to `workers` side by side.

    What was lost with the node of its actor counts against no unit. One for which a node has no room goes to the other
    nodes; where all have refused it, it is tried once more on each with nothing beside it.

    Raises:
        FatalError: a node lacks a Python package.
    """
    suspects = yield from _do((_Case(unit) for unit in units), actors, workers, ATTEMPTS - 1)
    for suspect in suspects:
        suspect.refused_on.clear()
        for case in (yield from _do([suspect], actors, 1, ATTEMPTS)):
            yield case.unit, Loss(case.deaths + len(case.refused_on), case.error)


def _do(
    cases: Iterable[_Case], actors: Actors, workers: int, deaths: int
) -> Generator[tuple[dict[str, Any], Any], None, list[_Case]]:
    """Yields units with their answers; returns those that took so many actors down or that all nodes refused. Takes
    `cases` one by one, because together they may be more than the memory holds."""
    import ray

    fresh, waiting, given_up = iter(cases), deque[_Case](), []
    busy: dict[Any, tuple[_Worker, _Case]] = {}
    idle: _Worker | None = None
    full: set[str] = set()
    try:
        while True:
            while len(busy) < workers and (case := next(fresh, None) or (waiting.popleft() if waiting else None)):
                left = actors.nodes() - case.refused_on
                if case.refused_on and not left:
                    given_up.append(case)
                    continue
                if idle is not None and idle.node_id not in case.refused_on:
                    worker, idle = idle, None
                else:
                    worker = _start(actors, case.refused_on | (full if left - full else set()))
                busy[worker.actor.finish.remote(case.unit)] = worker, case
            if not busy:
                return given_up
            if idle is not None:  # after the loss of a node there may be no room for the others until it is gone
                ray.kill(idle.actor)
                idle = None
            answer = next(iter(ray.wait(list(busy), num_returns=1, timeout=_LOOK_S)[0]), None)
            if answer is None:
                waiting += _recall(busy, actors.nodes())
                continue
            worker, case = busy.pop(answer)
            try:
                summary = ray.get(answer)
            except ray.exceptions.RayError as error:
                ray.kill(worker.actor)
                if missing := missing_package(error):  # no unit is to blame, and the next one may meet it, too
                    raise FatalError(missing) from error
                case.error = _cause_of(error)
                if isinstance(case.error, NoScratchError):
                    full.add(worker.node_id)
                    case.refused_on.add(worker.node_id)
                else:
                    case.deaths += not _is_lost(worker.node)
                    if _is_for_memory(case.error) and not busy and case.deaths < ATTEMPTS:
                        time.sleep(_MEMORY_PAUSE_S)
                (waiting if case.deaths < deaths else given_up).append(case)
            else:
                idle = worker
                yield case.unit, summary
    finally:
        for worker in [*([idle] if idle else []), *(worker for worker, _ in busy.values())]:
            ray.kill(worker.actor)


def _start(actors: Actors, avoid: set[str]) -> _Worker:
    actor = actors.start(frozenset(avoid))
    return _Worker(actor, frozenset(avoid), actor.__ray_call__.remote(_node_id))


def _recall(busy: dict[Any, tuple[_Worker, _Case]], nodes: set[str]) -> list[_Case]:
    """Take back what waits for a worker that cannot start any more: the nodes where it might have are gone."""
    import ray

    stuck = [answer for answer, (worker, _) in busy.items() if nodes <= worker.avoid]
    for answer in stuck:
        ray.kill(busy[answer][0].actor)
    return [busy.pop(answer)[1] for answer in stuck]


def _node_id(actor: Any) -> str:
    """Where an actor is; called there."""
    import ray

    return ray.get_runtime_context().get_node_id()


def _is_lost(node: Any) -> bool:
    """Whether the node that an actor has told with `_node_id` is gone, or the one on which it waited for its start;
    False where it had died before it could tell."""
    import ray

    try:
        node_id = ray.get(node, timeout=0)
    except ray.exceptions.RayError as error:
        return "its node has died" in str(error)
    return not any(other["Alive"] for other in ray.nodes() if other["NodeID"] == node_id)


def _is_for_memory(error: BaseException) -> bool:
    import ray

    return isinstance(error, ray.exceptions.OutOfMemoryError)


def _cause_of(error: BaseException) -> BaseException:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def missing_package(error: BaseException) -> str:
    """What to do where an actor could not start for want of a Python package; empty where it was something else."""
    text = str(error)
    found = re.search(r"No module named '([\w.]+)'", text)
    if found is None:
        return ""
    address = re.search(r"\bip=([\w.:]+)", text)
    node = f"node {address.group(1)}" if address else "a node"
    return (
        f"{node} lacks the Python package {found.group(1)}: install this program's dependencies there, in the"
        " environment that its Ray was started from, or leave the node out, and run again"
    )


def describe_loss(error: BaseException) -> str:
    """The sentence of Ray's message, some ten lines, that says what happened."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(_cause_of(error)))  # Ray colours it, for a terminal
    text = " ".join(plain.split())
    found = re.search(r"(Worker exit type: .*|The actor (?:is dead|died) because .*|.* running low on memory.*)", text)
    return (found.group(1) if found else text or type(error).__name__)[:500]
