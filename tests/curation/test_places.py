"""Files that are replaced, put back, moved, copied or corrected between runs: what a data set then says and holds."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation import forget as forgetting
from curation import pipeline, scan
from curation.decisions import kept_decisions
from curation.index import IndexStage, list_inputs
from curation.places import SourceGone, find_source, merge_sources, of_unit
from curation.recipe import CropOptions, IndexOptions, Recipe, ScanOptions, SelectOptions, recipe_toml
from curation.units import Ledger, commit_unit
from manifests.query import find_sources
from manifests.store import Dataset, read_table, write_bytes_atomically
from manifests.views import connect

LAX = SelectOptions(
    **dict.fromkeys(("min_motion", "min_sharpness", "max_upscale", "min_face_px", "min_face_p05_px")), val_share=0.0,
    test_share=0.0, duplicates=True,
)  # fmt: skip
RECIPE = Recipe(select=LAX)
BY_SCAN = replace(RECIPE, scan=ScanOptions(min_track_face_px=21))
BY_CROP = replace(RECIPE, crop=CropOptions(jpeg_quality=90))


def picture(path: Path, level: int, seconds: int = 0) -> Path:
    """A still of that brightness; `seconds` is added to the time of its last change."""
    path.parent.mkdir(exist_ok=True, parents=True)
    chance = np.random.default_rng(level)
    Image.fromarray(chance.integers(level - 30, level + 30, (300, 300, 3), np.uint8)).save(path)
    os.utime(path, (1.6e9 + level + seconds, 1.6e9 + level + seconds))
    return path


class World:
    """A data set in the making."""

    def __init__(self, root: Path) -> None:
        self.root, self.dataset = root, root / "dataset"

    def run(self, *inputs: Path, recipe: Recipe = RECIPE, **options: Any) -> pipeline.Outcome:
        return pipeline.run([str(path) for path in inputs], str(self.dataset), recipe, **options)

    def die_before_selecting(self, *inputs: Path, recipe: Recipe) -> None:
        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "select", die)
            with pytest.raises(KeyboardInterrupt):
                self.run(*inputs, recipe=recipe)

    def rows(self, table: str) -> list[dict[str, Any]]:
        return read_table(Dataset(self.dataset), table).to_pylist()

    def source(self, path: Path) -> dict[str, Any]:
        """The one that the data set has at a place."""
        (row,) = (row for row in self.rows("sources") if str(path) in row["uris"] and row["reason"] != "replaced")
        return row

    def exposures(self) -> dict[str, int]:
        """Of each clip, by its source: the mean brightness in steps of 10 of 255."""
        return {row["source_id"]: round(row["exposure"] * 25.5) for row in self.rows("clips")}

    def list(self, text: str) -> Path:
        path = self.root / "list.csv"
        path.write_text(text)
        return path


@pytest.fixture
def world(tmp_path: Path, sources: list[str]) -> World:
    """`sources` only for its networks: they take every picture for a face."""
    return World(tmp_path / "world")


def test_content_in_several_places(world: World) -> None:
    one, other = picture(world.root / "b" / "0.png", 90), world.root / "a" / "0.png"
    shutil.copytree(one.parent, other.parent)
    world.run(one.parent, other.parent)
    (row,) = world.rows("sources")
    assert row["uris"] == [str(other), str(one)]
    assert world.run(one.parent, other.parent).num_units == 0


def test_rows_do_not_depend_on_the_order_in_which_places_were_found(tmp_path: Path) -> None:
    files = [picture(tmp_path / name, 90) for name in ("a.png", "b.png")]
    units = list_inputs([str(path) for path in files], IndexOptions())
    units[1]["columns"] = {"licence": "CC0", "show": "two"}
    rows = [IndexStage(Recipe(), tmp_path).process(unit).rows["sources"][0] for unit in units]
    (merged,) = merge_sources(rows)
    assert (merged["licence"], merged["provenance"]) == ("CC0", {"show": "two"})
    assert merge_sources(rows[::-1]) == [merged] == merge_sources([merged, *rows])


def test_replaced_file_and_then_another_one(world: World) -> None:
    """Whichever ids the contents have: what is in a place now is what counts, however often tables are merged."""
    for level in (60, 90, 120, 150):
        path = picture(world.root / f"in{level}" / "0.png", level)
        world.dataset = world.root / f"dataset{level}"
        world.run(path.parent)
        before = world.source(path)["source_id"]
        picture(path, 200)
        world.run(path.parent)
        picture(path.with_name("new.png"), 220)
        world.run(path.parent)
        assert world.source(path)["source_id"] != before
        states = {row["source_id"]: (row["status"], row["reason"]) for row in world.rows("sources")}
        assert states.pop(before) == ("rejected", "replaced")
        assert set(states.values()) == {("ok", None)}


def test_file_that_is_put_back(world: World) -> None:
    path = picture(world.root / "in" / "0.png", 90)
    world.run(path.parent)
    before = world.source(path)
    picture(path, 200)
    world.run(path.parent)
    picture(path, 90)
    assert world.run(path.parent).num_units > 0
    assert world.source(path) == before
    assert world.run(path.parent).num_units == 0


@pytest.mark.parametrize("recipe", [BY_SCAN, BY_CROP, replace(RECIPE, select=replace(LAX, max_exposure=0.99))])
def test_folder_that_was_moved(world: World, recipe: Recipe) -> None:
    """All stages find the files where they are now, and the old places are not told any more."""
    old, new = world.root / "a_old", world.root / "b_new"
    picture(old / "0.png", 90), picture(old / "1.png", 150)
    world.run(old)
    kept = {row["clip_id"] for row in world.rows("clips") if row["decision"] == "keep"}
    assert len(kept) == 2
    os.rename(old, new)
    world.run(new)
    assert sorted(uri for row in world.rows("sources") for uri in row["uris"]) == [
        str(new / "0.png"),
        str(new / "1.png"),
    ]
    world.run(new, recipe=recipe)
    assert {row["clip_id"] for row in world.rows("clips") if row["decision"] == "keep"} == kept
    assert not world.rows("failures")


def test_moved_file_has_the_licence_of_its_new_list(world: World) -> None:
    path = picture(world.root / "a" / "0.png", 90)
    world.run(world.list("uri,licence\na/0.png,CC-BY\n"))
    os.rename(path.parent, world.root / "b")
    world.run(world.list("uri,licence\nb/0.png,CC0\n"))
    (row,) = world.rows("sources")
    assert (row["licence"], row["uris"]) == ("CC0", [str(world.root / "b" / "0.png")])


@pytest.mark.parametrize("recipe", [BY_SCAN, BY_CROP])
def test_what_lies_in_a_place_now_is_never_taken_for_what_was_indexed(world: World, recipe: Recipe) -> None:
    path = picture(world.root / "a" / "0.png", 60)
    other = picture(world.root / "b" / "0.png", 120)
    world.run(path.parent)
    first = world.source(path)["source_id"]
    picture(path, 220)
    world.run(other.parent, recipe=recipe)
    assert set(world.exposures()) == {world.source(other)["source_id"]}
    failures = {row["source_id"]: (row["reason"], row["message"]) for row in world.rows("failures")}
    assert failures == {first: ("source_gone", f"{path} holds another file now")}
    picture(path, 60, seconds=5)  # the same bytes, put back at another time
    world.run(other.parent, recipe=recipe)
    assert set(world.exposures()) == {world.source(other)["source_id"], first}
    assert not world.rows("failures")


def test_forgotten_content_does_not_come_back_under_another_name(world: World) -> None:
    kept, gone = picture(world.root / "a" / "0.png", 60), picture(world.root / "a" / "1.png", 220)
    other = picture(world.root / "b" / "0.png", 120)
    world.run(kept.parent)
    bright = world.source(gone)["source_id"]
    forgetting.forget(Dataset(world.dataset), forgetting.Request(sources=(str(gone),)))
    shutil.copy(gone, kept)
    world.run(other.parent, recipe=BY_CROP)
    assert bright not in world.exposures()
    assert max(world.exposures().values()) < 20


def test_name_of_a_file_that_was_replaced(world: World, capsys: pytest.CaptureFixture) -> None:
    """It finds what is there now first; to forget it is to forget what was there, too."""
    for first in (60, 90, 120):
        path = picture(world.root / f"in{first}" / f"{first}.png", first)
        world.dataset = world.root / f"dataset{first}"
        world.run(path.parent)
        picture(path, 200)
        world.run(path.parent)
        for name in (str(path), path.name):
            found = find_sources(connect(world.dataset), name)
            assert (len(found), found[0]) == (2, world.source(path)["source_id"])
    capsys.readouterr()
    forgetting.forget(Dataset(world.dataset), forgetting.Request(sources=(path.name,)))
    said = capsys.readouterr().out
    assert f"{path} (licence not stated)" in said
    assert f"{path} (licence not stated, of what was there before)" in said
    assert not world.rows("sources")


def test_corrections_of_a_list(world: World) -> None:
    """There, back, and gone again: what the list says now is what clips and sources say."""
    picture(world.root / "0.png", 90)

    def said(licence: str, consent: str) -> list[Any]:
        world.run(world.list(f"uri,licence,consent\n0.png,{licence},{consent}\n"))
        return [world.rows(table)[0][column] for table in ("sources", "clips") for column in ("licence", "consent")]

    assert said("CC-BY", "form 7") == ["CC-BY", "form 7"] * 2
    assert said("CC0", "form 7") == ["CC0", "form 7"] * 2
    assert said("CC-BY", "") == ["CC-BY", None] * 2
    assert said("CC-BY", "form 7") == ["CC-BY", "form 7"] * 2


def test_correction_where_the_content_has_another_place(world: World) -> None:
    path = picture(world.root / "0.png", 90)
    shutil.copy(path, world.root / "copy.png")
    for licence in ("CC-BY", "CC0"):
        world.run(world.list(f"uri,licence\n0.png,\ncopy.png,{licence}\n"))
        assert world.rows("sources")[0]["licence"] == licence


def test_file_that_is_replaced_while_a_killed_run_waits(world: World) -> None:
    """The killed run has indexed the file and nothing else."""
    for old, new in ((60, 200), (90, 150), (120, 70), (150, 100)):
        path = picture(world.root / f"in{old}" / "0.png", old)
        world.dataset = world.root / f"dataset{old}"
        (unit,) = list_inputs([str(path)], RECIPE.index)
        write_bytes_atomically(Dataset(world.dataset).recipe_file, recipe_toml(RECIPE).encode())
        ledger = Ledger(Dataset(world.dataset), "index", RECIPE.stage_hash("index"))
        commit_unit(ledger.folder, "index", unit, IndexStage(RECIPE, path.parent).process(unit), 0.0, "w")
        picture(path, new)
        world.run(path.parent)
        (row,) = world.rows("sources")
        assert (row["status"], world.exposures()) == ("ok", {row["source_id"]: round(new / 10)})


def test_two_inputs_that_name_one_file(world: World) -> None:
    picture(world.root / "in" / "0.png", 90)
    listing = world.list("uri,licence,show\nin/0.png,CC0,one\n")
    for inputs in ((listing, world.root / "in"), (world.root / "in", listing)):
        (unit,) = list_inputs([str(path) for path in inputs], IndexOptions())
        assert unit["columns"] == {"licence": "CC0", "show": "one"}
    other = world.root / "other.csv"
    other.write_text("uri,licence\nin/0.png,CC-BY\n")
    with pytest.raises(ValueError, match=r"in/0.png is listed twice, with the licence 'CC0' and 'CC-BY'"):
        list_inputs([str(listing), str(other)], IndexOptions())


def test_blanks_around_names_and_values(world: World) -> None:
    picture(world.root / "0.png", 90)
    (unit,) = list_inputs([str(world.list("uri , licence,consent\n0.png,  CC0 ,   \n"))], IndexOptions())
    assert unit["columns"] == {"licence": "CC0"}


@pytest.mark.parametrize("licence", ["", "   ", "unknown", "None", "n/a"])
def test_licence_that_says_nothing_is_none(world: World, licence: str) -> None:
    picture(world.root / "0.png", 90)
    listing = world.list(f"uri,licence\n0.png,{licence}\n")
    world.run(listing, recipe=replace(RECIPE, select=replace(LAX, require_licence=True)))
    assert [row["failed_rules"] for row in world.rows("clips")] == [["no_licence"]]


def test_file_that_could_not_be_read_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(world.root / "in" / "0.png", 90)
    with monkeypatch.context() as patch:
        patch.setattr("curation.scan.read_still", _refused)
        with pytest.raises(PermissionError):
            world.run(path.parent)
    moved = path.rename(world.root / "away.png")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.index, "list_inputs", lambda *_: listed)
        listed = [{"uri": str(path), "name": "kept", "columns": {}, "size_bytes": 1, "changed": ""}]
        world.run(path.parent, recipe=BY_SCAN)
    assert [row["reason"] for row in world.rows("failures") if row["stage"] == "scan"] == ["source_gone"]
    moved.rename(path)
    world.run(path.parent, recipe=BY_SCAN)
    assert not world.rows("failures")
    assert len(world.rows("clips")) == 1


def test_file_that_was_away_for_a_moment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back as it was when it was listed it is the same unit; a link to nothing is not tried again and again."""
    path = picture(world.root / "in" / "0.png", 90)
    (path.parent / "1.png").symlink_to(world.root / "nowhere.png")
    listed = list_inputs([str(path.parent)], IndexOptions())
    moved = path.rename(world.root / "away.png")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.index, "list_inputs", lambda *_: listed)
        world.run(path.parent)
    assert [row["reason"] for row in world.rows("failures")] == ["not_found"] * 2
    moved.rename(path)
    world.run(path.parent)
    assert [row["uri"] for row in world.rows("failures")] == [str(path.with_name("1.png"))]
    assert len(world.rows("clips")) == 1
    assert world.run(path.parent).num_units == 0


