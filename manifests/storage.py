"""Files of a data set on a file system or an object store: the few operations in which the two differ.

A local place is a `pathlib.Path` and is treated as such. Anything with a protocol (`s3://bucket/dataset`) is a `UPath`,
which reads, lists and joins like one. What a reader finds under a name is always complete: locally a temporary file is
renamed, an object is put as a whole. Credentials and endpoints come from the environment (AWS_*, AWS_ENDPOINT_URL).
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from manifests.scratch import Scratch, scratch_folder

if TYPE_CHECKING:
    from upath import UPath

Place: TypeAlias = "Path | UPath"
T, R = TypeVar("T"), TypeVar("R")


_S3 = ("s3", "s3a")
_PART_BYTES = 16 << 20  # of an upload; a few of them are held in memory
_READ_BYTES = 64 << 20  # of small objects that are read side by side
_READ_FILES = 256
_WHOLE_BYTES = 8 << 20  # a file that is fetched with one request rather than by ranges
_SIDE_BY_SIDE = 16

for _protocol in _S3:
    fsspec.register_implementation(_protocol, "manifests.object_store.PatientS3FileSystem", clobber=True)
for _protocol in ("http", "https"):
    fsspec.register_implementation(_protocol, "manifests.web.PatientHTTPFileSystem", clobber=True)


def place(where: str | os.PathLike[str] | UPath) -> Place:
    """A path, or a `UPath` of an fsspec URL.

    Raises:
        ValueError: as `filesystem_of`, or the name is empty, as that of a shell's variable that is not set, or has a
            `::` that `UPath` would not take for a part of it.
    """
    if not isinstance(where, (str, os.PathLike)):
        return where
    text = str(where)
    if not text.strip():
        raise ValueError("the name of a folder or file is empty: for the current folder write .")
    if "://" not in text:
        return Path(where).expanduser()
    if text.startswith(("file://", "local://")):
        return Path(text.split("://", 1)[1]).expanduser()
    if "::" in text.partition("://")[2]:
        raise ValueError(f"{text} has :: in its name, which joins URLs: choose another name")
    filesystem_of(text)
    from upath import UPath

    return UPath(text.rstrip("/"))


def filesystem_of(where: str) -> tuple[Any, str]:
    """fsspec's file system of a path or URL, and the path in it.

    Raises:
        ValueError: the URL names no bucket, or its protocol needs a package that is not installed.
    """
    if "://" not in where:  # `::` in the name of a file, which joins URLs, means nothing there
        return fsspec.filesystem("file"), LocalFileSystem._strip_protocol(where)
    protocol, _, rest = where.partition("://")
    if "://" in where and (not rest.strip("/") or (protocol in _S3 and rest.startswith("/"))):
        raise ValueError(f"{where} names no bucket: expected {protocol}://BUCKET/...")
    try:
        if "::" not in rest or "::" in protocol:
            return fsspec.core.url_to_fs(where)
        kind = fsspec.get_filesystem_class(protocol)  # nor does it in the name of an object
        return fsspec.filesystem(protocol, **kind._get_kwargs_from_urls(where)), kind._strip_protocol(where)
    except ImportError as error:
        raise ValueError(f"{where} cannot be reached: {error}") from error


def full_path(path: str) -> str:
    """A local path from the root on, without `.` and `..`; links stay, also `link/..`, which is not where it looks."""
    short = os.path.abspath(path)
    is_moved = os.path.exists(path) and not (os.path.exists(short) and os.path.samefile(path, short))
    return os.path.join(os.getcwd(), path) if is_moved else short


def printable(path: str) -> str:
    """A path as text for tables: bytes of a local one that are no UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def is_local(path: Place) -> bool:
    """Whether a place is on a file system of this machine."""
    return isinstance(path, Path)


def require_local(path: Place, what: str) -> Path:
    """`path`, when it is local.

    Raises:
        ValueError: it is on an object store, or a URL that has been taken for a path.
    """
    if not is_local(path) or re.fullmatch(r"\w+:", path.parts[0] if path.parts else ""):
        raise ValueError(f"{what} {path} is on an object store")
    return path  # type: ignore[return-value]


