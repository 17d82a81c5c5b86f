"""Units of work over Ray: one row of a Ray Data pipeline is a bundle of units, an actor of its pool does them in place.

Only names of files with descriptions (see `plans`) travel through the object store, never pictures. Each actor hands
the units to a child process that may die (see `sandbox`), so a poisonous file costs its unit and nothing else. What is
lost with an actor or a node is done again (see `leftovers`): a unit counts by its commit file, so that one that was
committed is never done twice.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from curation import leftovers
from curation.fetching import remove_kept
from curation.metrics import count_unit
from curation.plans import Plan
from curation.ray_start import (
    import_ray,
    join,
    make_ray_folder,
    no_deprecation_warnings,
    require_room,
    sigterm_kept_from_ray,
    start_embedded,
    tell_of_little_memory,
    workers_with_memory,
)
from curation.recipe import Recipe, with_full_paths
from curation.sandbox import FatalError
from curation.waiting import telling_of_the_wait
from curation.worker import NoScratchError, UnitWorker, fatal_answer, give_up
from manifests.recipes import require_finite
from manifests.scratch import Scratch
from manifests.storage import Place, make_folder
from model.termination import Terminated

_BUNDLES_AT_ONCE = 4096  # Ray holds some kilobytes of each in the driver
_TIDY_S = 60.0
_WORKERS_TO_COME = 32  # a cluster may grow: there are bundles for so many, whatever it has now


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """Where the work runs."""

    workers: int = 0
    """Most actors that work side by side; 0: one a core that this process may use (a container may have fewer than
    its machine) while memory is free for it (0.7 GB each), or all cores but one of a cluster, also of the nodes that
    join it later."""
    min_workers: int = 1
    """On a cluster: as many actors stay when there is less to do."""
    gpus_per_worker: float = 0.0
    """Share of a GPU that each actor of scan and crop takes (0.25: four share one); needs --faces.device cuda
    or --decoder nvdec."""
    address: str = ""
    """Ray cluster to use (auto: this machine's, or HOST:PORT); empty: RAY_ADDRESS if set, else Ray is started inside
    this process."""
    deadline_s: float = 0.0
    """Longest time for one unit of work before it is ended; 0: 5 minutes and 20 times what it should take, which grows
    with length and picture size (a scan of Full HD: 5 minutes and 5 times the length), or with the bytes of a shard
    (one of 1 GB: 22 minutes)."""
    kept_sources_gb: float = 20.0
    """Sources on an object store that a node keeps in its scratch during a run, so that a long video is fetched once a
    node and not once a span; 0: none. More only while its workers read more at the same moment."""

    def __post_init__(self) -> None:
        require_finite(self)
        if self.deadline_s < 0:
            raise ValueError(f"--deadline-s is {self.deadline_s}: expected 0 or more")
        if self.kept_sources_gb < 0:
            raise ValueError(f"--kept-sources-gb is {self.kept_sources_gb}: expected 0 or more")
        if self.workers < 0:
            raise ValueError(f"--workers is {self.workers}: expected 1 or more (0: as many as there is room for)")
        if self.min_workers < 1 or 0 < self.workers < self.min_workers:
            most = f" and at most --workers {self.workers}" if self.workers else ""
            raise ValueError(f"--min-workers is {self.min_workers}: expected 1 or more{most}")
        if self.gpus_per_worker < 0 or (self.gpus_per_worker > 1 and self.gpus_per_worker % 1):
            raise ValueError(f"--gpus-per-worker is {self.gpus_per_worker}: expected a share up to 1, or whole GPUs")


class Cluster:
    """Ray, connected to when the first unit needs it."""

    def __init__(self, options: ClusterOptions) -> None:
        self._options = options
        self._scratch: Scratch | None = None
        self._has_remote_sources = False
        self._is_begun = self._is_embedded = False
        self.is_connected = False

    def connect(self) -> None:
        """Join the cluster or start an embedded one."""
        if self.is_connected:
            return
        import_ray()
        import joblib
        import ray
        from ray.data import ExecutionResources

        address = self._options.address or os.environ.get("RAY_ADDRESS", "")
        self._is_embedded = not address and not ray.is_initialized()
        self._is_begun = True
        with sigterm_kept_from_ray():
            if self._is_embedded:
                self._scratch = make_ray_folder()
                require_room(self._scratch.folder)
                num_cpus = self._options.workers or joblib.cpu_count()
                start_embedded(str(self._scratch.folder), num_cpus + 1)  # one for Ray's own tasks
                if not self._options.workers:
                    tell_of_little_memory(num_cpus)
            else:
                join(address)
        if self._options.gpus_per_worker and self._is_embedded and not ray.cluster_resources().get("GPU"):
            raise ValueError(f"--gpus-per-worker {self._options.gpus_per_worker:g}: Ray finds no GPU on this machine")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        with no_deprecation_warnings():
            context.execution_options.exclude_resources = ExecutionResources(cpu=1)  # Ray's own tasks find room
        context.execution_no_progress_timeout_s = -1  # every unit has its deadline
        context.max_errored_blocks = -1  # what is lost is done again
        context.max_consecutive_actor_init_deaths = 3
        self.is_connected = True

    @property
    def workers(self) -> int:
        """Actors that there is room for at the moment; of several CPUs one is left free for Ray's own tasks."""
        import ray

        there = ray.cluster_resources()
        num_cpus = int(there.get("CPU", 0))
        room = max(num_cpus - 1, min(num_cpus, 1))
        if share := self._options.gpus_per_worker:
            room = min(room, int(there.get("GPU", 0) / share))
        if self._is_embedded and not self._options.workers:
            room = min(room, workers_with_memory())
        return min(room, self._options.workers or room)

    def close(self, *, is_hurried: bool = False) -> None:
        """Leave the cluster; an embedded one is ended and its temporary files removed. is_hurried: ask no other node
        to remove copies of sources, which the next run does."""
        if not self._is_begun:  # also where a signal ended the start
            return
        import ray

        if self._has_remote_sources and (self._is_embedded or not is_hurried):
            self._remove_kept_sources()
        ray.shutdown()
        if self._scratch is not None:
            self._scratch.remove()
        self._is_begun = self.is_connected = False

    def _remove_kept_sources(self) -> None:
        """On every node that is there."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._is_embedded:
            remove_kept()
            return
        task = ray.remote(num_cpus=0, max_retries=0)(remove_kept)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        done = [task.options(scheduling_strategy=place, name="remove kept sources").remote() for place in places]
        ray.wait(done, num_returns=len(done), timeout=_TIDY_S)

    def check(self, do: Callable[[], None], needs_gpu: bool) -> None:
        """Call `do` here, or where the workers will run when it needs what only they may have.

        Raises:
            FatalError: as `do` raises it.
        """
        if not needs_gpu:
            do()
            return
        self.connect()
        import ray

        task = ray.remote(num_cpus=1, num_gpus=self._options.gpus_per_worker, max_retries=0)(_answer_of)
        answer = task.options(name="check").remote(do)
        if not ray.wait([answer], timeout=60)[0]:
            print("waiting for a worker with a GPU", file=sys.stderr)
        self._require_going(ray.get(answer))

    def run(
        self, stage: str, recipe: Recipe, folder: Place, units: Iterable[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Do all units; yields a summary of each, once, as it finishes, in any order.

        Raises:
            FatalError: no unit can be done (the stage cannot start, the disk is full).
        """
        self.connect()
        if self._scratch is not None:
            require_room(self._scratch.folder)
        make_folder(folder)
        plan = Plan(folder.parent / f"plan-{stage}", units, self._workers_to_plan_for)
        worker = type(stage.capitalize(), (UnitWorker,), {})  # the operator's name on the dashboard
        options = {
            "stage": stage,
            "recipe": with_full_paths(recipe),
            "folder": folder,
            "deadline_s": self._options.deadline_s,
            "kept_bytes": int(self._options.kept_sources_gb * 1e9),
        }
        self._has_remote_sources |= plan.has_remote_sources
        num_gpus = self._options.gpus_per_worker if stage in ("scan", "crop") else 0
        bundles = plan.bundles()
        for first in range(0, len(bundles), _BUNDLES_AT_ONCE):
            for summary in self._run_pool(bundles[first : first + _BUNDLES_AT_ONCE], worker, options, num_gpus):
                if _has_gone(summary, plan):
                    continue  # what is not answered for is done again
                self._require_going(summary)
                if plan.answered(summary["unit"]):
                    yield summary
        if plan.num_unanswered:
            why = "their worker died, had no room or found no source"
            print(f"{stage}: {plan.num_unanswered} units came back undone ({why}): doing them again", file=sys.stderr)
            yield from self._run_leftovers(plan.unanswered(), worker, options, num_gpus)
        plan.remove()

    @property
    def _workers_to_plan_for(self) -> int:
        if self._is_embedded:
            return self.workers
        return min(self._options.workers or sys.maxsize, max(self.workers, _WORKERS_TO_COME))

    def _require_going(self, answer: dict[str, Any]) -> None:
        """FatalError where a worker has answered that it can do nothing (see `fatal_answer`); of several nodes, the one
        that it is on is named."""
        if "fatal" in answer:
            node, message = f"node {answer['node']}", answer["fatal"]
            is_clear = self._is_embedded or message.startswith(f"{node} ")
            raise FatalError(message if is_clear else f"{node}: {message}")

    def _run_pool(
        self, bundles: list[str], worker: type[UnitWorker], options: dict[str, Any], num_gpus: float
    ) -> Iterator[dict[str, Any]]:
        """All units of bundles by an autoscaling pool of actors. What an actor had in hand when it died is left out."""
        import ray
        from ray.data.exceptions import SystemException, UserCodeException

        now = self.workers
        most = min(self._options.workers or (now if self._is_embedded else sys.maxsize), len(bundles))
        least = min(now if self._is_embedded else self._options.min_workers, most)
        rows = [{"bundle": path} for path in bundles]
        with no_deprecation_warnings():
            results = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
                worker,
                fn_constructor_kwargs=options,
                compute=ray.data.ActorPoolStrategy(
                    min_size=least,
                    max_size=most,
                    initial_size=max(least, min(now, most)),
                    max_tasks_in_flight_per_actor=2,
                ),
                num_cpus=1,
                num_gpus=num_gpus,
                max_task_retries=0,
            )
        done = 0
        try:
            with telling_of_the_wait(options["stage"]) as row_came:
                for row in results.iter_rows():
                    row_came()
                    done += 1
                    yield json.loads(row["summary"])
        except (ray.exceptions.RayError, SystemException, UserCodeException) as error:
            if not done:
                if missing := leftovers.missing_package(error):
                    raise FatalError(missing) from error
                other = "; if the cluster was started with another RAY_AUTH_MODE or token, set the same here"
                hint = "" if self._is_embedded else other
                raise FatalError(f"no worker could do anything: {leftovers.describe_loss(error)}{hint}") from error

    def _run_leftovers(
        self, units: Iterable[dict[str, Any]], worker: type[UnitWorker], options: dict[str, Any], num_gpus: float
    ) -> Iterator[dict[str, Any]]:
        actors = leftovers.Actors(worker, options, num_gpus)
        with telling_of_the_wait(options["stage"]) as answer_came:
            for unit, answer in leftovers.do_again(units, actors, max(1, self.workers)):
                answer_came()
                if isinstance(answer, leftovers.Loss):
                    answer = _give_up_lost(options["folder"], options["stage"], unit, answer)
                self._require_going(answer)
                yield answer if "was_committed" in answer else count_unit(options["stage"], unit, answer)


