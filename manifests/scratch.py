"""Folders on this machine for pieces of work, which the next process removes where one was killed."""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_SCRATCH, _OWNER = "portrait-scratch-", ".owner"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def tells_of_no_room(error: Exception) -> bool:
    """Whether a disk is full or read-only."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def temporary_folder() -> Path:
    """This machine's folder of temporary files.

    Raises:
        OSError: ENOSPC: none can be written to. Python says the same with FileNotFoundError, as of any missing file.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise OSError(errno.ENOSPC, error.strerror) from error


class Scratch:
    """A folder on this machine for one piece of work. What killed processes left is removed by the next ones.

    Folders of one kind share a prefix, in the temporary folder (see `temporary_folder`) or in `parent`.
    """

    def __init__(self, prefix: str = _SCRATCH, parent: Path | None = None) -> None:
        parent = parent or temporary_folder()
        _remove_dead(parent, prefix)
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            self._owner = open(self.folder / _OWNER, "w")  # noqa: SIM115  (held open: its lock tells that we live)
            fcntl.flock(self._owner, fcntl.LOCK_EX)
            if self.folder.exists():  # else another process has taken it for a dead one's before it was locked
                return
            self._owner.close()

    def remove(self) -> None:
        """Remove it with all in it; may be repeated."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._owner.close()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A `Scratch` that is removed afterwards."""
    scratch = Scratch()
    try:
        yield scratch.folder
    finally:
        scratch.remove()


@cache
def _remove_dead(parent: Path, prefix: str) -> None:
    """Once a process, those whose file `_OWNER` nobody holds locked; process numbers would mean nothing between
    containers."""
    for folder in parent.glob(f"{prefix}*"):
        try:
            with open(folder / _OWNER) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # in use, just being made, or of another user
