"""Where a run stops rather than go on: it would let in what rights keep out, lose clips that nobody can make again,
read files for hours before a network is missing, or take units for done that are not there.
"""

from __future__ import annotations

import functools
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc

from curation import places
from curation.recipe import Recipe, looser_rights
from curation.sandbox import FatalError, Sandbox, SandboxError
from curation.units import Ledger
from manifests.errors import StoreUnreachable
from manifests.storage import filesystem_of, map_places
from manifests.store import Dataset, iterate_rows, read_table


class SourcesLost(ValueError):
    """The sources of kept clips are gone, and the clips would have to be made anew."""


def require_rights(dataset: Dataset, before: Recipe, recipe: Recipe) -> None:
    """ValueError where a run would take in again what `select` or an earlier run has kept out for its rights."""
    if looser := looser_rights(before, recipe):
        raise ValueError(
            f"{dataset.root} keeps clips out for their rights, and this run would take them in ({', '.join(looser)}):"
            f" --recipe {shlex.quote(str(dataset.recipe_file))} keeps its options; --allow-looser-rights if this is"
            " meant"
        )


def require_sources(dataset: Dataset, stage: str) -> None:
    """Before all clips are made anew: there is a file at a place of every source that kept clips are from.

    stage: the one of which the options have changed.

    Raises:
        SourcesLost: a disk may not be mounted, or somebody has cleared up; the shards have the only pictures left.
    """
    clips = read_table(dataset, "clips", ["source_id", "decision"])
    kept = Counter(clips.filter(pc.equal(clips["decision"], "keep"))["source_id"].to_pylist())
    columns = ["source_id", "status", "reason", "uris", "places"]
    sources = {
        row["source_id"]: [place["uri"] for place in places.of_unit(row)]
        for row in iterate_rows(dataset, "sources", columns, lambda row: row["source_id"] in kept)
        if row["status"] == "ok"
    }
    uris = sorted({uri for found in sources.values() for uri in found})
    there = {uri for uri, is_there in zip(uris, map_places(_is_there, uris), strict=True) if is_there}
    lost = {source_id: found for source_id, found in sources.items() if there.isdisjoint(found)}
    if lost:
        num_clips, some = sum(kept[source_id] for source_id in lost), next(iter(lost.values()))[0]
        raise SourcesLost(
            f"other options of {stage} than before have all clips made anew, and the sources of {num_clips} kept clips"
            f" cannot be found ({some}{', ...' if len(lost) > 1 else ''}): put them back, name them where they are now,"
            f" or keep the options (--recipe {shlex.quote(str(dataset.recipe_file))}); --allow-lost-clips gives these"
            " clips up"
        )


def _is_there(uri: str) -> bool:
    try:
        filesystem, path = filesystem_of(uri)
        filesystem.info(path)
    except StoreUnreachable:
        raise
    except (OSError, ValueError):
        return False
    return True


def check_networks(recipe: Recipe) -> None:
    """Load every network that the recipe names, in a process that may die, before hours are spent on reading files;
    the decoder is tried, too.

    Raises:
        FatalError: one cannot be used; the message says which and what to do.
    """
    sandbox = Sandbox(functools.partial(_load_networks, recipe), deadline_s=3600)
    try:
        sandbox(None)
    except SandboxError as error:
        raise FatalError(f"the face networks cannot be loaded: {error}") from error
    finally:
        sandbox.close()


def _load_networks(recipe: Recipe) -> Callable[[None], None]:
    from curation.crop import CropStage

    CropStage(recipe, Path())
    return lambda _: None


def require_results(ledger: Ledger, missing: set[str], workers: set[str]) -> None:
    """FatalError where units are `missing` after `workers` have told that all are done."""
    if not missing:
        return
    units = read_table(ledger.dataset, "units", ["stage", "worker"])
    seen = units.filter(pc.equal(units["stage"], ledger.folder.name))["worker"].to_pylist()
    hosts = sorted({worker.rsplit("/", 1)[0] for worker in workers.difference(seen)})
    by = f" by workers on {', '.join(hosts[:5])}{', ...' if len(hosts) > 5 else ''}" if hosts else ""
    raise FatalError(
        f"{ledger.stage}: {len(missing)} units were told as done{by}, but are not in {ledger.dataset.root}: a node that"
        " does not see this folder keeps what it writes to itself; mount it there, or leave the node out, and run again"
    )
