"""The folder of a run: no data set, no weights, and one command at a time that writes into it."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.checkpoint import holds_weights

logger = logging.getLogger(__name__)


def check_output(output: Path) -> None:
    """ValueError where a run must not write."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; expected the folder of a run, or a new name")
    if (output / "manifests").is_dir() and ((output / "recipe.toml").exists() or (output / "shards").is_dir()):
        raise ValueError(f"--output {output} is a data set, whose recipe and metrics a run would replace: use another")
    if holds_weights(output) and not (output / "checkpoints").is_dir():
        raise ValueError(
            f"--output {output} holds weights, beside which a run would be another model: use another folder"
        )


@contextmanager
def only_command(output: Path) -> Iterator[None]:
    """Hold the folder; the kernel lets go of it when the process dies. It is made if it is missing, and removed again
    if it stays empty.

    ValueError when another command trains into it, or nothing can be written there.
    """
    is_new = not output.exists()
    path = output / ".lock"
    try:
        output.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ValueError(f"cannot write to --output {output}: {error.strerror}") from error
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            by = file.read().strip() or "another command"
            raise ValueError(f"{by} is training into {output}: wait for it, or end it first") from error
        except OSError as error:
            logger.warning("%s has no locks (%s): let only one command at a time train into it", output, error)
        if not path.exists() or os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
            raise ValueError(f"another command has just ended in {output}: try again")
        with suppress(OSError):  # a full disk does not keep a run from being looked at again
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):
                    output.rmdir()
