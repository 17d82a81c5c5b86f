"""Files on web servers, with patience: what a server is too busy for or breaks off is asked for again.

A list of videos may name thousands of servers, of which some are gone for good: after one file of a server has been
waited for in vain, the next ones are asked for once, until it answers again.

Imported where the first `http://` or `https://` address is used (`manifests.storage` registers it with fsspec).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from manifests.errors import ObjectUnreachable

PATIENCE_S = 30.0
_PATIENCE_TO_CONNECT_S = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
_TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_ABSENT_STATUSES = (404, 410)
_TRANSIENT_ERRORS = (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, TimeoutError)
_HOPELESS_ERRORS = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError)
_silent: set[str] = set()  # servers that have been waited for in vain


class PatientHTTPFileSystem(HTTPFileSystem):
    """fsspec's, which waits out busy servers and lost connections, and goes through the environment's proxy.

    Of a file that does not come it raises `ObjectUnreachable`, or FileNotFoundError where the server has none.
    """

    def __init__(self, *args: Any, client_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        # aiohttp alone ends every answer after five minutes, also that of a long video
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        kwargs = {"timeout": timeout, "trust_env": True, **(client_kwargs or {})}
        super().__init__(*args, client_kwargs=kwargs, **options)

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            try:
                return await HTTPFileSystem._info(self, url, **options)
            except FileNotFoundError as error:  # as which fsspec raises whatever happened
                raise error.__cause__ or error from None

        return await _patiently(url, ask)

    async def _exists(self, path: str, strict: bool = False, **options: Any) -> bool:
        """As fsspec's, which takes every error for an answer."""
        try:
            return await _patiently(path, partial(super()._exists, path, strict=True, **options))
        except FileNotFoundError:
            return False
        except ObjectUnreachable as error:
            if "*" in path and isinstance(error.__cause__, aiohttp.ClientResponseError):
                return False  # some servers refuse such a name; their list of the folder is asked for next
            raise

    async def _ls_real(self, url: str, detail: bool = True, **options: Any) -> Any:
        return await _patiently(url, partial(super()._ls_real, url, detail=detail, **options))

    async def _walk(self, path: str, *args: Any, on_error: Any = None, **options: Any) -> AsyncIterator[Any]:
        """As fsspec's, which leaves out folders that the server does not list, whatever the reason."""
        async for found in super()._walk(path, *args, on_error=on_error or _raise_unless_absent, **options):
            yield found

    async def _get_file(self, rpath: str, lpath: Any, **options: Any) -> None:
        await _patiently(rpath, partial(super()._get_file, rpath, lpath, **options))

    async def _cat_file(self, url: str, *args: Any, **options: Any) -> bytes:
        return await _patiently(url, partial(super()._cat_file, url, *args, **options))


def _raise_unless_absent(error: Exception) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


async def _patiently(url: str, ask: Callable[[], Awaitable[Any]]) -> Any:
    server = urlsplit(url).netloc
    since, wait_s = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            answer = await ask()
        except (aiohttp.ClientError, TimeoutError) as error:
            if getattr(error, "status", None) in _ABSENT_STATUSES:
                raise FileNotFoundError(url) from None
            may_pass = _is_transient(error)
            is_connected = not isinstance(error, aiohttp.ClientConnectorError)
            patience_s = PATIENCE_S if is_connected else _PATIENCE_TO_CONNECT_S
            if not may_pass or server in _silent or time.monotonic() - since >= patience_s:
                if may_pass:
                    _silent.add(server)
                raise ObjectUnreachable(f"{url} cannot be read: {_describe(error)}") from error
        else:
            _silent.discard(server)
            return answer
        await asyncio.sleep(random.uniform(0.5, 1.0) * wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in _TRANSIENT_STATUSES
    return isinstance(error, _TRANSIENT_ERRORS) and not isinstance(error, _HOPELESS_ERRORS)


def _describe(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the server answers {error.status} {error.message}".rstrip()
    return str(error) or "the server does not answer in time"
