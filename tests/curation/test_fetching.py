"""Copies of remote sources: one for all readers of a node, never more than there is room for, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curation import fetching, pipeline
from curation.fetching import kept_folder, local_copy, remove_kept
from curation.index import IndexStage, list_inputs
from curation.places import SourceGone, of_unit, opened_source
from curation.recipe import IndexOptions, Recipe
from manifests.schema import make_table
from manifests.store import Dataset, replace_table
from tests.flaky_store import FlakyStore

SIZE = fetching._MIN_BYTES


@pytest.fixture
def store(flaky_s3: FlakyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    """A store that fails nothing, and a scratch of its own for this process and its children."""
    flaky_s3.failed_share = 0.0
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    fetching.keep_up_to(10 * SIZE)
    yield flaky_s3
    fetching.keep_up_to(0)


@pytest.fixture
def put(s3) -> Callable[[str, int], str]:
    """Puts a source of so many bytes into the bucket; returns its URI."""

    def put(name: str, num_bytes: int) -> str:
        s3.put_object(Bucket="data", Key=f"raw/{name}", Body=name.encode()[:1] * num_bytes)
        return f"s3://data/raw/{name}"

    return put


def read(uri: str) -> bytes:
    with local_copy(uri) as path:
        assert path.endswith(os.path.splitext(uri)[1])
        return Path(path).read_bytes()


def num_fetched(store: FlakyStore, name: str) -> int:
    return sum(method == "GET" and path.split("?")[0].endswith(f"/{name}") for method, path in store.requests)


def copies() -> list[int]:
    return sorted(path.stat().st_size for path in kept_folder().glob("*.copy*"))


def test_large_source_is_fetched_once_and_removed_at_the_end(store, put):
    uri = put("a.mp4", SIZE)
    assert read(uri) == read(uri) == b"a" * SIZE
    assert num_fetched(store, "a.mp4") == 1
    assert copies() == [SIZE]
    remove_kept()
    assert not kept_folder().exists()


def test_small_source_is_not_kept(store, put):
    uri = put("a.mp4", SIZE - 1)
    assert len(read(uri)) == len(read(uri)) == SIZE - 1
    assert num_fetched(store, "a.mp4") == 2
    assert not kept_folder().exists()
    assert not list(kept_folder().parent.glob("portrait-scratch-*"))


def test_without_room_none_is_kept(store, put):
    fetching.keep_up_to(0)
    assert len(read(put("a.mp4", SIZE))) == SIZE
    assert not kept_folder().exists()


def test_changed_source_is_fetched_anew(store, put, s3):
    uri = put("a.mp4", SIZE)
    read(uri)
    s3.put_object(Bucket="data", Key="raw/a.mp4", Body=b"z" * SIZE)
    assert read(uri) == b"z" * SIZE


@pytest.mark.parametrize("num_bytes", [1000, 3 * SIZE])
def test_a_source_that_is_replaced_while_it_is_copied_is_not_read(store, put, s3, monkeypatch, num_bytes):
    """Of a large one the copy has a part of each."""
    uri = put("a.mp4", num_bytes)
    (unit,) = list_inputs([uri], IndexOptions())
    (row,) = IndexStage(Recipe(), Path()).process(unit).rows["sources"]
    source = {"places": of_unit(row), "content_sha256": row["content_sha256"]}
    with opened_source(source) as path:
        assert Path(path).read_bytes() == b"a" * num_bytes
    remove_kept()
    store.requests.clear()
    failure_of = store.failure_of

    def replace(method: str, path: str) -> str:
        if method == "GET" and num_fetched(store, "a.mp4") == num_bytes // (2 * SIZE):
            s3.put_object(Bucket="data", Key="raw/a.mp4", Body=b"b" * num_bytes)
        return failure_of(method, path)

    monkeypatch.setattr(store, "failure_of", replace)
    with pytest.raises(SourceGone, match=f"{uri} holds another file now"), opened_source(source):
        pass


def test_two_colons_in_a_name_mean_nothing(store, put):
    uri = put("a::b.mp4", 10)
    (unit,) = list_inputs(["s3://data/raw"], IndexOptions())
    assert unit["uri"] == uri
    assert read(uri) == b"a" * 10


def test_the_one_read_longest_ago_goes_first_and_none_that_is_being_read(store, put):
    fetching.keep_up_to(2 * SIZE)
    uris = [put(f"{name}.mp4", SIZE) for name in "abc"]
    with local_copy(uris[0]) as path:
        read(uris[1])
        read(uris[2])
        assert Path(path).read_bytes() == b"a" * SIZE
        assert copies() == [SIZE, SIZE], "a, which is being read, and c"
        remove_kept()
        assert copies() == [SIZE]
    read(uris[0])
    read(uris[2])
    assert [num_fetched(store, f"{name}.mp4") for name in "abc"] == [1, 1, 2]


def test_what_a_killed_worker_left_half_fetched_is_fetched_again(store, put):
    uri = put("a.mp4", SIZE)
    read(uri)
    (copy,) = kept_folder().glob("*.copy.mp4")
    copy.rename(copy.with_suffix(".part"))
    os.truncate(copy.with_suffix(".part"), 100)
    assert read(uri) == b"a" * SIZE
    assert not list(kept_folder().glob("*.part"))


@pytest.mark.parametrize(
    ("uri", "ending"),
    [
        ("s3://data/raw/a?b.mp4", ".mp4"),
        (f"https://host/raw/a.mp4?signature=x.{'y' * 300}", ".mp4"),
        (f"https://host/raw/a?signature=x.{'y' * 300}", ""),
        (f"s3://data/raw/a.{'y' * 300}", ""),
    ],
)
def test_ending_of_a_copy(uri, ending):
    assert fetching._ending_of(uri) == ending


def _read_often(uri: str, room: int) -> int:
    fetching.keep_up_to(room)
    good = 0
    for number in range(10):
        good += read(uri) == b"a" * SIZE
        if number % 3 == 2:
            remove_kept()
    return good


def test_processes_share_a_copy_and_removal_takes_it_from_none(store, put):
    uri = put("a.mp4", SIZE)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_read_often, [(uri, 10 * SIZE)] * 3, chunksize=1) == [10, 10, 10]
    assert 1 <= num_fetched(store, "a.mp4") < 30
    remove_kept()
    assert not kept_folder().exists()


def test_full_disk_gives_up_what_is_kept(store, put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, other, large = put("a.mp4", SIZE), put("b.mp4", SIZE), put("c.mp4", 2 * SIZE)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE + SIZE // 2}", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        assert len(read(one)) == len(read(other)) == SIZE
        assert copies() == [SIZE]
        with pytest.raises(OSError, match="No space left"):
            read(large)
        assert copies() == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("num_bytes", [1000, SIZE])
def test_without_a_temporary_folder_a_source_is_not_missing_but_has_no_room(store, put, monkeypatch, num_bytes):
    """All of them are full or read-only: Python says so with the error of a missing file."""
    (unit,) = list_inputs([put("a.mp4", num_bytes)], IndexOptions())
    (row,) = IndexStage(Recipe(), Path()).process(unit).rows["sources"]
    remove_kept()
    touched = {"places": [of_unit(row)[0] | {"changed": "earlier"}], "content_sha256": row["content_sha256"]}
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nowhere"])
    said = r"\[Errno 28\] No usable temporary directory found in \['/nowhere'\]"
    with pytest.raises(OSError, match=said):
        IndexStage(Recipe(), Path()).process(unit)
    with pytest.raises(OSError, match=said), opened_source(touched):
        pass
    remove_kept()


def test_the_time_of_the_last_change_is_enough_to_keep_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Many web servers tell nothing else."""
    (tmp_path / "a.mp4").write_bytes(b"a" * 100)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(fetching, "_MIN_BYTES", 100)
    monkeypatch.setattr(fetching, "_room_bytes", 1000)
    requests = []
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda self, _, line, *rest: requests.append(line))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/a.mp4"
        assert read(uri) == read(uri) == b"a" * 100
        assert sum(line.startswith("GET") for line in requests) == 1
        (tmp_path / "a.mp4").write_bytes(b"b" * 100)
        os.utime(tmp_path / "a.mp4", (1.7e9, 1.7e9))
        assert read(uri) == b"b" * 100
        server.shutdown()


