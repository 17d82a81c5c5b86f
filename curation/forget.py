"""forget: find everything of a source, a person or a photograph, show it, and take it out of the data set."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from curation import tombstones
from curation.finding import Found, Request, analyser_name, find, min_similarity
from curation.lock import only_run, only_run_where_allowed
from curation.recipe import Recipe, recipe_of
from curation.removal import (
    Removal,
    has_unfinished_work,
    inherited_groups,
    plan_shards_without,
    remove,
    settle,
    without_names,
)
from curation.runs import record_command
from curation.summary import print_removal
from manifests.store import Dataset, read_table

_UNFINISHED = "what an interrupted run left in staging/ is not shown here; without --dry-run it is looked through, too"


def forget(dataset: Dataset, request: Request, *, is_dry_run: bool = False, ask: Any = None) -> bool:
    """Find what `request` names, show it, and remove it when `ask()` says so; whether anything was there.

    Raises:
        ValueError: the request names nothing that can be looked for, or only in part what is there, or another command
            is at work.
    """
    recipe = recipe_of(dataset.root)
    with (only_run_where_allowed if is_dry_run else only_run)(dataset) as was_finished:
        if not is_dry_run:
            settle(dataset, recipe)
        found = find(dataset, recipe, request)
        if is_dry_run and has_unfinished_work(dataset):
            found.notes.append(_UNFINISHED)
        if not found.sources and not found.clips and not found.faces:
            for note in found.notes:
                print(note)
            print("nothing more to forget" if was_finished else "nothing in the data set matches")
            return bool(was_finished)
        removal = plan_removal(dataset, recipe, request, found)
        print_removal(dataset, removal, found)
        if is_dry_run:
            print("dry run: nothing else was changed" if was_finished else "dry run: nothing was changed")
        elif ask is not None and not ask():
            print("nothing was removed")
        else:
            stones = read_table(dataset, "tombstones").to_pylist() + removal.tombstones
            with record_command(dataset, without_names(recipe, tombstones.forgets(stones)), "forget"):
                remove(dataset, removal)
            check = f"python -m curation verify {shlex.quote(str(dataset.root))}"
            print(f"removed; `{check}` checks what is left. Weights, and which clips")
            print("are copies, are as before: the next `run` or `select` finds them anew. Pages, cards and")
            print("copies that were written to other places still show what is gone: make them again")
    return True


def plan_removal(dataset: Dataset, recipe: Recipe, request: Request, found: Found) -> Removal:
    """The steps that take out what was found."""
    contents = dict(
        zip(*read_table(dataset, "sources", ["source_id", "content_sha256"]).to_pydict().values(), strict=True)
    )
    stones = [tombstones.source_tombstone(row) for row in found.sources]
    stones += [tombstones.clip_tombstone(clip, contents.get(clip["source_id"])) for clip in found.clips]
    stones += [tombstones.track_tombstone(track, contents.get(track["source_id"])) for track in found.tracks]
    if found.faces:
        similarity, analyser = min_similarity(recipe, request), analyser_name(dataset, recipe)
        stones += [tombstones.face_tombstone(face, analyser, similarity) for face in found.faces]
    stones = list({row["tombstone_id"]: row for row in stones}.values())  # tracks may have the same time
    name = sha256("\n".join(sorted(row["tombstone_id"] for row in stones)).encode()).hexdigest()[:16]
    marks = {
        "request": name,
        "asked_by": request.kind,
        "forgotten_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    clip_ids = sorted(clip["clip_id"] for clip in found.clips)
    return Removal(
        request=name,
        sources=[{"source_id": row["source_id"], "uris": row["uris"]} for row in found.sources],
        clips=clip_ids,
        tombstones=[row | marks for row in stones],
        split_groups=inherited_groups(dataset, set(clip_ids)),
        **plan_shards_without(dataset, recipe, set(clip_ids)),
    )


def ask_on_terminal() -> bool:
    """Ask before anything is removed.

    Raises:
        ValueError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise ValueError("nobody can be asked here: add --yes to remove this, or --dry-run only to see it")
    return input("remove all this? [y/N] ").strip().lower() in ("y", "yes")