def _give_up_lost(folder: Place, stage: str, unit: dict[str, Any], loss: leftovers.Loss) -> dict[str, Any]:
    reason, message = "worker_died", f"every worker that it was given to died, the last one: {loss.message}"
    if isinstance(loss.error, NoScratchError):
        reason = "unreadable"
        message = f"no node has room for it, the last one that was asked: {loss.message}; the next run tries again"
    elif loss.is_for_memory:
        reason = "killed"
        message = f"every worker that it was given to was killed, the last one for want of memory: {loss.message};"
        message += " the next run tries again"
    elif not loss.is_death:
        what = f"{type(loss.error).__name__}: {loss.message}"
        reason, message = "error", f"every worker that it was given to failed, the last one with {what}"
    return give_up(folder, stage, unit, reason, message, loss.attempts)


def _has_gone(answer: dict[str, Any], plan: Plan) -> bool:
    """Whether a source that a node does not see (see `UnseenSource`) has been removed during the run. That is a matter
    of this source; where the folder of all local ones is gone, too, of a disk or a mount."""
    if "unseen" not in answer or not os.path.isdir(plan.source_folder):
        return False
    try:
        with open(answer["unseen"], "rb"):  # for which NFS asks the server; what else it says may be old
            return False
    except OSError:
        return True


def _answer_of(do: Callable[[], None]) -> dict[str, str]:
    try:
        do()
    except FatalError as error:
        return fatal_answer(error)
    return {}


@contextmanager
def cluster(options: ClusterOptions) -> Iterator[Cluster]:
    """A `Cluster` that is closed at the end."""
    made, is_hurried = Cluster(options), False
    try:
        yield made
    except Terminated:  # the kill may follow soon, and the data set's lock has to go before: it waits for this
        is_hurried = True
        raise
    finally:
        made.close(is_hurried=is_hurried)
