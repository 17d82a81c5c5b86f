from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curation.index import list_inputs
from curation.recipe import IndexOptions
from manifests import web
from manifests.errors import ObjectUnreachable
from manifests.storage import filesystem_of
from tests.flaky_store import FlakyStore

CONTENT = bytes(range(256)) * 400


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    """A web server with one file, behind a proxy that fails when it is told to."""
    monkeypatch.setattr(web, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(web, "_silent", set())
    (tmp_path / "clip.mp4").write_bytes(CONTENT)
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    threading.Thread(target=files.serve_forever, args=(0.05,), daemon=True).start()
    proxy = FlakyStore(f"http://127.0.0.1:{files.server_port}", failed_share=0.0)
    yield proxy
    proxy.close()
    files.shutdown()
    files.server_close()


def fetch(url: str, folder: Path) -> bytes:
    filesystem, path = filesystem_of(url)
    filesystem.get_file(path, str(folder / "copy"))
    return (folder / "copy").read_bytes()


def test_a_busy_server_is_asked_again(server: FlakyStore, tmp_path: Path) -> None:
    server.throttle_next(3)  # HEAD, GET instead of it, and HEAD again
    filesystem, path = filesystem_of(f"{server.url}/clip.mp4")
    assert filesystem.info(path)["size"] == len(CONTENT)
    server.throttle_next(2)
    assert fetch(f"{server.url}/clip.mp4", tmp_path) == CONTENT


def test_a_file_that_breaks_off_is_fetched_again(server: FlakyStore, tmp_path: Path) -> None:
    server.cut_next(2)
    assert fetch(f"{server.url}/clip.mp4", tmp_path) == CONTENT
    assert [method for method, _ in server.requests] == ["GET"] * 3


def test_a_server_that_is_silent_is_waited_for_once(
    server: FlakyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE_S", 0.3)
    server.throttle(3600.0)
    with pytest.raises(ObjectUnreachable, match=r"clip\.mp4 cannot be read: the server answers 503"):
        fetch(f"{server.url}/clip.mp4", tmp_path)
    assert len(server.requests) > 2
    server.requests.clear()
    for _ in range(2):
        with pytest.raises(ObjectUnreachable):
            fetch(f"{server.url}/clip.mp4", tmp_path)
    assert len(server.requests) == 2
    server.throttle(0.0)
    assert fetch(f"{server.url}/clip.mp4", tmp_path) == CONTENT
    server.throttle_next(2)  # it has answered: it is worth waiting for again
    assert fetch(f"{server.url}/clip.mp4", tmp_path) == CONTENT


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PATIENCE_TO_CONNECT_S", 0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/clip.mp4"
        with pytest.raises(ObjectUnreachable, match="Cannot connect to host"):
            fetch(url, tmp_path)


def test_a_server_that_stops_in_the_middle_is_not_waited_for_without_end(
    server: FlakyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        filesystem = web.PatientHTTPFileSystem(
            skip_instance_cache=True, client_kwargs={"timeout": web.aiohttp.ClientTimeout(sock_read=0.2)}
        )
        before = time.monotonic()
        with pytest.raises(ObjectUnreachable, match=r"Timeout|in time"):
            filesystem.get_file(f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4", str(tmp_path / "copy"))
        assert time.monotonic() - before < 10


def test_what_is_absent_or_refused_is_told_at_once(server: FlakyStore, tmp_path: Path) -> None:
    filesystem, path = filesystem_of(f"{server.url}/other.mp4")
    with pytest.raises(FileNotFoundError, match=r"other\.mp4"):
        filesystem.info(path)
    with pytest.raises(FileNotFoundError, match=r"other\.mp4"):
        fetch(f"{server.url}/other.mp4", tmp_path)
    server.denied = ("GET", "HEAD")
    server.requests.clear()
    with pytest.raises(ObjectUnreachable, match="the server answers 403 Forbidden"):
        fetch(f"{server.url}/clip.mp4", tmp_path)
    assert len(server.requests) == 1


def test_long_answers_are_waited_for() -> None:
    """aiohttp's own limit, five minutes for all of an answer, would end the download of a long video."""
    timeout = filesystem_of("https://videos.example/clip.mp4")[0].client_kwargs["timeout"]
    assert (timeout.total, timeout.sock_read) == (None, 30)


def test_an_entry_of_a_list_that_a_server_refuses_costs_itself_only(server: FlakyStore, tmp_path: Path) -> None:
    server.denied = ("GET", "HEAD")
    (tmp_path / "list.csv").write_text(f"uri\n{server.url}/clip.mp4\n")
    (entry,) = list_inputs([str(tmp_path / "list.csv")], IndexOptions())
    assert (entry["uri"], entry["size_bytes"]) == (f"{server.url}/clip.mp4", None)


def test_an_input_on_a_busy_server_is_asked_for_again(server: FlakyStore, tmp_path: Path) -> None:
    url = f"{server.url}/clip.mp4"
    for address in (url, f"{url}?signature=a%2Fb", f"{server.url}/*.mp4"):
        server.throttle_next(2)
        (unit,) = list_inputs([address], IndexOptions())
        assert (unit["uri"].split("?")[0], unit["size_bytes"]) == (url, len(CONTENT))


def test_an_input_that_a_server_refuses_is_told(server: FlakyStore) -> None:
    server.denied = ("GET", "HEAD")
    for name in ("clip.mp4", "clip.mp4?version=1", "*.mp4"):
        with pytest.raises(ObjectUnreachable, match="cannot be read: the server answers 403"):
            list_inputs([f"{server.url}/{name}"], IndexOptions())
    server.denied = ()
    with pytest.raises(ValueError, match="no such file or folder"):
        list_inputs([f"{server.url}/other.mp4"], IndexOptions())


def test_a_pattern_that_a_server_refuses_as_a_name(server: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    failure_of = server.failure_of
    monkeypatch.setattr(
        server, "failure_of", lambda method, path: "access denied" if "*" in path else failure_of(method, path)
    )
    (unit,) = list_inputs([f"{server.url}/*.mp4"], IndexOptions())
    assert unit["uri"] == f"{server.url}/clip.mp4"


def test_a_file_that_is_replaced_by_one_of_its_size_is_another(server: FlakyStore, tmp_path: Path) -> None:
    """Of a server that tells the time of the last change alone."""
    (before,) = list_inputs([f"{server.url}/clip.mp4"], IndexOptions())
    (tmp_path / "clip.mp4").write_bytes(CONTENT[::-1])
    os.utime(tmp_path / "clip.mp4", (1e9, 1e9))
    (after,) = list_inputs([f"{server.url}/clip.mp4"], IndexOptions())
    assert after["size_bytes"] == before["size_bytes"]
    assert after["name"] != before["name"]
