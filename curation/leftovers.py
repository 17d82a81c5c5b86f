"""Units that were lost with their worker or its node: done again until they are done or are themselves to blame.

Ray Data starts an actor that died anew and gives it the same task again, for ever. Here that is off: what a dead actor
had in hand is missing at the end of a stage, and comes here. First the units run side by side, each alone in its actor;
one that takes two actors down runs once more with nothing beside it (the machine may have been short of memory).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from curation.sandbox import FatalError

ATTEMPTS = 3  # at a unit that comes here


@dataclass(frozen=True, slots=True)
class Loss:
    """A unit that took down every worker that it was given to, or that none could do."""

    attempts: int
    error: BaseException
    """What was heard of the last one."""

    @property
    def message(self) -> str:
        """That in one line."""
        return describe_loss(self.error)


@dataclass(slots=True)
class _Case:
    unit: dict[str, Any]
    attempts: int = 0
    error: BaseException = field(default_factory=BaseException)


def do_again(
    units: list[dict[str, Any]], start: Callable[[], Any], workers: int
) -> Iterator[tuple[dict[str, Any], Any | Loss]]:
    """Each unit once, with the answer of an actor or with its `Loss`, in any order.

    `start` makes an actor with a method `finish(unit)`; up to `workers` of them work side by side. What was lost with
    the node of its actor counts against no unit.

    Raises:
        FatalError: a node lacks a Python package.
    """
    suspects = yield from _do([_Case(unit) for unit in units], start, workers, ATTEMPTS - 1)
    for suspect in suspects:
        for case in (yield from _do([suspect], start, 1, ATTEMPTS)):
            yield case.unit, Loss(case.attempts, case.error)


def _do(
    cases: list[_Case], start: Callable[[], Any], workers: int, attempts: int
) -> Generator[tuple[dict[str, Any], Any], None, list[_Case]]:
    """Yields units with their answers; returns those that have been tried `attempts` times."""
    import ray

    waiting, given_up = deque(cases), []
    busy: dict[Any, tuple[Any, _Case]] = {}
    idle: list[Any] = []
    nodes: dict[Any, Any] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                actor, case = idle.pop() if idle else start(), waiting.popleft()
                if actor not in nodes:
                    nodes[actor] = actor.__ray_call__.remote(_node_id)
                busy[actor.finish.remote(case.unit)] = actor, case
            answer = ray.wait(list(busy), num_returns=1)[0][0]
            actor, case = busy.pop(answer)
            try:
                summary = ray.get(answer)
            except ray.exceptions.RayError as error:
                ray.kill(actor)
                if missing := missing_package(error):  # no unit is to blame, and the next one may meet it, too
                    raise FatalError(missing) from error
                case.attempts += not _is_lost(nodes.pop(actor))
                case.error = _cause_of(error)
                (waiting if case.attempts < attempts else given_up).append(case)
            else:
                if waiting:
                    idle.append(actor)
                else:
                    ray.kill(actor)  # after the loss of a node there may be no room for the others until it is gone
                yield case.unit, summary
    finally:
        for actor in [*idle, *(actor for actor, _ in busy.values())]:
            ray.kill(actor)
    return given_up


def _node_id(actor: Any) -> str:
    """Where an actor is; called there."""
    import ray

    return ray.get_runtime_context().get_node_id()


def _is_lost(node: Any) -> bool:
    """Whether the node that an actor has told with `_node_id` is gone; False where it had died before it could."""
    import ray

    try:
        node_id = ray.get(node, timeout=0)
    except ray.exceptions.RayError:
        return False
    return not any(other["Alive"] for other in ray.nodes() if other["NodeID"] == node_id)


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
