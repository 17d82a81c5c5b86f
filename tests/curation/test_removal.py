"""Recipes name no forgotten clip: that of the data set, those of earlier runs, and what a card prints of them."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from curation import pipeline, removal
from curation.card import write_card
from curation.forget import Request, forget
from curation.lock import only_run
from curation.recipe import Recipe, SelectOptions, recipe_of, recipe_toml
from curation.units import UnitResult, commit_unit
from curation.verify import verify
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table
from manifests.views import connect

LAX = SelectOptions(min_sharpness=None, max_upscale=None)


@pytest.fixture
def chosen(sources, tmp_path) -> tuple[Dataset, list[str]]:
    """A data set of five clips of which three are decided by hand, and their ids in the order of their names."""
    dataset = Dataset(tmp_path / "dataset")
    pipeline.run(sources, dataset.root, Recipe(select=LAX))
    ids = read_table(dataset, "clips")["clip_id"].to_pylist()
    lists = {"keep_clips": (ids[0], ids[1]), "reject_clips": (ids[2],)}
    pipeline.reselect(dataset, Recipe(select=replace(LAX, **lists)))
    pipeline.run(sources, dataset.root, recipe_of(dataset.root))
    assert list(verify(dataset)) == []
    return dataset, ids


def files_that_name(dataset: Dataset, *names: str) -> set[str]:
    """Files other than tombstones, Parquet columns decoded."""
    found = set()
    for path in (path for path in dataset.root.rglob("*") if path.is_file()):
        text = str(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()
        if any(name.encode() in text for name in names):
            found.add(path.name)
    return found - {"tombstones.parquet"}


def shards(dataset: Dataset) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in dataset.shards.iterdir()}


def test_recipes_do_not_name_what_was_forgotten(chosen, sources):
    dataset, ids = chosen
    source_id = ids[2].split("_")[0]
    assert files_that_name(dataset, ids[0], source_id) >= {"recipe.toml", "runs.parquet"}
    assert forget(dataset, Request(where=f"clip_id = '{ids[0]}'"))
    assert forget(dataset, Request(sources=(source_id,)))
    recipe = recipe_of(dataset.root)
    assert (recipe.select.keep_clips, recipe.select.reject_clips) == ((ids[1],), ())
    assert dataset.recipe_file.read_text() == recipe_toml(recipe)
    write_card(dataset)
    assert files_that_name(dataset, ids[0], source_id) == set()
    runs = read_table(dataset, "runs").to_pylist()
    assert [row["recipe_changes"] for row in runs if row["recipe_changes"]] == [
        ["select.keep_clips (forgotten)", "select.reject_clips (forgotten)"]
    ]
    assert f'keep_clips = ["{ids[1]}"]\nreject_clips = []\n' in runs[2]["recipe"]
    assert list(verify(dataset)) == []
    before = shards(dataset)
    for given in (recipe, replace(recipe, select=replace(recipe.select, keep_clips=()))):
        assert pipeline.run(sources, dataset.root, given).num_units == 0, "nothing is redone"
        assert shards(dataset) == before
        assert list(verify(dataset)) == []


@pytest.mark.parametrize("step", ["write_bytes_atomically", "_rewrite", "_write_shards", "_remove_staged"])
def test_a_removal_that_dies_is_finished_in_recipes_too(chosen, monkeypatch, step):
    dataset, ids = chosen
    original, journal = getattr(removal, step), removal.journal_file(dataset)

    def die(*arguments):
        if journal.exists():
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(removal, step, die)
        with pytest.raises(KeyboardInterrupt):
            forget(dataset, Request(where=f"clip_id = '{ids[0]}'"))
    assert journal.exists()
    with only_run(dataset) as was_finished:
        assert was_finished
    assert recipe_of(dataset.root).select.keep_clips == (ids[1],)
    assert files_that_name(dataset, ids[0]) == set()
    assert list(verify(dataset)) == []


@pytest.mark.parametrize("act", ["run", "select"])
def test_a_recipe_of_the_users_own_brings_no_name_back(chosen, sources, act):
    dataset, ids = chosen
    recipe = recipe_of(dataset.root)
    assert forget(dataset, Request(where=f"clip_id = '{ids[0]}'"))
    pipeline.run(sources, dataset.root, recipe) if act == "run" else pipeline.reselect(dataset, recipe)
    assert files_that_name(dataset, ids[0]) == set()
    assert list(verify(dataset)) == []


def test_recipes_from_before_are_told_and_mended(chosen, sources, monkeypatch):
    """Of programs that did not look at recipes."""
    dataset, ids = chosen
    recipe = recipe_of(dataset.root)
    assert forget(dataset, Request(where=f"clip_id = '{ids[0]}'"))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_without_forgotten", lambda _, given: given)
        pipeline.run(sources, dataset.root, recipe)
    told = {(difference.what, difference.problem.split(":")[0]) for difference in verify(dataset)}
    assert told == {
        ("recipe.toml", "names forgotten clips"),
        ("table runs", "with a recipe that names a forgotten clip"),
    }
    forget(dataset, Request(where=f"clip_id = '{ids[0]}'"))
    assert files_that_name(dataset, ids[0]) == set()
    assert list(verify(dataset)) == []


def test_folders_that_were_put_on_another_disk(chosen, sources, tmp_path):
    """By links: `forget` ends, nothing is left in them, and they stay."""
    dataset, ids = chosen
    for folder in (dataset.report, dataset.shards, dataset.staging):
        folder.mkdir(exist_ok=True)
        folder.rename(tmp_path / f"elsewhere_{folder.name}")
        folder.symlink_to(tmp_path / f"elsewhere_{folder.name}")
    (dataset.report / "strips").mkdir()
    (dataset.report / "strips/0.jpg").touch()
    before = shards(dataset)
    assert forget(dataset, Request(where=f"clip_id = '{ids[0]}'"))
    assert not removal.journal_file(dataset).exists()
    assert list(dataset.report.iterdir()) == list(dataset.staging.iterdir()) == []
    assert shards(dataset) != before
    assert list(verify(dataset)) == []
    write_card(dataset)
    assert [path.name for path in (tmp_path / "elsewhere_report").iterdir()] == ["card.md"]
    pipeline.run(sources, dataset.root, replace(recipe_of(dataset.root), seed=1))
    assert list(dataset.staging.iterdir()) == [], "nothing is left on the other disk"
    assert list(verify(dataset)) == []


def test_one_look_at_the_clips_finds_what_stays_in_all_shards(tmp_path, monkeypatch):
    """In the order in which it lies there; a look at the clips reads the offsets of all their frames."""
    dataset, names = Dataset(tmp_path), [f"train-00000{k}.tar" for k in range(4)]
    clips = [{"clip_id": f"c{k:02d}", "shard": names[k % 4], "frame_offsets": [(99 - k) * 512]} for k in range(10)]
    replace_table(dataset, "clips", make_table("clips", clips))
    counts = [{"shard": name, "split": "train", "num_clips": 3 if k < 2 else 2} for k, name in enumerate(names)]
    replace_table(dataset, "shards", make_table("shards", counts))
    dataset.shards.mkdir()
    for name in names:
        (dataset.shards / name).touch()
    asked = []

    class Database:
        def __init__(self, root):
            self._db = connect(root)
            self.register = self._db.register

        def execute(self, query, *parameters):
            asked.append(query)
            return self._db.execute(query, *parameters)

    monkeypatch.setattr(removal, "connect", Database)
    num_asked = set()
    for gone, left, empty in (
        ({"c00"}, {names[0]: ["c08", "c04"]}, []),
        ({"c00", "c01", "c02", "c06", "c03"}, {names[0]: ["c08", "c04"], names[1]: ["c09", "c05"], names[3]: ["c07"]},
         [names[2]]),
        ({"another"}, {}, []),
    ):  # fmt: skip
        plan = removal.plan_shards_without(dataset, Recipe(), gone)
        assert {row["shard"]: [clip["clip_id"] for clip in row["clips"]] for row in plan["rewritten"]} == left
        assert (plan["removed"], plan["discarded"]) == (empty, [])
        num_asked.add(len(asked))
        asked.clear()
    assert len(num_asked) == 1


@pytest.mark.parametrize("num_rows", [3, 30])
def test_names_of_what_goes_are_gathered_once_for_all_rows(num_rows):
    class Names(list):
        num_looks = 0

        def __iter__(self):
            Names.num_looks += 1
            return super().__iter__()

    rows = [{"clip_id": f"c{k:02d}", "source_id": "s", "shard": "a.tar", "duplicate_of": "x"} for k in range(num_rows)]
    removed = removal.Removal(request="r", clips=Names(["x", "t0"]), rewritten=[{"shard": "a.tar"}])
    table = removal._replace_places(make_table("clips", rows), {}, removed)
    assert table["duplicate_of"].null_count == num_rows
    candidates = [{"clip_id": f"t{k}"} for k in range(num_rows)]
    tracks = make_table("tracks", [{"track_id": "t", "source_id": "s", "candidates": candidates}])
    (row,) = removal._strip_tracks(tracks, ["s"], removed).to_pylist()
    assert row["num_clips"] == num_rows - 1
    assert Names.num_looks <= 6


def test_a_dry_run_leaves_an_interrupted_run_as_it_is(chosen, capsys):
    """Commits, parts of shards and what other options made; it says what it did not look through."""
    dataset, ids = chosen

    def files() -> dict[str, tuple[bytes, int]]:
        found = [path for path in dataset.root.rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    request, recipe = Request(where=f"clip_id = '{ids[0]}'"), recipe_of(dataset.root)
    assert forget(dataset, request, is_dry_run=True)
    assert "an interrupted run" not in capsys.readouterr().out
    crop = dataset.staging / f"crop-{recipe.stage_hash('crop')}"
    unit = {"name": "0123456789abcdef-0000", "source_id": "0123456789abcdef"}
    commit_unit(crop, "crop", unit, UnitResult(rows={"clips": []}), 1.0, "w")
    for name in (f"pack-{recipe.stage_hash('pack')}", "crop-0ther"):
        (dataset.staging / name).mkdir(parents=True)
        (dataset.staging / name / "0123456789abcdef.tar").write_bytes(b"pictures")
    before = files()
    assert forget(dataset, request, is_dry_run=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "what an interrupted run left in staging/ is not shown here" in shown
    assert "dry run: nothing was changed" in shown
    assert files() == before
    assert forget(dataset, request)
    assert not removal.has_unfinished_work(dataset)
    assert "an interrupted run" not in capsys.readouterr().out
