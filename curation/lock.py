"""One command at a time changes a data set.

On a file system the kernel holds the lock and lets go when the process dies. On an object store `.lock` is an object
that its holder writes again every few seconds; one that is not written any more was left by a run that was killed.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from curation.sandbox import FatalError
from manifests.storage import Place, is_local, read_bytes, remove_file
from manifests.store import Dataset, remove_temporary_files

RENEW_S, STALE_S, _LOOK_S = 5.0, 60.0, 0.5
"""A holder may be silent for about 45 s after a store has come back: a request that got no answer ends after 30 s, and
the next one is sent up to 15 s later (`manifests.object_store`)."""
_CLOSE_S = RENEW_S  # looks that are further apart say nothing of the time between them


@contextmanager
def only_run(dataset: Dataset) -> Iterator[bool]:
    """Hold the data set's lock; two runs would undo each other's work.

    What was interrupted while it changed shards is finished first; yields whether there was a removal.

    Raises:
        DatasetBusy: another command holds the lock.
        ValueError: another command has just let it go, or (NotWritable) an object store takes nothing from this user.
        OSError: a file system takes nothing from this user.
        FatalError: this process was out of touch for so long that another command has taken the lock.
    """
    from curation.pack import finish_publishing  # which read shards and tables as the stages do
    from curation.removal import finish_removal

    path = dataset.root / ".lock"
    with _hold_file(path) if is_local(path) else _hold_object(path):
        remove_temporary_files(dataset)
        finish_publishing(dataset)
        yield finish_removal(dataset)


@contextmanager
def only_run_where_allowed(dataset: Dataset) -> Iterator[bool | None]:
    """`only_run` for commands that only read: None, and no lock, where this user may not write."""
    root = dataset.root
    with ExitStack() as stack:
        was_finished = None
        if not is_local(root) or (root.is_dir() and os.access(root, os.W_OK)):
            with suppress(NotWritable):
                was_finished = stack.enter_context(only_run(dataset))
        yield was_finished


class DatasetBusy(ValueError):
    """Another command is writing to the data set."""


class NotWritable(ValueError):
    """The object store takes no lock from this user."""


def require_idle(dataset: Dataset) -> None:
    """For readers that need a data set at rest; keeps no lock, so a command may begin right after this.

    On an object store this takes half a minute where a killed run left a lock: only one that is written again is held.

    Raises:
        DatasetBusy: a command holds the lock.
    """
    path = dataset.root / ".lock"
    try:
        if not is_local(path):
            _require_forsaken(path)
            return
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _refusal(path, file.read().encode()) from error
    except FileNotFoundError:
        return  # nobody works there


def _require_forsaken(path: Any) -> None:
    lock, silence = _LockObject(path), _Silence()
    seen = first = lock._look()
    while seen is not None and silence.after(seen[0]) < 5 * RENEW_S:  # 15 s of them for a call that is tried again
        if seen[0] != first[0]:
            raise _refusal(path, seen[1])
        time.sleep(_LOOK_S)
        seen = lock._look()


def _note() -> dict[str, Any]:
    """Who holds the lock."""
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S%z")}


def _refusal(path: Place, note: bytes) -> DatasetBusy:
    try:
        holder = "{host}, process {process}, since {since}".format(**json.loads(note))
    except (ValueError, KeyError, TypeError):
        holder = "it does not say who"
    return DatasetBusy(f"another run is writing to {path.parent} ({holder}): wait for it, or end it first")


@contextmanager
def _hold_file(path: Path) -> Iterator[None]:
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _refusal(path, file.read().encode()) from error
        if not path.exists() or os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
            raise ValueError(f"another run has just ended on {path.parent}: try again")
        file.truncate(0)
        file.write(json.dumps(_note()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _hold_object(path: Any) -> Iterator[None]:
    lock = _LockObject(path)
    try:
        lock.take()
    except PermissionError as error:
        raise NotWritable(f"cannot write to {path.parent}: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"cannot write to {path.parent}: {error}") from error
    try:
        try:
            with lock.renewed():
                yield
        finally:
            if lock.is_lost:  # which is told whatever has ended the work, also that it was done
                raise FatalError(
                    f"another run has taken over {path.parent}: this one did not get through to the store for"
                    f" {STALE_S:.0f} s, or both began at the same moment on a store without conditional writes; end"
                    " one of them; the same command continues"
                ) from None
    finally:
        is_failing = sys.exc_info()[0] is not None  # then that is told, not that the lock cannot be removed
        with suppress(OSError) if is_failing else nullcontext():
            lock.release()


class _Silence:
    """For how long the lock has not been written again, as one sees who looks often. Time in which the store did not
    answer does not count: the holder, too, may have waited for it."""

    def __init__(self) -> None:
        self._version = ""
        self._since = self._last_look = -math.inf

    def after(self, version: str) -> float:
        """Seconds, after a look that has just found this version."""
        now = time.monotonic()
        if version != self._version or now - self._last_look > _CLOSE_S:
            self._since = now
        self._version, self._last_look = version, now
        return now - self._since


class _LockObject:
    """The object `.lock`. Whoever creates it holds it; it is replaced only by who knows its last version.

    Some stores refuse conditional writes, and some do them whatever the condition: so each is also preceded by a look,
    which leaves a moment for two to do the same. Of these the first one sees at its next look that it has lost.
    """

    def __init__(self, path: Any) -> None:
        self._path = path
        self._owner = uuid.uuid4().hex
        self._note = _note()
        self._num_writes = 0
        self._end = threading.Event()
        self.is_lost = False

    def take(self) -> None:
        """Create it, or take over one that has not been written again for `STALE_S` in which the store answered.

        Raises:
            DatasetBusy: its holder is alive.
        """
        seen, silence = "", _Silence()
        while True:
            found = self._look()
            if found is None:
                if self._write(IfNoneMatch="*"):
                    return
                continue
            version, note = found
            if self._is_mine(note):  # the answer to the first attempt at writing it was lost
                return
            silence_s = silence.after(version)
            if not seen:
                seen = version
                print(f"waiting up to {STALE_S:.0f} s: {_refusal(self._path, note)}", file=sys.stderr, flush=True)
            elif version != seen:
                raise _refusal(self._path, note)
            elif silence_s > STALE_S:
                if self._write(IfMatch=version):
                    print("it has ended without a word: going on", file=sys.stderr, flush=True)
                    return
                seen = ""
            time.sleep(_LOOK_S)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Write it again every `RENEW_S`, in a thread; the main thread is interrupted when somebody else has it."""
        thread = threading.Thread(target=self._renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _renew(self) -> None:
        while not self._end.wait(RENEW_S):
            try:
                found = self._look()
                if found is not None and self._is_mine(found[1]):
                    self._write(IfMatch=found[0])  # where it is not, somebody has it: the next look shows that
                    continue
            except OSError:
                continue  # out of touch; whether somebody took it shows once the store answers again
            self.is_lost = True
            is_deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as of a command that a script starts with &
            _thread.interrupt_main(signal.SIGTERM if is_deaf else signal.SIGINT)
            return

    def release(self) -> None:
        """Remove it, if it is still this run's."""
        found = self._look()
        if found is not None and self._is_mine(found[1]):
            remove_file(self._path)

    def _is_mine(self, note: bytes) -> bool:
        return self._owner.encode() in note

    def _look(self) -> tuple[str, bytes] | None:
        """Its version and content, None when there is none."""
        try:
            info = self._path.fs.info(self._path.path)
            note = read_bytes(self._path)
        except FileNotFoundError:
            return None
        return str(info.get("ETag") or info.get("etag") or note), note

    def _write(self, **condition: str) -> bool:
        """Put it where the condition holds, or anyway where the store knows no conditions; whether it was put."""
        self._num_writes += 1
        note = json.dumps({**self._note, "owner": self._owner, "written": self._num_writes}).encode()
        filesystem = self._path.fs
        try:
            filesystem.pipe_file(self._path.path, note, **(condition if "s3" in filesystem.protocol else {}))
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                return False
            if error.errno != errno.ENOSYS and code != "NotImplemented":
                raise
            filesystem.pipe_file(self._path.path, note)
        return True
