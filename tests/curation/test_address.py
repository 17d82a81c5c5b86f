"""A cluster that cannot be joined is named at once, before anything is read or locked."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from curation.address import require_cluster
from curation.distribute import ClusterOptions
from curation.pipeline import run
from curation.recipe import Recipe
from curation.sandbox import FatalError


@pytest.mark.parametrize(
    ("option", "variable", "error", "said"),
    [
        ("ray://head:10001", "", ValueError, "--address is ray://head:10001: .*ray job submit"),
        ("", "http://127.0.0.1:8265", ValueError, "RAY_ADDRESS is http://.*with RAY_ADDRESS unset"),
        ("head", "", ValueError, "expected auto or HOST:PORT"),
        ("127.0.0.1:1", "", FatalError, "no Ray cluster answers at --address 127.0.0.1:1: .*refused"),
        ("auto", "127.0.0.1:1", FatalError, "no Ray cluster answers at RAY_ADDRESS 127.0.0.1:1"),
        ("127.0.0.1:70000", "", FatalError, "no Ray cluster answers"),
    ],
)
def test_an_address_that_leads_nowhere_is_named(monkeypatch, tmp_path: Path, option, variable, error, said):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(error, match=said):
        run([str(tmp_path)], tmp_path / "data", Recipe(), cluster_options=ClusterOptions(address=option))
    assert not (tmp_path / "data").exists()


def test_an_address_that_answers_is_taken(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_cluster(f"127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.delenv("RAY_ADDRESS")
    require_cluster("")
    require_cluster("auto")
