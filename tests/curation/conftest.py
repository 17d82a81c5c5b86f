"""The command as users run it, and a small data set made from a photograph for the tests that need no shared media."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation import pipeline
from curation.distribute import ClusterOptions, make_unit_worker
from curation.recipe import Recipe
from manifests.store import Dataset, read_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def curate() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m curation ARGUMENTS`; the call fails unless the command ends with `status`."""

    def run(*arguments: object, status: int = 0, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "curation", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path, str], list[dict[str, Any]]]:
    """Reads all rows of one table of a data set."""
    return lambda folder, table: read_table(Dataset(folder), table).to_pylist()


@pytest.fixture(scope="session")
def demo_run(curate, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The data set of `python -m curation demo`, and what the command printed. Not to be changed: see `demo_copy`."""
    folder = tmp_path_factory.mktemp("demo") / "dataset"
    done = curate("demo", "--output", folder, "--workers", 2)
    return folder, done.stdout


@pytest.fixture(scope="session")
def demo_dataset(demo_run: tuple[Path, str]) -> Path:
    return demo_run[0]


@pytest.fixture
def demo_copy(demo_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the demonstration's data set that a test may change."""
    copy = tmp_path / "dataset"
    shutil.copytree(demo_dataset, copy)
    return copy


def _make_face68(center: tuple[float, float] = (100.0, 100.0), height_px: float = 80.0) -> np.ndarray:
    """float64 [68, 2]: an upright, frontal face of about the height, in the order of the iBUG scheme."""

    def ring(num: int, x: float, y: float, wide: float, high: float) -> list[tuple[float, float]]:
        angles = np.pi + 2 * np.pi * np.arange(num) / num
        return [(x + wide * np.cos(a), y + high * np.sin(a)) for a in angles]

    jaw = [(-0.45 * np.cos(a), -0.1 + 0.6 * np.sin(a)) for a in np.linspace(0, np.pi, 17)]
    brows = [(x, -0.4) for x in (-0.35, -0.28, -0.2, -0.13, -0.06, 0.06, 0.13, 0.2, 0.28, 0.35)]
    nose = [(0.0, y) for y in (-0.25, -0.15, -0.05, 0.05)] + [(x, 0.1) for x in (-0.08, -0.04, 0.0, 0.04, 0.08)]
    eyes = ring(6, -0.2, -0.25, 0.08, 0.03) + ring(6, 0.2, -0.25, 0.08, 0.03)
    mouth = ring(12, 0.0, 0.27, 0.16, 0.06) + ring(8, 0.0, 0.27, 0.1, 0.02)
    return np.array(jaw + brows + nose + eyes + mouth) * height_px + np.asarray(center)


@pytest.fixture(scope="session")
def make_face68() -> Callable[..., np.ndarray]:
    """Makes the 68 landmarks of an upright face: `make_face68((x, y), height_px)`."""
    return _make_face68


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


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process do all work themselves: nothing is distributed, all else is real."""

    @contextmanager
    def here(options: ClusterOptions) -> Iterator[_Here]:
        yield _Here()

    monkeypatch.setattr(pipeline, "cluster", here)
    monkeypatch.setattr(pipeline, "check_networks", lambda recipe: None)
