"""What a search for sources does not reach is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curation import left_out
from curation.index import list_inputs
from curation.recipe import IndexOptions


@pytest.mark.parametrize("pattern", ["", "/**/*.mp4"])
def test_closed_folders_and_links_to_folders_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, pattern: str
) -> None:
    folder, elsewhere = tmp_path / "videos", tmp_path / "other_disk"
    for file in (folder / "open/a.mp4", folder / "closed/b.mp4", folder / ".hidden/c.mp4", elsewhere / "d.mp4"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"video")
    (folder / "link").symlink_to(elsewhere)
    (folder / ".hidden_link").symlink_to(elsewhere)
    closed = folder / "closed"
    closed.chmod(0)
    monkeypatch.setattr(left_out.os, "access", lambda name, mode: Path(name) != closed)  # root may read all
    try:
        units = list_inputs([f"{folder}{pattern}"], IndexOptions())
    finally:
        closed.chmod(0o700)
    names = [Path(unit["uri"]).name for unit in units]
    assert names == ["a.mp4"] if os.getuid() else "a.mp4" in names
    lines = capsys.readouterr().err.splitlines()
    assert f"1 folders may not be read and are left out, such as {closed}" in lines
    link = f"1 links to folders are left out, such as {folder / 'link'}; name a link itself to have what it leads to"
    assert link in lines


def test_a_link_that_is_named_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.mp4").write_bytes(b"video")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert [unit["uri"] for unit in list_inputs([str(tmp_path / "link")], IndexOptions())] == [
        str(tmp_path / "link/a.mp4")
    ]
    assert capsys.readouterr().err == ""


def test_a_folder_of_which_all_is_left_out_is_told_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / ".a.mp4").write_bytes(b"video")
    (tmp_path / "b.txt").write_text("text")
    said = r"no file with a known ending, hidden ones and those of data sets apart \(2 files in all\)"
    with pytest.raises(ValueError, match=said):
        list_inputs([str(tmp_path)], IndexOptions())
    hidden, others = capsys.readouterr().err.splitlines()
    assert hidden == f"1 hidden files are left out, such as {tmp_path}/.a.mp4"
    assert others.startswith("1 files are left out for their endings: .txt (1); name a file itself to have it")
