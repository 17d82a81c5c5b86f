"""The address of a Ray cluster, looked at before Ray waits for a dead one for minutes and hears no Ctrl-C."""

from __future__ import annotations

import os
import socket

from curation.sandbox import FatalError

_CONNECT_S = 5.0


def require_cluster(address: str) -> None:
    """Check `--address`, or RAY_ADDRESS where that leaves it open; nothing where Ray is started in this process.

    Raises:
        ValueError: it is no address of a cluster that a process can join.
        FatalError: nothing answers there.
    """
    name = "--address"
    if address in ("", "auto") and os.environ.get("RAY_ADDRESS"):
        name, address = "RAY_ADDRESS", os.environ["RAY_ADDRESS"]
    if address in ("", "auto", "local"):
        return
    if "://" in address:
        raise ValueError(
            f"{name} is {address}: from another machine use `ray job submit` (see README, On a cluster); on the head"
            " --address auto, with RAY_ADDRESS unset"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{name} is {address}: expected auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise FatalError(f"no Ray cluster answers at {name} {address}: {error}") from error
