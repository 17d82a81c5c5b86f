"""A run with other options of scan or crop does not lose what it could not make again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from curation import __main__ as command
from curation import pipeline
from curation.recipe import Recipe, SelectOptions
from curation.safeguards import check_networks, require_rights
from curation.verify import verify
from manifests.store import Dataset, read_table

RECIPE = Recipe(select=SelectOptions(min_sharpness=None, max_upscale=None))
LAX = ("--select.min-sharpness", "none", "--select.max-upscale", "none")
OTHERS = (("--crop.jpeg-quality", "90"), ("--scan.embed-every-s", "0.5"))


@pytest.fixture
def dataset(sources: list[str], tmp_path: Path) -> Dataset:
    """Of five stills, which have been moved away since."""
    dataset = Dataset(tmp_path / "my set")
    pipeline.run(sources, dataset.root, RECIPE)
    os.rename(sources[0], tmp_path / "away")
    return dataset


@pytest.fixture
def new(dataset: Dataset, tmp_path: Path) -> Path:
    """A folder with one more still."""
    path = tmp_path / "new" / "5.png"
    path.parent.mkdir()
    Image.open(tmp_path / "away" / "2.png").rotate(180).save(path)
    return path.parent


def content_of(dataset: Dataset) -> tuple[list, dict[str, bytes]]:
    return read_table(dataset, "clips").to_pylist(), {path.name: path.read_bytes() for path in dataset.shards.iterdir()}


@pytest.mark.parametrize("other", OTHERS)
def test_clips_whose_sources_are_gone_are_not_lost(dataset: Dataset, new: Path, tmp_path: Path, capsys, other) -> None:
    """And what has made them stays in force."""
    before, recipe = content_of(dataset), dataset.recipe_file.read_bytes()
    run = ["run", str(new), "--output", str(dataset.root), *LAX]
    for _ in range(2):
        assert command.main([*run, *other]) == 2
        shown = capsys.readouterr().err
        assert "the sources of 5 kept clips cannot be found" in shown
        assert f"keep the options (--recipe '{dataset.recipe_file}')" in shown
        assert content_of(dataset) == before
        assert dataset.recipe_file.read_bytes() == recipe
    assert command.main(["run", str(new), "--output", str(dataset.root), "--recipe", str(dataset.recipe_file)]) == 0
    assert len(read_table(dataset, "clips")) == 6
    assert command.main([*run, *other, "--allow-lost-clips"]) == 0
    assert len(read_table(dataset, "clips")) == 1
    assert list(verify(dataset)) == []


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (("--crop.quality-model", "typo.pb"), "cannot start: crop.quality_model: no such file: "),
        (("--faces", "insightface", "--faces.root", "nowhere"), "cannot start: "),
    ],
)
def test_networks_that_cannot_be_loaded_cost_nothing(
    sources: list[str], tmp_path: Path, monkeypatch, capsys, bad: tuple[str, ...], said: str
) -> None:
    """Of a finished data set, whose rows and recipe other networks would replace."""
    dataset = Dataset(tmp_path / "dataset")
    pipeline.run(sources, dataset.root, RECIPE)

    def contents() -> dict[Path, bytes]:
        made = (path for path in dataset.root.rglob("*") if path.is_file() and "runs" not in path.parts)
        return {path: path.read_bytes() for path in made if path.name not in ("run.json", ".lock")}

    before = contents()
    monkeypatch.setattr(pipeline, "check_networks", check_networks)
    monkeypatch.chdir(tmp_path)
    run = ["run", *sources, "--output", str(dataset.root), *LAX]
    assert command.main([*run, *bad]) == 1
    assert f"error: {said}" in (shown := capsys.readouterr().err)
    assert "recipe changes" not in shown
    assert contents() == before
    assert read_table(dataset, "runs").to_pylist()[-1]["status"] == "failed"
    assert command.main(run) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_the_recipe_that_keeps_rights_is_named_as_a_shell_takes_it() -> None:
    strict = Recipe(select=SelectOptions(require_licence=True))
    with pytest.raises(ValueError, match=r"--recipe '/data/my set/recipe\.toml' keeps its options"):
        require_rights(Dataset("/data/my set"), strict, Recipe())


def test_sources_that_are_named_where_they_are_now(dataset: Dataset, tmp_path: Path) -> None:
    other = replace(RECIPE, crop=replace(RECIPE.crop, jpeg_quality=90))
    pipeline.run([str(tmp_path / "away")], dataset.root, other)
    assert [row["decision"] for row in read_table(dataset, "clips").to_pylist()] == ["keep"] * 5
    assert list(verify(dataset)) == []
