"""What a run tells while none of its workers has started: on a cluster without room it waits, however long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FIRST_S, _EVERY_S = 30.0, 300.0
_MEMORY = "; Ray ends workers at once where nearly all memory of a machine is in use"


@contextmanager
def telling_of_the_wait(stage: str) -> Iterator[Callable[[], None]]:
    """Tells now and again that no worker of `stage` is there, while nothing comes; what it yields is called for each
    row that comes."""
    came, is_over = threading.Event(), threading.Event()

    def tell() -> None:
        pause_s = _FIRST_S
        while not is_over.wait(pause_s):
            if not came.is_set() and not _has_workers(stage):
                print(f"{stage}: waiting for a worker to start: the cluster has {_room()}{_MEMORY}", file=sys.stderr)
            came.clear()
            pause_s = _EVERY_S

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield came.set
    finally:
        is_over.set()
        thread.join()  # once Ray is left, a question to it would start another


def _has_workers(stage: str) -> bool:
    """Whether an actor of the stage has started; also where Ray does not say."""
    import ray
    from ray._private import state  # what is public asks a dashboard, of any cluster on the machine

    try:
        job, alive = ray.get_runtime_context().get_job_id(), state.actors(actor_state_name="ALIVE").values()
        return any(actor["JobID"] == job and stage.capitalize() in actor["ActorClassName"] for actor in alive)
    except Exception:  # told to developers alone, so it may change
        return True


def _room() -> str:
    import ray

    there, free = ray.cluster_resources(), ray.available_resources()
    kinds = ["CPU", *(["GPU"] if "GPU" in there else [])]
    return ", ".join(f"{there.get(kind, 0):g} {kind}s ({free.get(kind, 0):g} free)" for kind in kinds)
