"""Runs without Ray, and what reads their results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from curation import pipeline
from curation.distribute import ClusterOptions, make_unit_worker
from curation.recipe import Recipe
from manifests.store import Dataset, read_table


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

    startup_s = 0.0
    workers = 1

    def connect(self) -> None:
        pass

    def run(self, stage: str, recipe: Recipe, folder: Path, units: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        folder.mkdir(parents=True, exist_ok=True)
        do = make_unit_worker(stage, recipe, folder)
        for unit in units:
            yield do(unit)


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
