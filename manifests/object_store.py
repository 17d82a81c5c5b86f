"""S3 with patience: every call is tried again while the store is overloaded or out of reach, for about two minutes.

What a call answers is read within the call: a connection that breaks off in the middle of it costs that one part of the
object, which is asked for again. An object that never comes whole is `ObjectUnreachable`, which need not stop what
reads the others; where the store answers nothing at all, that is `StoreUnreachable`.

Imported where the first `s3://` address is used (`manifests.storage` registers it with fsspec by its name), because it
takes a second.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import sys
import time
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointResolutionError,
    FlexibleChecksumError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    ParamValidationError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from manifests.errors import NoBucket, ObjectUnreachable, StoreUnreachable

PATIENCE_S = 120.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 15.0
_TELL_AFTER_S = 5.0
_is_waiting_told = False  # once a process
_TRANSIENT_CODES = {
    *("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"),
    *("BandwidthLimitExceeded", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"),
    "XAmzContentSHA256Mismatch",  # of a body that was damaged on its way
}
_TRANSIENT_ERRORS = (
    *(*S3_RETRYABLE_ERRORS, BotoConnectionError, IncompleteReadError, TimeoutError, ConnectionError),
    FlexibleChecksumError,  # of an answer that was damaged on its way
    *(CredentialRetrievalError, MetadataRetrievalError),  # a role's keys are fetched anew every few hours
)
_WHOLE_BYTES = 16 << 20  # an object up to here is read with one request, a larger one by ranges


class PatientS3FileSystem(S3FileSystem):
    """s3fs that waits out throttling, 5xx answers, timeouts and lost connections, and never shows a stale listing."""

    default_block_size = _WHOLE_BYTES
    retries = 1  # of s3fs: one loop decides, that of `_call_s3`

    def __init__(self, *args: Any, **options: Any) -> None:
        _require_scheme()
        options.setdefault("use_listings_cache", False)
        options.setdefault("max_concurrency", 4)  # of the parts of one file, which are held in memory
        options["config_kwargs"] = {
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "connect_timeout": 10,
            "read_timeout": 30,
            "max_pool_connections": 32,  # 16 calls side by side (`storage`), and those of the lock beside them
            **(options.get("config_kwargs") or {}),
        }
        super().__init__(*args, **options)

    async def _call_s3(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        global _is_waiting_told
        failing_since, wait_s = None, _FIRST_WAIT_S
        while True:
            try:
                answer = await super()._call_s3(method, *args, **kwargs)
                return await _with_body(answer, kwargs) if method == "get_object" else answer
            except NoCredentialsError as error:
                raise PermissionError(
                    f"{error} for s3://{_place_of(kwargs)}: set AWS_* or ~/.aws/credentials"
                ) from error
            except PermissionError as error:
                where = f"{method} of s3://{_place_of(kwargs)}"
                is_late = _code_of(error) == "RequestTimeTooSkewed"
                why = "set the clock of this machine" if is_late else "the key is wrong or may not do that"
                raise PermissionError(f"{error} ({where}): {why}") from (error.__cause__ or error)
            except Exception as error:
                if _code_of(error) == "NoSuchBucket":
                    raise NoBucket(f"there is no bucket {kwargs.get('Bucket')!r}") from error
                if failing_since and _code_of(error) == "NoSuchUpload" and (answer := await self._completed(kwargs)):
                    return answer
                if (refusal := _of_settings(error, kwargs)) is not None:
                    raise refusal from error
                if method == "get_object" and isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(f"there is no s3://{_place_of(kwargs)}") from error
                if not is_transient(error):
                    raise
                failing_since = failing_since or time.monotonic()
                waited_s = time.monotonic() - failing_since
                if waited_s >= PATIENCE_S:
                    if method == "get_object" and not _code_of(error) and await self._answers_for(kwargs):
                        raise ObjectUnreachable(
                            f"s3://{_place_of(kwargs)} has not come in {waited_s:.0f} s, though the store answers,"
                            f" last: {error}"
                        ) from error
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

    async def _completed(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """What the store tells of the object of an upload that it knows no more, because a call whose answer was lost
        has completed it; None where that cannot be seen."""
        tags = [part["ETag"].strip('"') for part in arguments.get("MultipartUpload", {}).get("Parts", [])]
        try:
            digest = hashlib.md5(b"".join(map(bytes.fromhex, tags)), usedforsecurity=False).hexdigest()
            found = await self._call_s3("head_object", Bucket=arguments["Bucket"], Key=arguments["Key"])
        except (ValueError, FileNotFoundError):
            return None
        return found if tags and found["ETag"].strip('"') == f"{digest}-{len(tags)}" else None

    async def _answers_for(self, arguments: dict[str, Any]) -> bool:
        """Whether the store still tells of an object whose body it does not give."""
        try:
            await super()._call_s3("head_object", Bucket=arguments["Bucket"], Key=arguments["Key"])
        except Exception as error:
            return not is_transient(error)
        return True

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """As s3fs's, without asking for the size first."""
        if start is not None or end is not None:
            return await super()._cat_file(path, start=start, end=end, **options)
        bucket, key, _ = self.split_path(path)
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
        if isinstance(answer["Body"], _Body):
            return await answer["Body"].read()
        answer["Body"].close()
        return await self._cat_file_concurrent(bucket, key, answer["ContentLength"], _WHOLE_BYTES)

    async def _expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, **_: Any
    ) -> list[str]:
        """As fsspec's, but names are names, also with a [ or * in them: who has a pattern asks `glob`."""
        return await super()._expand_path(path, recursive, maxdepth, assume_literal=True)

    async def _bulk_delete(self, pathlist: list[str], **options: Any) -> list[str]:
        """As s3fs's, which `rm` calls, but returns all paths that are gone: the store is asked to be quiet, and then
        names only what it could not remove. Whoever calls decides about that."""
        (bucket,) = {self.split_path(path)[0] for path in pathlist}
        keys = {path: self.split_path(path)[1] for path in pathlist}
        wanted = {"Objects": [{"Key": key} for key in keys.values()], "Quiet": True}
        answer = await self._call_s3("delete_objects", options, Bucket=bucket, Delete=wanted)
        left = {error["Key"] for error in answer.get("Errors", [])}
        return [path for path, key in keys.items() if key not in left]

    async def _isfile(self, path: str) -> bool:
        """As fsspec's, which takes every error for an answer."""
        try:
            return (await self._info(path))["type"] == "file"
        except FileNotFoundError:
            return False

    isfile = sync_wrapper(_isfile)


