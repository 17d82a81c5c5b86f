"""Sources on an object store, copied to this machine while they are read; large ones stay for the next reader.

A long video is read span by span, by several workers of a node, first by scan and then by crop: they share one copy.
Such copies lie in one folder below the temporary directory, each beside a lock: who reads a copy holds its lock
together with other readers, who fetches or removes it holds it alone. Locks of killed processes are free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from curation.units import UnitResult
from manifests.scratch import scratch_folder, temporary_folder
from manifests.storage import filesystem_of

_MIN_BYTES = 8 << 20  # smaller ones are fetched again as fast as they are looked up
_ENDING_LENGTH = 16
_VERSIONS = ("mtime", "ETag", "etag", "LastModified", "last_modified", "Last-Modified")
_BYTES_PER_S = 20e6
"""At which a worker copies a source: a good link is several times as fast, and over one of 8 Mbit/s it takes 20 times
as long, which is where the deadline of a unit is."""
_room_bytes = 0


def keep_up_to(num_bytes: int) -> None:
    """From now on this process leaves copies for others, of so many bytes altogether; 0: none."""
    global _room_bytes
    _room_bytes = num_bytes


def copying_s(places: Iterable[dict[str, Any]]) -> float:
    """Expected seconds until a source in one of these places (`uri`, `size_bytes`) is on this machine; 0 of local ones.

    All spans of a video are given it: whichever comes first copies it, and the others wait.
    """
    sizes = (place["size_bytes"] or 0 for place in places if "://" in place["uri"])
    return max(sizes, default=0) / _BYTES_PER_S


def version_of(info: dict[str, Any]) -> str:
    """What fsspec's `info` of a file tells of its last change; empty where it tells nothing."""
    return next((str(info[name]) for name in _VERSIONS if info.get(name) is not None), "")


@contextlib.contextmanager
def local_copy(uri: str, result: UnitResult | None = None) -> Iterator[str]:
    """A local path of `uri`: the file itself, or a copy of a remote one, which is only to be read.

    What `result` then says of the copy is said of `uri`.
    """
    if "://" not in uri:
        yield uri
        return
    with _copy_of(uri) as path:
        yield path
        for row in [row for rows in result.rows.values() for row in rows] if result else ():
            for column in ("detail", "message"):
                if row.get(column):
                    row[column] = row[column].replace(path, uri)


@contextlib.contextmanager
def _copy_of(uri: str) -> Iterator[str]:
    filesystem, remote = filesystem_of(uri)
    ending = _ending_of(uri)
    info = filesystem.info(remote) if _room_bytes else {}
    version = version_of(info)
    size = info.get("size") or 0
    if version and _MIN_BYTES <= size <= _room_bytes:
        name = hashlib.sha256(f"{uri}|{size}|{version}".encode()).hexdigest()[:32]
        with _kept_copy(filesystem, remote, name, ending, size) as path:
            yield str(path)
    else:
        with scratch_folder() as folder:
            path = str(folder / f"source{ending}")
            filesystem.get_file(remote, path)
            yield path


def _ending_of(uri: str) -> str:
    """The ending of its name, if that is one; a web address may have a long query, with dots in it."""
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri
    ending = os.path.splitext(path)[1]
    return ending if len(ending) <= _ENDING_LENGTH else ""


def kept_folder() -> Path:
    """Where the copies of this user's runs are."""
    return temporary_folder() / f"portrait-sources-{os.getuid()}"


def remove_kept() -> None:
    """Remove all copies that nobody reads at the moment."""
    for lock in _locks():
        _remove(lock)
    try:
        kept_folder().rmdir()
    except OSError:
        return  # there was none, or one is being read


@contextlib.contextmanager
def _kept_copy(filesystem: Any, remote: str, name: str, ending: str, size: int) -> Iterator[Path]:
    copy, lock = kept_folder() / f"{name}.copy{ending}", kept_folder() / f"{name}.lock"
    while True:
        with contextlib.suppress(FileExistsError):  # which mkdir raises, too, where another removes it just then
            kept_folder().mkdir(mode=0o700, exist_ok=True)
        with _opened(lock) as file:
            if file is None or not _take(lock, file, fcntl.LOCK_SH):
                continue
            if not copy.exists():
                # Between two kinds of lock nobody holds it: another may have fetched the copy, or removed it.
                if not _take(lock, file, fcntl.LOCK_EX):
                    continue
                if not copy.exists():
                    _fetch(filesystem, remote, copy, size)
                if not _take(lock, file, fcntl.LOCK_SH) or not copy.exists():
                    continue
            os.utime(lock)
            yield copy
            return


@contextlib.contextmanager
def _opened(lock: Path) -> Iterator[IO[str] | None]:
    try:
        file = open(lock, "a")  # noqa: SIM115  (closed below)
    except FileNotFoundError:  # the folder has just been removed
        yield None
        return
    with file:
        yield file


def _take(lock: Path, file: IO[str], kind: int) -> bool:
    """Lock it; False where it has been removed meanwhile."""
    fcntl.flock(file, kind)
    try:
        return os.stat(lock).st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _fetch(filesystem: Any, remote: str, copy: Path, size: int) -> None:
    """Put the copy in its place, with its lock held."""
    part = copy.with_suffix(".part")
    _make_room(_room_bytes - size)
    try:
        try:
            filesystem.get_file(remote, str(part))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            part.unlink(missing_ok=True)
            _make_room(0)  # the disk has less room than was promised
            filesystem.get_file(remote, str(part))
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)


def _make_room(most_bytes: int) -> None:
    """Remove copies that nobody reads, those first that were read the longest ago, until so many bytes are left."""
    sizes, last_read = {}, {}
    for lock in _locks():
        try:
            last_read[lock] = lock.stat().st_mtime
        except FileNotFoundError:
            continue
        sizes[lock] = _size_of(lock)
    left = sum(sizes.values())
    for lock in sorted(last_read, key=last_read.__getitem__):
        if left <= most_bytes:
            return
        if _remove(lock):
            left -= sizes[lock]


def _locks() -> list[Path]:
    """One for each copy; none where another process has just removed the folder, or there is no temporary one."""
    try:
        return sorted(kept_folder().glob("*.lock"))
    except OSError:
        return []


def _size_of(lock: Path) -> int:
    size = 0
    with contextlib.suppress(FileNotFoundError):  # somebody removes it, perhaps with the folder
        for path in lock.parent.glob(f"{lock.stem}.*"):
            size += path.stat().st_size
    return size


def _remove(lock: Path) -> bool:
    """Remove a copy with its lock; False where somebody reads or fetches it."""
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in lock.parent.glob(f"{lock.stem}.*"):
                if path != lock:
                    path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    except (FileNotFoundError, BlockingIOError):
        return False
    return True
