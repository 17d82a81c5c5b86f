"""Where the tests find real media, weights and reference numbers; tests that need them skip when they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder {name!r} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def media() -> Path:
    """Real videos, stills and malformed files with a ground-truth index.csv."""
    return _shared_folder("media")


@pytest.fixture(scope="session")
def models() -> Path:
    """Real weight files of face analysers and released networks."""
    return _shared_folder("models")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Numbers computed by the published networks, geometry and animation."""
    return _shared_folder("reference")