def _refused(path: str) -> None:
    raise PermissionError(13, "Permission denied", path)


@pytest.mark.parametrize(("reason", "is_asked"), [("crashed", True), ("killed", False)])
def test_failed_units_come_again(world: World, monkeypatch: pytest.MonkeyPatch, reason: str, is_asked: bool) -> None:
    """When asked, or by every run where the file was not to blame: another may have more memory, or fewer workers."""
    path = picture(world.root / "in" / "0.png", 90)
    with monkeypatch.context() as patch:
        patch.setattr("curation.scan.ScanStage.process", partialmethod(_fail, reason))
        world.run(path.parent)
    assert [row["reason"] for row in world.rows("failures")] == [reason]
    if is_asked:
        assert world.run(path.parent).num_units == 0
    assert world.run(path.parent, retry_failed=is_asked).num_units > 0
    assert not world.rows("failures")
    assert len(world.rows("clips")) == 1


def _fail(self: Any, reason: str, unit: dict[str, Any]) -> Any:
    from curation.units import UnitResult

    result = UnitResult()
    result.fail("scan", unit, reason, "the worker process died", 2)
    return result


def test_persons_and_splits_stay_when_all_is_cropped_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the run that crops again is killed before it selects, and where the data set has grown."""
    analyser = scan.load_analyser(RECIPE.faces)
    analyser.embed = _another_person_in_each
    monkeypatch.setattr(scan, "load_analyser", lambda _: analyser)
    recipe = replace(RECIPE, select=replace(LAX, val_share=0.3, test_share=0.3))
    for k in range(12):
        picture(world.root / "in" / f"{k}.png", 40 + 15 * k)
        if k in (5, 11):
            world.run(world.root / "in", recipe=recipe)
    decided = _decided(world)
    assert {split for _, split in decided.values()} == {"train", "val", "test"}
    again = replace(recipe, crop=CropOptions(jpeg_quality=90))
    world.die_before_selecting(world.root / "in", recipe=again)
    world.run(world.root / "in", recipe=replace(again, crop=CropOptions(jpeg_quality=91)))
    assert _decided(world) == decided


def _another_person_in_each(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    embedding = np.random.default_rng(round(float(image.mean()))).normal(size=64)
    return (embedding / np.linalg.norm(embedding)).astype(np.float32)[None]


def _decided(world: World) -> dict[str, tuple[str, str]]:
    return {row["clip_id"]: (row["identity_id"], row["split"]) for row in world.rows("clips")}


def test_what_was_put_aside_is_forgotten_too(world: World) -> None:
    paths = [picture(world.root / "in" / f"{k}.png", 40 + 15 * k) for k in range(4)]
    world.run(world.root / "in")
    world.die_before_selecting(world.root / "in", recipe=BY_CROP)
    forgetting.forget(Dataset(world.dataset), forgetting.Request(sources=(str(paths[1]),)))
    assert len(kept_decisions(Dataset(world.dataset))) == 3


def test_place_of_a_data_set_from_before_places_were_written(tmp_path: Path) -> None:
    path = picture(tmp_path / "0.png", 90)
    (unit,) = list_inputs([str(path)], IndexOptions())
    (row,) = merge_sources(IndexStage(Recipe(), tmp_path).process(unit).rows["sources"])
    old = row | {"places": None, "licence": "CC0"}
    assert find_source(row | {"places": of_unit(old)}) == str(path)
    (merged,) = merge_sources([old])
    assert (merged["licence"], merged["uris"]) == ("CC0", [str(path)])
    path.write_bytes(b"another")
    with pytest.raises(SourceGone, match="holds another file now"):
        find_source(row)


def test_glob_leaves_out_data_sets(world: World, capsys: pytest.CaptureFixture) -> None:
    picture(world.root / "in" / "0.png", 90)
    world.dataset = world.root / "in" / "dataset"
    world.run(world.root / "in")
    picture(world.dataset / "report" / "strip.png", 90)
    picture(world.root / "in" / "a" / "b" / "1.png", 60)
    units = list_inputs([str(world.root / "*" / "*" / "*" / "*.png")], IndexOptions())
    assert [Path(unit["uri"]).name for unit in units] == ["1.png"]
    assert "data sets among the inputs are left out" in capsys.readouterr().err


def test_what_is_hidden_is_left_out_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = [picture(tmp_path / name, 90) for name in ("a.png", "b/c.png", ".thumbnails/d.png", "b/._c.png")]
    assert [unit["uri"] for unit in list_inputs([str(tmp_path)], IndexOptions())] == [str(p) for p in paths[:2]]
    assert "2 hidden files are left out" in capsys.readouterr().err
    named = [str(tmp_path / ".thumbnails"), str(paths[3])]
    assert [unit["uri"] for unit in list_inputs(named, IndexOptions())] == [str(paths[2]), str(paths[3])]