def require_writable_file(path: Place, what: str) -> Path:
    """`path`, when it is local and a file of that name can be made.

    Raises:
        ValueError: as `require_local`, or there is no such folder, it is a folder itself, or the system refuses it.
    """
    path = require_local(path, what)
    try:
        if not path.absolute().parent.is_dir():
            raise ValueError(f"cannot write {path}: its folder does not exist")
        if path.is_dir():
            raise ValueError(f"cannot write {path}: it is a folder")
        if not os.path.lexists(path):
            path.touch()
            path.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    return path


def make_folder(path: Place) -> None:
    """Make a folder and its parents; on an object store there are none."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)


def list_files(folder: Place, ending: str = "", *, below: bool = False) -> dict[Place, int]:
    """Path -> size in bytes of the files in a folder, sorted; `below`: in its subfolders too. {} if there is none.
    An empty object `folder/`, with which consoles and other tools show a folder of an object store, is no file."""
    if is_local(folder):
        sizes = {}
        for path in sorted(Path(entry) for entry in _entries(folder, below=below) if entry.name.endswith(ending)):
            with suppress(FileNotFoundError):  # it has gone since: somebody is at work there
                if path.is_file():
                    sizes[path] = path.stat().st_size
        return sizes
    try:
        entries = folder.fs.find(folder.path, detail=True).values() if below else folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return {}
    start = len(folder.path.rstrip("/")) + 1
    files = {e["name"][start:]: e["size"] for e in entries if e["type"] == "file"}
    return {folder / n: files[n] for n in sorted(files) if n and n.endswith(ending) and not n.endswith("/")}


def list_folders(folder: Place) -> list[Place]:
    """The folders in a folder, sorted."""
    if is_local(folder):
        return sorted(Path(entry) for entry in _entries(folder, below=False) if entry.is_dir())
    try:
        entries = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(folder / e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")


def _entries(folder: Path, *, below: bool) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, and below it; nothing where there is none, or none any more."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if below and entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry), below=True)


class NewFile:
    """A file that appears under its name when it is complete, or not at all. Until then it is written at `temporary`:
    beside its place on a file system; for an object store in a folder of its own in this machine's scratch. Its name
    is nobody else's: two threads, or two containers that share a disk, may write the same file, and the last one stays.
    """

    def __init__(self, path: Place) -> None:
        self._path = path
        self._scratch: Scratch | None = None
        if is_local(path):
            self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        else:
            self._scratch = Scratch()
            self.temporary = self._scratch.folder / path.name

    def commit(self) -> None:
        """Put the finished file, which is closed, in its place."""
        if self._scratch is None:
            os.replace(self.temporary, self._path)
        else:
            upload(self.temporary, self._path)
            self._scratch.remove()

    def discard(self) -> None:
        """Remove what was written; nothing where it is in its place already."""
        if self._scratch is None:
            self.temporary.unlink(missing_ok=True)
        else:
            self._scratch.remove()

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()


def upload(source: Path, target: Place) -> None:
    """Put a local file on an object store; a large one in parts that become one object at the end."""
    target.fs.put_file(str(source), target.path, **_upload_options(target))


def _upload_options(target: UPath) -> dict[str, Any]:
    return {"chunksize": _PART_BYTES, "max_concurrency": 4} if target.protocol in _S3 else {}


def write_bytes_atomically(path: Place, data: bytes) -> None:
    """Write a whole file: it is there with all its bytes, or as it was before."""
    if is_local(path):
        make_folder(path.parent)
        with NewFile(path) as temporary:
            temporary.write_bytes(data)
    else:
        path.fs.pipe_file(path.path, data)


def append_line(path: Place, line: str) -> None:
    """Add a line to a text file that one process writes; on an object store the file is put again."""
    if is_local(path):
        with open(path, "a") as file:
            file.write(line + "\n")
        return
    try:
        before = read_bytes(path)
    except FileNotFoundError:
        before = b""
    write_bytes_atomically(path, before + line.encode() + b"\n")


def read_bytes(path: Place) -> bytes:
    """A whole file."""
    return path.read_bytes() if is_local(path) else path.fs.cat_file(path.path)


def read_files(sizes: Mapping[Place, int]) -> Iterator[tuple[Place, bytes]]:
    """Path and content of files in their order; objects side by side, so many that they fit in memory.

    sizes: bytes of each, as `list_files` gives them.
    """
    chunk: list[Place] = []
    num_bytes = 0
    for path, size in sizes.items():
        if is_local(path):
            yield path, path.read_bytes()
            continue
        if chunk and (num_bytes + size > _READ_BYTES or len(chunk) == _READ_FILES):
            yield from _read_side_by_side(chunk)
            chunk, num_bytes = [], 0
        chunk.append(path)
        num_bytes += size
    if chunk:
        yield from _read_side_by_side(chunk)


def _read_side_by_side(paths: list[Place]) -> Iterator[tuple[Place, bytes]]:
    names = [path.path for path in paths]  # not by `cat`, to which a [ or * in a name is a pattern
    found = paths[0].fs.cat_ranges(names, None, None, batch_size=_SIDE_BY_SIDE, on_error="raise")
    yield from zip(paths, found, strict=True)


def read_range(path: Place, start: int, end: int) -> bytes:
    """The bytes [start, end) of a file; fewer where it ends before."""
    return read_ranges(path, [(start, end)])[0]


def read_ranges(path: Place, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Several ranges [start, end) of one file; from an object store side by side."""
    if not is_local(path):
        starts, ends = zip(*ranges, strict=True)
        return path.fs.cat_ranges([path.path] * len(ranges), list(starts), list(ends), on_error="raise")
    with open(path, "rb") as file:
        return [os.pread(file.fileno(), end - start, start) for start, end in ranges]


