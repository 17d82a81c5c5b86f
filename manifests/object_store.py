"""S3 with patience: every call is tried again while the store is overloaded or out of reach, for about two minutes.

Imported where the first `s3://` address is used (`manifests.storage` registers it with fsspec by its name), because it
takes a second.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from manifests.storage import NoBucket, StoreUnreachable

PATIENCE_S = 120.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 15.0
_TELL_AFTER_S = 5.0
_is_waiting_told = False  # once a process
_TRANSIENT_CODES = {
    *("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"),
    *("BandwidthLimitExceeded", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"),
}


class PatientS3FileSystem(S3FileSystem):
    """s3fs that waits out throttling, 5xx answers, timeouts and lost connections, and never shows a stale listing."""

    default_block_size = 16 * 2**20
    retries = 4  # of a body that breaks off while it is read; the calls themselves have PATIENCE_S

    def __init__(self, *args: Any, **options: Any) -> None:
        _require_scheme()
        options.setdefault("use_listings_cache", False)
        options.setdefault("max_concurrency", 4)  # of the parts of one file, which are held in memory
        options["config_kwargs"] = {
            "retries": {"mode": "standard", "total_max_attempts": 1},  # one loop decides, the one below
            "connect_timeout": 10,
            "read_timeout": 30,
            **(options.get("config_kwargs") or {}),
        }
        super().__init__(*args, **options)

    async def _call_s3(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        global _is_waiting_told
        start, wait_s = time.monotonic(), _FIRST_WAIT_S
        while True:
            try:
                return await super()._call_s3(method, *args, **kwargs)
            except NoCredentialsError as error:
                raise PermissionError(
                    f"{error} for s3://{_place_of(kwargs)}: set AWS_* or ~/.aws/credentials"
                ) from error
            except PermissionError as error:
                where = f"{method} of s3://{_place_of(kwargs)}"
                raise PermissionError(f"{error} ({where}): the key is wrong or may not do that") from (
                    error.__cause__ or error
                )
            except Exception as error:
                if _code_of(error) == "NoSuchBucket":
                    raise NoBucket(f"there is no bucket {kwargs.get('Bucket')!r}") from error
                if not is_transient(error):
                    raise
                waited_s = time.monotonic() - start
                if waited_s >= PATIENCE_S:
                    raise StoreUnreachable(  # which s3fs does not try again by itself
                        f"the object store has failed every call for {waited_s:.0f} s, last: {error} ({method} of"
                        f" s3://{_place_of(kwargs)}): see that it can be reached and run the same again"
                    ) from error
                if waited_s >= _TELL_AFTER_S and not _is_waiting_told:
                    _is_waiting_told = True
                    print(
                        f"the object store is out of reach or overloaded: trying again for up to {PATIENCE_S:.0f} s"
                        f" ({error})",
                        file=sys.stderr,
                        flush=True,
                    )
            await asyncio.sleep(random.uniform(0.5, 1.0) * wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    call_s3 = sync_wrapper(_call_s3)

    async def _isfile(self, path: str) -> bool:
        """As fsspec's, which takes every error for an answer."""
        try:
            return (await self._info(path))["type"] == "file"
        except FileNotFoundError:
            return False

    isfile = sync_wrapper(_isfile)


def _require_scheme() -> None:
    """An endpoint without http:// is refused by botocore too, which does not say what is missing."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if (url := os.environ.get(name)) and "://" not in url:
            raise ValueError(f"{name} is {url}: expected http:// or https:// before it")


def _code_of(error: BaseException) -> str:
    """What the store calls the error; empty where it said nothing."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    return cause.response["Error"].get("Code", "") if isinstance(cause, ClientError) else ""


def _place_of(arguments: dict[str, Any]) -> str:
    return "/".join(str(arguments[k]) for k in ("Bucket", "Key", "Prefix") if arguments.get(k))


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later; not where the answer was that something is absent or denied."""
    if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError)):
        return False
    cause = error if isinstance(error, (ClientError, BotoCoreError)) else error.__cause__
    if isinstance(cause, ClientError):
        answer = cause.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        is_overload = status in (408, 429) or (status >= 500 and status != 501)
        return is_overload or answer["Error"].get("Code") in _TRANSIENT_CODES
    known = (HTTPClientError, BotoConnectionError, ResponseParserError, TimeoutError, ConnectionError)
    return isinstance(error, known) or isinstance(cause, known)
