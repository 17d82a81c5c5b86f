"""Runs without Ray, and what reads their results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation import crop, pipeline, scan
from curation.distribute import ClusterOptions
from curation.recipe import Recipe
from curation.worker import give_up, make_unit_worker
from manifests.storage import make_folder
from manifests.store import Dataset, read_table
from model.faces import AnalyserInfo, Detections, Landmarks


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path, str], list[dict[str, Any]]]:
    """Reads all rows of one table of a data set."""
    return lambda folder, table: read_table(Dataset(folder), table).to_pylist()


@pytest.fixture
def demo_copy(demo_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the demonstration's data set that a test may change."""
    copy = tmp_path / "dataset"
    shutil.copytree(demo_dataset, copy)
    return copy


class _Here:
    """Does the units in this process, as an actor's child does them."""

    workers = 1

    def connect(self) -> None:
        pass

    def check(self, do: Callable[[], None], needs_gpu: bool) -> None:
        do()

    def run(self, stage: str, recipe: Recipe, folder: Path, units: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        make_folder(folder)
        do = make_unit_worker(stage, recipe, folder)
        for unit in units:
            try:
                yield do(unit)
            except FileNotFoundError as error:
                yield give_up(folder, stage, unit, "error", str(error), 1)


def _leave_out_ray(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def here(options: ClusterOptions) -> Iterator[_Here]:
        yield _Here()

    patch.setattr(pipeline, "cluster", here)
    patch.setattr(pipeline, "check_networks", lambda recipe: None)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process do all work themselves: nothing is distributed, all else is real."""
    _leave_out_ray(monkeypatch)


@pytest.fixture(scope="session")
def run_here() -> Callable[..., pipeline.Outcome]:
    """`pipeline.run` without Ray, for fixtures that live longer than a test."""

    def run(inputs: list[str], output: Path, recipe: Recipe, **options: Any) -> pipeline.Outcome:
        with pytest.MonkeyPatch.context() as patch:
            _leave_out_ray(patch)
            return pipeline.run(inputs, output, recipe, **options)

    return run


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
