"""The plan of a stage: its units in bundles, a file each, so that the driver holds names and not what a unit needs.

A candidate clip alone is some ten kilobytes as Python objects. What goes through Ray is the name of a bundle's file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import orjson

from manifests.storage import Place, make_folder, map_places, place, read_bytes, remove_tree, write_bytes_atomically

_UNITS_AT_ONCE = 2048
_BUNDLES_PER_WORKER = 6  # of what is left
_MIN_BUNDLE_COST_S = 1.0
_MAX_BUNDLE_COST_S = 60.0
_MAX_BUNDLE_UNITS = 500


def bundle(units: list[dict[str, Any]], workers: int) -> list[list[dict[str, Any]]]:
    """Units put together by expected cost, the expensive ones first and alone, so that no worker ends much later.

    A row of Ray Data costs about 10 ms and its scheduling; bundles of at least a second make that small. They get
    smaller towards the end, a share of what is left each, so that the last ones end at about the same time. No bundle
    is so large that progress stands still for minutes.
    """
    ordered = sorted(units, key=lambda u: (-u.get("expected_s", 0.0), u["name"]))
    left = sum(u.get("expected_s", 0.0) for u in ordered)
    bundles: list[list[dict[str, Any]]] = []
    cost = limit = 0.0
    for unit in ordered:
        unit_cost = unit.get("expected_s", 0.0)
        if not bundles or cost + unit_cost > limit or len(bundles[-1]) == _MAX_BUNDLE_UNITS:
            bundles.append([])
            cost = 0.0
            limit = min(max(_MIN_BUNDLE_COST_S, left / (workers * _BUNDLES_PER_WORKER)), _MAX_BUNDLE_COST_S)
        bundles[-1].append(unit)
        cost += unit_cost
        left -= unit_cost
    return bundles


class Plan:
    """Units in bundles on disk, and which of them nobody has answered for."""

    def __init__(self, folder: Place, units: Iterable[dict[str, Any]], workers: int) -> None:
        """Write `units`, some thousand at a time, into `folder`; what an earlier plan left there is removed. Each gets
        `seen_at` (see `_with_seen`)."""
        self._folder = folder
        self._costs: list[float] = []
        self._bundle_of: dict[str, int] = {}
        self.has_remote_sources = False
        self.source_folder = ""
        """The folder below which all local sources of the units lie; none where there are no such sources."""
        remove_tree(folder)
        make_folder(folder)
        units = iter(units)
        while some := list(islice(units, _UNITS_AT_ONCE)):
            uris = [uri for unit in some if (uri := unit.get("uri"))]
            self.has_remote_sources |= any("://" in uri for uri in uris)
            folders = {os.path.dirname(uri) for uri in uris if os.path.isabs(uri)}
            if folders:
                self.source_folder = os.path.commonpath([self.source_folder or min(folders), *folders])
            groups = list(enumerate(bundle(list(_with_seen(some)), workers), len(self._costs)))
            for number, group in groups:
                self._costs.append(sum(unit.get("expected_s", 0.0) for unit in group))
                self._bundle_of |= {unit["name"]: number for unit in group}
            map_places(self._write, groups, where=lambda _: folder)

    def _write(self, numbered: tuple[int, list[dict[str, Any]]]) -> None:
        number, group = numbered
        write_bytes_atomically(self._path(number), orjson.dumps(group))

    def _path(self, number: int) -> Place:
        return self._folder / f"{number:06d}.json"

    def bundles(self) -> list[str]:
        """Where `read_bundle` finds each, the expensive ones first."""
        order = sorted(range(len(self._costs)), key=lambda number: (-self._costs[number], number))
        return [str(self._path(number)) for number in order]

    def answered(self, name: str) -> bool:
        """Note that a unit is done; False where that was known."""
        return self._bundle_of.pop(name, None) is not None

    def unanswered(self) -> Iterator[dict[str, Any]]:
        """The units that are left, in the order of the plan, with `seen_at` as it is when each is taken."""
        for number in sorted(set(self._bundle_of.values())):
            units = read_bundle(str(self._path(number)))
            yield from _with_seen(unit for unit in units if unit["name"] in self._bundle_of)

    @property
    def num_unanswered(self) -> int:
        return len(self._bundle_of)

    def remove(self) -> None:
        """Remove the files."""
        remove_tree(self._folder)


def _with_seen(units: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Units with `seen_at`: the places of a local source where this machine sees it now. Empty where it sees none, and
    where the source is on an object store, too."""
    for unit in units:
        uris = [place["uri"] for place in unit.get("places", [])] or [unit.get("uri", "")]
        seen = [uri for uri in uris if os.path.isfile(uri)] if all(map(os.path.isabs, uris)) else []
        yield unit | {"seen_at": seen}


def read_bundle(path: str) -> list[dict[str, Any]]:
    """The units of a bundle."""
    return orjson.loads(read_bytes(place(path)))