@contextmanager
def open_to_read(path: Place) -> Iterator[Any]:
    """What readers of Parquet take: the path itself, or a file that asks the store for ranges; a small one is whole."""
    if is_local(path):
        yield path
        return
    with path.fs.open(path.path, "rb", cache_type="none") as file:
        yield io.BytesIO(file.read()) if file.size <= _WHOLE_BYTES else file


def move(source: Place, target: Place) -> None:
    """Put a file in the place of another of the same data set: a rename, or a copy inside the store and a removal.

    Where a folder of a local data set is a link to another disk, a copy and a removal, too.
    """
    if not is_local(source):
        source.fs.cp_file(source.path, target.path)
        remove_file(source)
        return
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with NewFile(target) as temporary:
            shutil.copyfile(source, temporary)
        source.unlink()


def move_all(places: Iterable[tuple[Place, Place]]) -> None:
    """Move files (source, target); objects side by side."""
    map_places(lambda pair: move(*pair), list(places), where=lambda pair: pair[0])


def map_places(act: Callable[[T], R], items: list[T], where: Callable[[T], Any] = lambda item: item) -> list[R]:
    """`act` of each item, in their order; side by side where `where(item)` is on an object store and answers late."""
    if all(is_local(where(item)) for item in items):
        return [act(item) for item in items]
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        return list(pool.map(act, items))


def remove_file(path: Place) -> None:
    """Remove a file, if it is there."""
    if is_local(path):
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


def remove_files(paths: Iterable[Place]) -> None:
    """Remove files of one data set, in their order on a file system, a thousand with one call on S3."""
    paths = list(paths)
    if not all(getattr(path, "protocol", "") in _S3 for path in paths):
        map_places(remove_file, paths)
        return
    # What a store could not remove is asked for again, each by itself: it may do now, or says why it does not.
    for start in range(0, len(paths), 1000):
        chunk = paths[start : start + 1000]
        removed = set(chunk[0].fs.rm([path.path for path in chunk]))
        map_places(remove_file, [path for path in chunk if path.path not in removed])


def remove_tree(folder: Place) -> None:
    """Remove a folder and all in it, if it is there; where it is a link or a mount point, all that is in it."""
    if not is_local(folder):
        remove_files(list_files(folder, below=True))
    elif _leads_elsewhere(folder):
        for path in [Path(entry) for entry in _entries(folder, below=False)]:
            remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _leads_elsewhere(folder: Path) -> bool:
    """Whether somebody has put a folder on another disk, and so means it to stay."""
    return folder.is_symlink() or folder.is_mount()


def remove_empty_folder(folder: Place) -> None:
    """Remove a folder with nothing in it; on an object store there is none."""
    if is_local(folder) and folder.is_dir() and not any(folder.iterdir()) and not _leads_elsewhere(folder):
        folder.rmdir()


@contextmanager
def local_file(path: Place | str) -> Iterator[Path]:
    """A local file with the content of `path` (or a URL): itself, or a copy in scratch that is removed afterwards."""
    path = place(path)
    if is_local(path):
        yield path
        return
    with scratch_folder() as folder:
        copy = folder / path.name
        path.fs.get_file(path.path, str(copy), **_upload_options(path))
        yield copy