class _Body(io.BytesIO):
    """What has been read of an object, to be read as s3fs does."""

    async def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        return super().read(size)


async def _with_body(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """An answer of the store whose body has come; as it is where nobody reads it because it is too large."""
    if "Range" not in asked and (answer.get("ContentLength") or 0) > _WHOLE_BYTES:
        return answer
    try:
        return {**answer, "Body": _Body(await answer["Body"].read())}
    finally:
        answer["Body"].close()


def _require_scheme() -> None:
    """An endpoint without http:// is refused by botocore too, which does not say what is missing."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if (url := os.environ.get(name)) and "://" not in url:
            raise ValueError(f"{name} is {url}: expected http:// or https:// before it")


def _code_of(error: BaseException) -> str:
    """What the store calls the error; empty where it said nothing."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    return cause.response["Error"].get("Code", "") if isinstance(cause, ClientError) else ""


def _of_settings(error: Exception, arguments: dict[str, Any]) -> Exception | None:
    """What to raise where no call has been made, for what the environment or ~/.aws says; None: one has.

    A file of credentials that is missing must not pass for an object that is.
    """
    is_of_aws = isinstance(error, BotoCoreError) and not is_transient(error)
    if not is_of_aws and not (isinstance(error, FileNotFoundError) and not isinstance(error.__cause__, ClientError)):
        return None
    text = f"{' '.join(str(error).split())} (for s3://{_place_of(arguments)})"
    if isinstance(error, ParamValidationError):  # of the name of a bucket: keys may be anything
        return NoBucket(text)
    if isinstance(error, EndpointResolutionError):
        return ValueError(text)
    return PermissionError(f"{text}: see AWS_* and ~/.aws")


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
    return isinstance(error, _TRANSIENT_ERRORS) or isinstance(cause, _TRANSIENT_ERRORS)
