"""One command at a time changes a data set."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from manifests.store import Dataset, remove_temporary_files


@contextmanager
def only_run(dataset: Dataset) -> Iterator[bool]:
    """Hold the data set's lock; two runs would undo each other's work.

    A removal that was interrupted is finished first; yields whether there was one.

    Raises:
        ValueError: another command holds the lock.
    """
    from curation.removal import finish_removal  # which reads shards and tables as the stages do

    path = dataset.root / ".lock"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing to {dataset.root}: wait for it, or end it first") from error
        if not path.exists() or os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
            raise ValueError(f"another run has just ended on {dataset.root}: try again")
        try:
            remove_temporary_files(dataset)
            yield finish_removal(dataset)
        finally:
            path.unlink(missing_ok=True)
