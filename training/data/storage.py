"""A data set's folder, local or on an object store: its manifests, its shards' sizes, and ranges of their bytes."""

from __future__ import annotations

import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from manifests.storage import list_files
from manifests.store import Dataset

_MAX_OPEN_FILES = 128  # of a worker; shards may be many more than a process may open
_LOOK_AGAIN_S = 10.0  # after so long it is looked whether they are still the data set's


class DatasetStorage:
    """Reads a data set at a local path or an fsspec URL (`s3://bucket/dataset`). Cheap to copy to other processes."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = str(root).rstrip("/")
        self.is_local = "://" not in self.root or self.root.startswith("file://")
        if self.is_local:
            self.root = str(Path(self.root.removeprefix("file://")).expanduser())
        self._files: OrderedDict[str, int] = OrderedDict()
        self._look_again_at = 0.0
        self._pid = 0
        self._fs: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_look_again_at": 0.0, "_pid": 0, "_fs": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def shard_place(self, shard: str) -> str:
        """Path or URL of a shard, for messages and for `open_shard`."""
        return f"{self.root}/shards/{shard}"

    def table_marks(self, name: str) -> list[tuple[str, int, str]]:
        """Name, size and time (or ETag) of each Parquet file of a table: what tells that nothing was replaced."""
        if self.is_local:
            files = Dataset(Path(self.root)).table_files(name)
            stats = [(file, file.stat()) for file in files]
            return [(file.name, stat.st_size, str(stat.st_mtime_ns)) for file, stat in stats]
        return [
            (url.rsplit("/", 1)[-1], info["size"], str(info.get("ETag") or info.get("mtime") or info.get("updated")))
            for url, info in self._listing(f"manifests/{name}").items()
            if url.endswith(".parquet")
        ]

    @contextmanager
    def table_files(self, name: str) -> Iterator[list[Path]]:
        """Local paths of a table's Parquet files; remote ones are fetched, and removed afterwards."""
        if self.is_local:
            yield Dataset(Path(self.root)).table_files(name)
            return
        urls = [url for url in self._listing(f"manifests/{name}") if url.endswith(".parquet")]
        with tempfile.TemporaryDirectory(prefix="manifests-") as folder:
            paths = [Path(folder) / url.rsplit("/", 1)[-1] for url in urls]
            if urls:
                self._filesystem().get(urls, [str(path) for path in paths])
            yield paths

    def shard_sizes(self) -> dict[str, int]:
        """Size in bytes of every file in shards/."""
        return {path.name: size for path, size in list_files(Dataset(self.root).shards).items()}

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        """The bytes of each (shard, start, end), fewer at a file's end; for what cannot be read, the exception."""
        if self.is_local:
            return [self._pread(*one) for one in ranges]
        if not ranges:
            return []
        shards, starts, ends = zip(*ranges, strict=True)
        paths = [f"{self._remote_root()}/shards/{shard}" for shard in shards]
        return self._filesystem().cat_ranges(paths, list(starts), list(ends), on_error="return")

    def open_shard(self, shard: str) -> BinaryIO:
        """A shard as a stream, read from its beginning."""
        if self.is_local:
            return open(self.shard_place(shard), "rb")
        path = f"{self._remote_root()}/shards/{shard}"
        return self._filesystem().open(path, "rb", block_size=8 << 20, cache_type="readahead")

    def _pread(self, shard: str, start: int, end: int) -> bytes | Exception:
        try:
            return os.pread(self._file(shard), end - start, start)
        except OSError as error:
            return error

    def _file(self, shard: str) -> int:
        """An open shard. One that was replaced, as where a person was taken out, is opened anew before long."""
        self._forget_after_fork()
        if time.monotonic() >= self._look_again_at:
            self._close_replaced()
            self._look_again_at = time.monotonic() + _LOOK_AGAIN_S
        if (file := self._files.pop(shard, None)) is None:
            file = os.open(self.shard_place(shard), os.O_RDONLY | os.O_CLOEXEC)
            if len(self._files) >= _MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files[shard] = file
        return file

    def _close_replaced(self) -> None:
        """Close the files that are no longer under their names."""
        for shard, file in list(self._files.items()):
            try:
                is_same = os.path.samestat(os.stat(self.shard_place(shard)), os.fstat(file))
            except OSError:
                is_same = False
            if not is_same:
                os.close(self._files.pop(shard))

    def _filesystem(self) -> Any:
        self._forget_after_fork()
        if self._fs is None:
            # An instance of this process alone: the event loop behind another's does not survive a fork.
            # Listings are not cached: a data set may grow while a long-lived process looks at it.
            options = {"skip_instance_cache": True, "use_listings_cache": False}
            self._fs = fsspec.filesystem(self.root.split("://", 1)[0], **options)
        return self._fs

    def _remote_root(self) -> str:
        return self._filesystem()._strip_protocol(self.root)

    def _listing(self, folder: str) -> dict[str, dict[str, Any]]:
        try:
            found = self._filesystem().find(f"{self._remote_root()}/{folder}", maxdepth=1, detail=True)
        except FileNotFoundError:
            return {}
        return dict(sorted(found.items()))

    def _forget_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._files, self._fs = OrderedDict(), None
