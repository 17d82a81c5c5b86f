"""The files of the page: the same bytes for the same data set, whole after any interruption, nothing left behind."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import simplejpeg

from curation.recipe import load_recipe
from curation.review import build
from curation.review import build as build_page
from curation.review.strips import NUM_FRAMES, SIDE_PX, join_frames
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_data_set_gives_the_same_bytes(demo_dataset: Path, tmp_path: Path) -> None:
    first = build(Dataset(demo_dataset), tmp_path / "first")
    build(Dataset(demo_dataset), tmp_path / "second")
    assert _hashes(tmp_path / "first") == _hashes(tmp_path / "second")
    clips = read_table(Dataset(demo_dataset), "clips")
    strips = sorted((tmp_path / "first/strips").iterdir())
    assert len(strips) == len(clips)  # rejected ones too, from their sources
    times = {path: path.stat().st_mtime_ns for path in strips}
    assert build(Dataset(demo_dataset), tmp_path / "first") == first
    assert {path: path.stat().st_mtime_ns for path in strips} == times  # nothing is drawn twice
    for path in strips:
        picture = simplejpeg.decode_jpeg(path.read_bytes())
        assert picture.shape == (SIDE_PX, NUM_FRAMES * SIDE_PX, 3)
        frames = np.split(picture.astype(int), NUM_FRAMES, axis=1)
        assert np.abs(frames[0] - frames[NUM_FRAMES // 2]).mean() > 1  # other moments, not one repeated
    for clip_id in clips["clip_id"].to_pylist():
        assert clip_id in first.read_text()
        assert not [path for path in tmp_path.rglob("*") if clip_id in path.name]


def test_what_is_gone_from_the_manifests_goes_from_the_page(demo_copy: Path) -> None:
    dataset = Dataset(demo_copy)
    page = build(dataset)
    strips = set((page.parent / "strips").iterdir())
    (page.parent / "strips/.0123456789abcdef.jpg.99.tmp").write_bytes(b"half")
    others = page.parent / "strips/notes.txt"
    others.write_text("mine")
    clips = read_table(dataset, "clips")
    best = set(clips["duplicate_of"].to_pylist())  # copies name their best one, so that stays
    gone = next(clip_id for clip_id in clips["clip_id"].to_pylist() if clip_id not in best)
    replace_table(dataset, "clips", clips.filter(pc.not_equal(clips["clip_id"], gone)))
    build(dataset)
    assert gone not in page.read_text()
    left = set((page.parent / "strips").iterdir())
    assert left - strips == {others}
    assert len(strips - left) == 1


def test_an_interrupted_build_leaves_the_page_as_it_was(demo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(demo_copy)
    page = build(dataset)
    before = _hashes(page.parent)
    replace_table(dataset, "clips", read_table(dataset, "clips").slice(0, 2))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    module = __import__("importlib").import_module("curation.review.build")
    monkeypatch.setattr(module, "page_content", die)
    with pytest.raises(KeyboardInterrupt):
        build_page(dataset)
    assert _hashes(page.parent) == before


def test_a_first_build_that_was_killed_is_no_obstacle(demo_dataset: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    build(Dataset(demo_dataset), page, read_sources=False)
    before = _hashes(page)
    (page / "index.html").rename(page / ".index.html.123.tmp")
    build(Dataset(demo_dataset), page, read_sources=False)
    assert _hashes(page) == before, "what it left is gone, too"


def test_sources_that_cannot_be_read_leave_a_place_holder(demo_copy: Path) -> None:
    dataset = Dataset(demo_copy)
    rows = read_table(dataset, "sources").to_pylist()
    for place in (place for row in rows for place in row["places"]):
        place["uri"] = f"/nowhere/{place['uri']}"
    replace_table(dataset, "sources", make_table("sources", rows))
    shutil.rmtree(dataset.root / "report")  # the demo's own page, with strips that were drawn when all could be read
    page = build(dataset)
    num_packed = pc.sum(pc.is_valid(read_table(dataset, "clips")["shard"])).as_py()
    assert 0 < num_packed == len(list((page.parent / "strips").iterdir()))
    assert "the source is gone, or another file is in its place" in page.read_text()
    shutil.rmtree(dataset.shards)
    shutil.rmtree(page.parent)
    page = build(dataset, read_sources=False)
    assert not (page.parent / "strips").exists()
    assert "the shard cannot be read" in page.read_text()
    assert "not packed and not staged any more" in page.read_text()


def test_a_large_data_set_is_drawn_from_evenly(measured: Path, tmp_path: Path) -> None:
    page = build(Dataset(measured), tmp_path / "page", read_sources=False, max_clips=50).read_text()
    ids = read_table(Dataset(measured), "clips")["clip_id"].to_pylist()
    shown = [k for k, clip_id in enumerate(ids) if f'"{clip_id}"' in page]
    assert 50 <= len(shown) <= 60  # the best ones of copies are named, too
    assert np.histogram(shown, 4, (0, 240))[0].min() >= 5
    assert '"num":240' in page


def test_mistakes_are_said(demo_copy: Path, tmp_path: Path) -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match=f"--max-clips is {number}, expected 1 or more"):
            build(Dataset(demo_copy), tmp_path / "none", max_clips=number)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="no data set at"):
        build(Dataset(tmp_path / "nothing"))
    (tmp_path / "index.html").write_text("<h1>My home page</h1>")
    with pytest.raises(ValueError, match="page of something else"):
        build(Dataset(demo_copy), tmp_path)
    assert (tmp_path / "index.html").read_text() == "<h1>My home page</h1>"
    (tmp_path / "index.html").rename(tmp_path / "notes.html")
    with pytest.raises(ValueError, match="holds other things and no page of a data set"):
        build(Dataset(demo_copy), tmp_path)
    assert [path.name for path in tmp_path.glob("strips*")] == []
    dataset = Dataset(demo_copy)
    replace_table(dataset, "clips", read_table(dataset, "clips").slice(0, 0))
    with pytest.raises(ValueError, match="has no clips yet"):
        build(dataset)


def test_pictures_of_any_size_become_squares() -> None:
    frames = [np.full((side, side, 3), shade, np.uint8) for side, shade in ((512, 40), (SIDE_PX, 120), (64, 200))]
    strip = simplejpeg.decode_jpeg(join_frames(frames))
    assert strip.shape == (SIDE_PX, 3 * SIDE_PX, 3)
    assert [int(strip[70, 70 + k * SIDE_PX, 0]) for k in range(3)] == [40, 120, 200]


def test_the_command_says_where_the_page_is(curate, demo_copy: Path) -> None:
    done = curate("review", demo_copy, "--no-open", "--no-sources")
    assert done.stdout.strip() == str(demo_copy / "report/index.html")
    assert load_recipe("default").stage_hash("pack") in (demo_copy / "report/index.html").read_text()
    assert "no data set at" in curate("review", demo_copy / "nothing", "--no-open", status=2).stderr
