"""A run that dies before any of its changes on disk, at each of them in turn, and is started again.

The stages run in this process, with a stand-in for the networks, so that hundreds of runs take seconds; everything
else is real. A death stops all further changes, clean-up included, as SIGKILL does.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curation import crop, pipeline, scan
from curation.recipe import PackOptions, Recipe, SelectOptions
from manifests.schema import TABLES
from manifests.store import Dataset, read_table
from model.faces import AnalyserInfo, Detections, Landmarks

RECIPE = Recipe(pack=PackOptions(shard_bytes=400_000), select=SelectOptions(min_sharpness=None, max_upscale=None))
STRICT = replace(RECIPE, select=replace(RECIPE.select, max_exposure=0.5))


_processes = itertools.count(1_000_000)


class Died(BaseException):
    """What a killed process does not even see."""


class OneFace:
    """Stands in for the networks: one face in the middle of every picture, its identity made of the picture."""

    info = AnalyserInfo("one", "none", {}, 2, 0.4)

    def __init__(self, make_face68: Callable) -> None:
        self._make = make_face68

    def _points(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        return self._make((width / 2, height / 2), height * 0.45)

    def detect(self, images):
        found = []
        for image in images:
            points = self._points(image)
            box = np.array([[*points.min(0), *points.max(0)]], np.float32)
            found.append(Detections(box, np.full(1, 0.9, np.float32), np.zeros((1, 5, 2), np.float32)))
        return found

    def landmarks(self, image, faces):
        return Landmarks(self._points(image)[None].astype(np.float32), np.ones(1, np.float32), np.zeros((1, 3)))

    def embed(self, image, points):
        angle = float(image.mean()) / 255 * np.pi
        return np.array([[np.cos(angle), np.sin(angle)]], np.float32)


@pytest.fixture
def sources(tmp_path, monkeypatch, without_ray, make_face68) -> list[str]:
    """Five stills, two of them bright, and a broken one; the networks are replaced."""
    folder = tmp_path / "sources"
    folder.mkdir()
    chance = np.random.default_rng(0)
    for k, level in enumerate((60, 90, 120, 200, 220)):
        picture = chance.integers(level - 30, level + 30, (300, 300, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{k}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:5000])

    for stage in (scan, crop):
        monkeypatch.setattr(stage, "load_analyser", lambda config: OneFace(make_face68))
    return [str(folder)]


def run_until(sources: list[str], output: Path, recipe: Recipe, last_change: int | None) -> int:
    """A run that dies before change number `last_change`; returns how many changes there were until then."""
    num_changes = 0
    process = next(_processes)

    def deadly(original):
        def change(*arguments, **options):
            nonlocal num_changes
            if last_change is not None and num_changes >= last_change:
                raise Died
            num_changes += 1
            return original(*arguments, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process)  # names of temporary files
        patch.setattr(os, "replace", deadly(os.replace))
        patch.setattr(Path, "unlink", deadly(Path.unlink))
        patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
        try:
            pipeline.run(sources, output, recipe)
        except Died:
            assert last_change is not None
    return num_changes


def content_of(folder: Path) -> dict[str, object]:
    dataset = Dataset(folder)
    tables = {name: read_table(dataset, name).to_pylist() for name in TABLES if name != "units"}
    tables["frames"].sort(key=lambda row: (row["clip_id"], row["frame"]))
    tables["unit names"] = sorted((u["stage"], u["unit"]) for u in read_table(dataset, "units").to_pylist())
    shards = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(dataset.shards.iterdir())}
    return tables | {"shard files": shards}


def files_left(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith(".tmp") or "staging" in p.parts or p.name == ".lock"]


EVERY = pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])


@EVERY
def test_first_run_may_die_anywhere(sources, tmp_path, step):
    num_changes = run_until(sources, tmp_path / "undisturbed", RECIPE, None)
    wanted = content_of(tmp_path / "undisturbed")
    assert len(wanted["shard files"]) >= 2
    assert len(wanted["clips"]) == 5
    assert num_changes > 30
    for change in range(0, num_changes, step):
        output = tmp_path / f"died{change}"
        run_until(sources, output, RECIPE, change)
        run_until(sources, output, RECIPE, None)
        assert content_of(output) == wanted, f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        shutil.rmtree(output)


@pytest.mark.parametrize("then", ["the same again", "back to the first"])
def test_other_thresholds_may_die_anywhere(sources, tmp_path, then):
    """Shards are rewritten from shards; then the same thresholds again, or the old ones after all."""
    run_until(sources, tmp_path / "first", RECIPE, None)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    num_changes = run_until(sources, tmp_path / "second", STRICT, None)
    first, second = content_of(tmp_path / "first"), content_of(tmp_path / "second")
    assert sum(clip["decision"] == "keep" for clip in second["clips"]) == 3
    assert first["shard files"] != second["shard files"]
    recipe, wanted = (STRICT, second) if then == "the same again" else (RECIPE, first)
    for change in range(num_changes):
        output = tmp_path / f"died{change}"
        shutil.copytree(tmp_path / "first", output)
        run_until(sources, output, STRICT, change)
        run_until(sources, output, recipe, None)
        assert content_of(output) == wanted, f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        shutil.rmtree(output)


@EVERY
def test_other_crops_may_die_anywhere(sources, tmp_path, step):
    """A recipe that redoes crop and all that follows."""
    larger = replace(RECIPE, crop=replace(RECIPE.crop, jpeg_quality=80))
    run_until(sources, tmp_path / "first", RECIPE, None)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    num_changes = run_until(sources, tmp_path / "second", larger, None)
    run_until(sources, tmp_path / "fresh", larger, None)
    wanted = content_of(tmp_path / "fresh")
    assert content_of(tmp_path / "second") == wanted, "nothing of the first recipe is left"
    for change in range(0, num_changes, step):
        output = tmp_path / f"died{change}"
        shutil.copytree(tmp_path / "first", output)
        run_until(sources, output, larger, change)
        run_until(sources, output, larger, None)
        assert content_of(output) == wanted, f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        shutil.rmtree(output)
