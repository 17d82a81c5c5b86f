"""What a store, or the settings that lead to it, may answer; the commands on buckets are tested in tests/curation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, FlexibleChecksumError
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from manifests import object_store
from manifests.storage import list_files, place, read_bytes, upload, write_bytes_atomically

ROOT = "s3://data/sets/portraits"


@pytest.mark.parametrize(
    ("settings", "root", "said"),
    [
        ({"AWS_PROFILE": "nobody"}, ROOT, r"The config profile \(nobody\) could not be found .* see AWS_\* and ~/.aws"),
        ({"AWS_SECRET_ACCESS_KEY": None}, ROOT, "Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ENDPOINT_URL": "ftp://store"}, ROOT, "Custom endpoint `ftp://store` was not a valid URI"),
        ({}, "s3://no_bucket!/sets", 'Invalid bucket name "no_bucket!"'),
        (
            {
                **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
                "AWS_ROLE_ARN": "arn:aws:iam::1:role/curator",
                "AWS_WEB_IDENTITY_TOKEN_FILE": "/no/token",
            },
            ROOT,
            "No such file or directory: '/no/token'",
        ),
    ],
)
def test_settings_that_lead_nowhere_are_told(s3, monkeypatch, tmp_path: Path, settings, root, said):
    """The last one most of all: a token that is missing is no missing object, which would make a table empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in settings.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    for look in (lambda: list_files(place(root)), lambda: read_bytes(place(root) / "recipe.toml")):
        with pytest.raises((PermissionError, ValueError), match=said):
            look()


def _failing(monkeypatch: pytest.MonkeyPatch, method: str, errors: list[Exception], *, is_done: bool = False) -> None:
    """Makes calls of that method fail with these errors, one after the other. is_done: the first one has done its work
    all the same."""
    original, left = S3FileSystem._call_s3, list(errors)

    async def call(self, name, *arguments, **options):
        if name != method or not left:
            return await original(self, name, *arguments, **options)
        if is_done and len(left) == len(errors):
            await original(self, name, *arguments, **options)
        raise left.pop(0)

    monkeypatch.setattr(S3FileSystem, "_call_s3", call)
    monkeypatch.setattr(object_store, "_FIRST_WAIT_S", 0.01)


@pytest.mark.parametrize(
    "error",
    [
        CredentialRetrievalError(provider="role", error_msg="no answer"),
        FlexibleChecksumError(error_msg="Expected checksum AAAA did not match calculated checksum BBBB"),
    ],
)
def test_keys_of_a_role_and_damaged_answers_are_waited_for(s3, monkeypatch, error: Exception):
    write_bytes_atomically(place(ROOT) / "recipe.toml", b"here")
    _failing(monkeypatch, "get_object", [error, error])
    assert read_bytes(place(ROOT) / "recipe.toml") == b"here"


def _answer(code: str, message: str) -> Exception:
    return translate_boto_error(ClientError({"Error": {"Code": code, "Message": message}}, "Operation"))


def test_a_clock_that_is_wrong_is_told_and_not_a_wrong_key(s3, monkeypatch):
    _failing(monkeypatch, "get_object", [_answer("RequestTimeTooSkewed", "The difference is too large.")])
    with pytest.raises(PermissionError, match=r"too large. \(get_object of s3://.*\): set the clock of this machine"):
        read_bytes(place(ROOT) / "recipe.toml")


@pytest.mark.parametrize("is_done", [True, False])
def test_an_upload_that_was_completed_before_the_answer_was_lost(s3, monkeypatch, tmp_path: Path, is_done: bool):
    """Stores differ: AWS answers a second completion as the first, others know no such upload any more."""
    large, target = tmp_path / "large.tar", place(ROOT) / "large.tar"
    large.write_bytes(os.urandom(33 << 20))
    s3.put_object(Bucket="data", Key="sets/portraits/large.tar", Body=b"of an earlier run")
    _failing(
        monkeypatch,
        "complete_multipart_upload",
        [ConnectionError("lost"), _answer("NoSuchUpload", "gone")],
        is_done=is_done,
    )
    if is_done:
        upload(large, target)
        assert read_bytes(target) == large.read_bytes()
    else:
        with pytest.raises(FileNotFoundError, match="gone"):
            upload(large, target)