def test_a_large_source_is_given_the_time_that_a_slow_link_takes(store, put, tmp_path: Path):
    """Of 8 Mbit/s; each span of a video may wait for the whole. A local one is there."""
    (unit,) = list_inputs([put("a.mp4", 3_000_000)], IndexOptions())
    assert 20 * unit["expected_s"] == pytest.approx(20 * (0.02 + 0.01) + 3)
    expected_s = {}
    for uri in ("s3://data/raw/a.mp4", "/raw/a.mp4"):
        dataset = Dataset(tmp_path / uri.split(":")[0].strip("/").replace("/", "-"))
        row = {"source_id": "a", "status": "ok", "kind": "video", "duration_s": 8.0, "width_px": 640, "height_px": 360}
        row |= {"uris": [uri], "places": [{"uri": uri, "size_bytes": 2 * 10**9}]}
        row |= {"spans": [{"start_frame": 0}, {"start_frame": 100}]}
        track = {"track_id": "a-0", "source_id": "a", "unit": "a-0001", "num_clips": 1}
        track |= {"candidates": [{"clip_id": "a-0-0", "start_s": 4.0, "end_s": 8.0}]}
        for table, rows in (("sources", [row]), ("tracks", [track])):
            replace_table(dataset, table, make_table(table, rows))
        job = pipeline._Job(dataset, Recipe(), None, None, (), may_lose_clips=False)
        units = [*job.scan_units(lambda name: True), *job.crop_units(lambda name: True)]
        expected_s[uri] = [unit["expected_s"] for unit in units]
    remote, local = expected_s.values()
    assert len(remote) == 3
    assert [20 * (far - near) for far, near in zip(remote, local, strict=True)] == pytest.approx([2000] * 3)
