"""One open analyser and one photograph for all tests of faces."""

from __future__ import annotations

import numpy as np
import pytest

from model.faces import FacesConfig, load_analyser
from model.faces.weights import WeightsError
from tests.conftest import SHARED


@pytest.fixture(scope="session")
def open_config() -> FacesConfig:
    """Local weights beside the checkout where there are some; otherwise the cache, or one download."""
    local = SHARED / "models" / "open"
    return FacesConfig(weights_dir=str(local) if local.is_dir() else None)


@pytest.fixture(scope="session")
def open_analyser(open_config):
    try:
        return load_analyser(open_config)
    except WeightsError as error:
        pytest.skip(f"no weights and no way to fetch them: {error}")


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A public-domain photograph with one face, uint8 [512, 512, 3]."""
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut())
