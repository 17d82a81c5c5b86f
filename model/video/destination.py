"""Places for results: looked at before the work, and filled at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Hidden name beside `path` for a result that is not complete; never longer than a file system takes."""
    return path.with_name(f".{path.stem[:40]}.{os.getpid()}.partial{path.suffix.lower()}")


def check_writable(path: str | Path) -> None:
    """ValueError where no file `path` can be made: no folder, no right to write, a name too long, a folder's name."""
    path = Path(path)
    try:
        if not path.absolute().parent.is_dir():
            raise ValueError(f"cannot write {path}: its folder does not exist")
        with suppress(FileNotFoundError):
            os.lstat(path)  # tells a name that is too long
        if path.is_dir():
            raise ValueError(f"cannot write {path}: it is a folder")
        partial_path(path).touch()
        partial_path(path).unlink()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A partial file to write to; it gets the name `path` at the end, and goes if anything fails."""
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
