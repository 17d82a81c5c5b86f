"""Folders of this machine and prefixes of a bucket give the same answers, also through a store that fails."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from itertools import product
from pathlib import Path

import pytest

from manifests import scratch, storage
from manifests.errors import NoBucket, ObjectUnreachable, StoreUnreachable
from manifests.storage import (
    NewFile,
    append_line,
    filesystem_of,
    is_local,
    list_files,
    list_folders,
    local_file,
    move,
    move_all,
    open_to_read,
    place,
    read_bytes,
    read_files,
    read_ranges,
    remove_empty_folder,
    remove_file,
    remove_files,
    remove_tree,
    require_local,
    write_bytes_atomically,
)


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path):
    if request.param == "bucket":
        request.getfixturevalue("s3")
        return place("s3://data/some/root")
    return place(tmp_path / "root")


def names(folder, **options) -> dict[str, int]:
    start = len(str(folder)) + 1
    return {str(path)[start:]: size for path, size in list_files(folder, **options).items()}


def test_places():
    assert place("~/x") == Path("~/x").expanduser()
    assert place("file:///a/b") == Path("/a/b")
    assert is_local(place("/a"))
    remote = place("s3://bucket/a/")
    assert not is_local(remote)
    assert (str(remote / "b.tar"), (remote / "b.tar").stem) == ("s3://bucket/a/b.tar", "b")
    with pytest.raises(ValueError, match="the page s3://bucket/a is on an object store"):
        require_local(remote, "the page")
    with pytest.raises(ValueError, match="the page s3:/bucket/a is on an object store"):
        require_local(Path("s3://bucket/a"), "the page")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "the name of a folder or file is empty: for the current folder write ."),
        ("s3://", "s3:// names no bucket"),
        ("s3://bucket/a::b", "s3://bucket/a::b has :: in its name, which joins URLs: choose another name"),
        ("s3:///", "names no bucket"),
        ("s3:///portraits", "names no bucket"),
        ("gs://bucket/a", "gs://bucket/a cannot be reached: .*install gcsfs"),
        ("nothing://bucket/a", "Protocol not known: nothing"),
    ],
)
def test_places_that_cannot_be(url, said):
    with pytest.raises(ValueError, match=said):
        place(url)


def test_two_colons_in_the_name_of_a_file_join_nothing(tmp_path):
    (tmp_path / "a::b.mp4").write_bytes(b"12")
    filesystem, path = filesystem_of(f"{tmp_path}/a::b.mp4")
    assert path == f"{tmp_path}/a::b.mp4"
    assert filesystem.info(path)["size"] == 2


def test_files_are_listed_read_moved_and_removed(root):
    assert names(root) == names(root, below=True) == {}
    for name in ("b.json", "a.json", "c.tar", "deep/d.json", "deep/er/e.json"):
        write_bytes_atomically(root / name, name.encode() * 2)
    assert names(root) == {"a.json": 12, "b.json": 12, "c.tar": 10}
    assert list(names(root, ending=".json", below=True)) == ["a.json", "b.json", "deep/d.json", "deep/er/e.json"]
    assert [folder.name for folder in list_folders(root)] == ["deep"]
    found = read_files(list_files(root, ".json", below=True))
    assert [(path.name, data[:6]) for path, data in found][1:3] == [("b.json", b"b.json"), ("d.json", b"deep/d")]
    assert read_ranges(root / "c.tar", [(0, 2), (3, 100)]) == [b"c.", b"arc.tar"]
    move_all([(root / "a.json", root / "b.json"), (root / "deep/d.json", root / "d.json")])
    assert read_bytes(root / "b.json") == b"a.jsona.json"
    remove_file(root / "c.tar")
    remove_file(root / "c.tar")
    remove_tree(root / "deep")
    remove_tree(root / "deep")
    assert list(names(root, below=True)) == ["b.json", "d.json"]
    with pytest.raises(FileNotFoundError):
        read_bytes(root / "c.tar")


def test_empty_objects_that_stand_for_folders_are_no_files(s3):
    """As the consoles of stores make them, and some tools that copy folders."""
    root = place("s3://data/some/root")
    for key in ("", "deep/", "deep/a", "empty/"):
        s3.put_object(Bucket="data", Key=f"some/root/{key}", Body=b"")
    assert list(names(root, below=True)) == ["deep/a"]
    assert names(root) == names(root / "empty") == {}
    assert [folder.name for folder in list_folders(root)] == ["deep", "empty"]


@pytest.mark.parametrize(("name", "beside"), [("set*x", "set1x"), ("set[1]", "set1"), ("set?", "setz"), ("a#b", "a")])
def test_names_are_no_patterns(root, name, beside):
    """Nothing is read, moved or removed beside the folder that is named."""
    for folder, file in product((name, beside), "abcd"):
        write_bytes_atomically(root / folder / file, folder.encode())
    assert [data for _, data in read_files(list_files(root / name))] == [name.encode()] * 4
    move_all([(root / name / "a", root / name / "b")])
    remove_file(root / name / "b")
    remove_files([root / name / "c"])
    with local_file(root / name / "d") as copy:
        assert copy.read_bytes() == name.encode()
    remove_tree(root / name)
    assert names(root, below=True) == {f"{beside}/{file}": len(beside) for file in "abcd"}


def test_many_objects_are_removed_with_one_call(s3, flaky_s3):
    """What the store could not remove is asked for again alone; here by who may not."""
    flaky_s3.failed_share = 0.0
    root = place("s3://data/some/root")
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::*/kept"}
    s3.put_bucket_policy(Bucket="data", Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    for name in (*map(str, range(20)), "a&b [1]*", "kept"):
        s3.put_object(Bucket="data", Key=f"some/root/{name}", Body=b"x")
    with pytest.raises(PermissionError, match="delete_object of s3://data/some/root/kept"):
        remove_tree(root)
    assert names(root) == {"kept": 1}
    s3.delete_bucket_policy(Bucket="data")
    remove_tree(root)
    assert names(root) == {}
    assert [method for method, _ in flaky_s3.requests if method in ("POST", "DELETE")] == ["POST", "DELETE", "POST"]


def test_lines_are_added(root):
    write_bytes_atomically(root / "log", b"")
    append_line(root / "log", "one")
    append_line(root / "log", "two")
    assert read_bytes(root / "log") == b"one\ntwo\n"


def test_an_unfinished_file_is_nowhere(root, tmp_path, monkeypatch):
    write_bytes_atomically(root / "x", b"before")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        with NewFile(root / "x") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert names(root) == {"x": 6}
    assert list(tmp_path.glob("portrait-scratch-*")) == []
    with NewFile(root / "x") as temporary:
        temporary.write_bytes(b"whole")
    assert read_bytes(root / "x") == b"whole"


def test_two_who_write_one_file_do_not_meet(root):
    """Threads, or containers with the same process numbers that share a disk."""
    write_bytes_atomically(root / "x", b"before")
    with NewFile(root / "x") as one:
        one.write_bytes(b"one")
        with NewFile(root / "x") as other:
            other.write_bytes(b"other")
        assert read_bytes(root / "x") == b"other"
    assert read_bytes(root / "x") == b"one"
    assert names(root) == {"x": 3}


def test_a_large_file_comes_whole_through_a_failing_store(flaky_s3, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_PART_BYTES", 5 << 20)
    flaky_s3.failed_share = 0.3
    data = os.urandom(17 << 20)
    target = place("s3://data/large")
    with NewFile(target) as temporary:
        temporary.write_bytes(data)
    with local_file(target) as copy:
        assert copy.read_bytes() == data
    assert {"POST", "PUT"} <= {method for method, _ in flaky_s3.requests}, "in parts"
    assert not copy.exists()


def test_many_small_files_come_in_order_through_a_failing_store(s3, flaky_s3):
    flaky_s3.failed_share = 0.2
    for k in range(40):
        s3.put_object(Bucket="data", Key=f"units/{k:02}.json", Body=str(k).encode())
    found = list(read_files(list_files(place("s3://data/units"))))
    assert [(path.stem, int(data)) for path, data in found] == [(f"{k:02}", k) for k in range(40)]
    assert flaky_s3.num_failed > 2


def _copied(path) -> bytes:
    with local_file(path) as copy:
        return copy.read_bytes()


def _opened(path) -> bytes:
    with open_to_read(path) as file:
        return file.read()


READERS = {
    "whole": read_bytes,
    "copied": _copied,
    "opened": _opened,
    "by ranges": lambda path: b"".join(read_ranges(path, [(0, 100_000), (100_000, 20 << 20)])),
    "side by side": lambda path: b"".join(data for _, data in read_files({path: 0})),
}


@pytest.mark.parametrize("reader", READERS)
def test_connections_that_break_off_in_a_body_are_waited_out(s3, flaky_s3, monkeypatch, reader):
    """Of a small object, and of the parts of a large one; without any, nothing is asked for twice."""
    flaky_s3.failed_share = 0.0
    for size, most_requests in ((200_000, 2), (17 << 20, 3)):
        s3.put_object(Bucket="data", Key="x", Body=(content := os.urandom(size)))
        assert READERS[reader](place("s3://data/x")) == content
        assert len(flaky_s3.requests) <= most_requests
        flaky_s3.cut_next(7)
        assert READERS[reader](place("s3://data/x")) == content
        flaky_s3.requests.clear()
    monkeypatch.setattr("manifests.object_store.PATIENCE_S", 0.0)
    flaky_s3.cut_next(100)
    with pytest.raises(ObjectUnreachable, match="s3://data/x has not come in 0 s, though the store answers"):
        READERS[reader](place("s3://data/x"))
    flaky_s3.throttle(600)
    with pytest.raises(StoreUnreachable, match=r"has failed every call .*_object of s3://data/x"):
        READERS[reader](place("s3://data/x"))


def test_what_is_absent_or_denied_is_not_tried_again(flaky_s3):
    flaky_s3.failed_share = 0.0
    with pytest.raises(FileNotFoundError, match="there is no s3://data/absent"):
        read_bytes(place("s3://data/absent"))
    with pytest.raises(NoBucket, match="there is no bucket 'nowhere'"):
        write_bytes_atomically(place("s3://nowhere/x"), b"")
    assert len(flaky_s3.requests) <= 3
    flaky_s3.denied = ("PUT",)
    with pytest.raises(PermissionError, match=r"Access Denied \(put_object of s3://data/x\)"):
        write_bytes_atomically(place("s3://data/x"), b"")
    assert len(flaky_s3.requests) <= 4


def test_an_endpoint_without_its_scheme_is_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:5123")
    with pytest.raises(ValueError, match=r"AWS_ENDPOINT_URL is 127.0.0.1:5123: expected http://"):
        place("s3://data/x")


def test_links_to_folders_elsewhere_are_emptied_and_stay(tmp_path):
    """Of a user who has put a folder of a data set on another disk."""
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    write_bytes_atomically(elsewhere / "deep/a", b"a")
    write_bytes_atomically(tmp_path / "other/b", b"b")
    (elsewhere / "inner").symlink_to(tmp_path / "other")
    link.symlink_to(elsewhere)
    remove_tree(link)
    remove_empty_folder(link)
    assert link.is_symlink()
    assert list(elsewhere.iterdir()) == []
    assert list(names(tmp_path / "other")) == ["b"], "what a link in it leads to is not in it"


def test_a_file_moves_to_another_disk(tmp_path, monkeypatch):
    """And is in its place as a whole or not at all."""
    write_bytes_atomically(tmp_path / "a/shard.tar", b"new")
    write_bytes_atomically(tmp_path / "b/shard.tar", b"old")
    rename, seen = os.replace, []

    def replace(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        seen.append(Path(target).read_bytes())
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    move(tmp_path / "a/shard.tar", tmp_path / "b/shard.tar")
    assert seen == [b"old"]
    assert (names(tmp_path / "a"), read_bytes(tmp_path / "b/shard.tar")) == ({}, b"new")
    assert names(tmp_path / "b") == {"shard.tar": 3}


def test_scratch_of_killed_processes_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("dead", "alive"):
        (tmp_path / f"portrait-scratch-{name}").mkdir()
        (tmp_path / f"portrait-scratch-{name}" / ".owner").touch()
    with open(tmp_path / "portrait-scratch-alive" / ".owner") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        scratch._remove_dead.cache_clear()
        with scratch.scratch_folder() as mine:
            assert {path.name for path in tmp_path.iterdir()} == {"portrait-scratch-alive", mine.name}
    assert {path.name for path in tmp_path.iterdir()} == {"portrait-scratch-alive"}


def test_scratch_that_another_process_takes_for_a_dead_ones_is_made_again(tmp_path, monkeypatch):
    """Which looks between the making of the folder and its lock."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    flock, removed = fcntl.flock, []

    def remove_first(file, kind: int) -> None:
        if not removed:
            removed.append(Path(file.name).parent)
            shutil.rmtree(removed[0])
        flock(file, kind)

    monkeypatch.setattr(scratch.fcntl, "flock", remove_first)
    with scratch.scratch_folder() as mine:
        assert mine.is_dir()
        assert mine not in removed
    assert list(tmp_path.iterdir()) == []


def test_files_that_go_while_they_are_listed_are_left_out(tmp_path, monkeypatch):
    """By a run that moves its commits into the manifests, while `status` looks."""
    for name in ("a.json", "b.json", "deep/c.json", "gone/d.json"):
        write_bytes_atomically(tmp_path / name, b"x")
    stat = Path.stat

    def look(path: Path, **options):
        if path.name == "a.json":
            (tmp_path / "b.json").unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", look)
    assert names(tmp_path) == {"a.json": 1}
    scandir = os.scandir

    def scan(folder):
        if str(folder).endswith("gone"):
            remove_tree(Path(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    assert names(tmp_path, below=True) == {"a.json": 1, "deep/c.json": 1}
    assert list_folders(tmp_path / "gone") == []
