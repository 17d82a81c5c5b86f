"""Which content is where. A source is content, its places are where that content was last found.

Every place is remembered as it was when it was indexed (size, and time or tag of the last change), with what its source
list said there. What is said of a source follows from its places alone: a corrected list, a file that was replaced, put
back, moved or copied needs no special case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from curation.fetching import local_copy, version_of
from curation.units import UnitResult
from manifests.errors import NoBucket, StoreUnreachable
from manifests.rights import is_refusal, says_nothing
from manifests.schema import make_table
from manifests.scratch import tells_of_no_room
from manifests.storage import filesystem_of, map_places
from manifests.store import Dataset, iterate_rows, read_table, replace_table

STATED = ("licence", "attribution", "consent")


class SourceGone(OSError):
    """None of a source's places holds its content any more, or can be read."""


def hash_file(path: str) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def places_of(source: dict[str, Any]) -> list[dict[str, Any]]:
    """The places of a row of `sources`; of one from before they were written, its URIs with what is said of all."""
    if source["places"] is not None:
        said = [None if place["columns"] is None else dict(place["columns"]) for place in source["places"]]
        return [place | {"columns": columns} for place, columns in zip(source["places"], said, strict=True)]
    if source.get("reason") == "replaced":
        return []
    columns = dict(source.get("provenance") or {}) | {k: source[k] for k in STATED if source.get(k) is not None}
    unknown = {"size_bytes": None, "changed": None, "unit": None}
    return [{"uri": uri, **unknown, "columns": dict(columns) or None} for uri in source["uris"]]


def of_unit(source: dict[str, Any]) -> list[dict[str, Any]]:
    """The places of a row of `sources` as `find_source` wants them, without what was said there."""
    return [{k: place[k] for k in ("uri", "size_bytes", "changed")} for place in places_of(source)]


def find_source(source: dict[str, Any]) -> str:
    """The first place that still holds the source's content.

    source: its `places` (see `of_unit`) and `content_sha256`. A file that has been touched since is read and compared.

    Raises:
        SourceGone: there is none; the message says what is in each.
        StoreUnreachable: an object store that may hold it answers nothing.
        OSError: this machine has no room for a copy of one that may hold it.
    """
    problems = []
    no_room: OSError | None = None
    for place in source["places"]:
        try:
            problem = _problem_of(place, source["content_sha256"])
        except StoreUnreachable:
            raise
        except (FileNotFoundError, NoBucket):
            problem = "is not there any more"
        except OSError as error:
            no_room = error if tells_of_no_room(error) else no_room
            problem = f"cannot be read ({error})"
        if problem is None:
            return place["uri"]
        problems.append(f"{place['uri']} {problem}")
    if no_room is not None:
        raise no_room
    raise SourceGone("; ".join(problems) or "it has no place any more")


@contextmanager
def opened_source(source: dict[str, Any], result: UnitResult | None = None) -> Iterator[str]:
    """A local path of the source's content: `local_copy` of the place that `find_source` names.

    What is copied is looked at once more when it is here: its place may have got another file in between.

    Raises:
        SourceGone: there is none, or it was replaced while it was copied.
    """
    uri = find_source(source)
    with local_copy(uri, result) as path:
        place = next(place for place in source["places"] if place["uri"] == uri)
        if path != uri and not _is_as_indexed(place) and hash_file(path) != source["content_sha256"]:
            raise SourceGone(f"{uri} holds another file now")
        yield path


def _is_as_indexed(place: dict[str, Any]) -> bool:
    """Whether what is there says of itself that it has not changed; a web server may say nothing."""
    filesystem, path = filesystem_of(place["uri"])
    try:
        info = filesystem.info(path)
    except StoreUnreachable:
        raise
    except (OSError, NoBucket):
        return False
    return bool(place["changed"]) and (info.get("size"), version_of(info)) == (place["size_bytes"], place["changed"])


def _problem_of(place: dict[str, Any], content_sha256: str) -> str | None:
    filesystem, path = filesystem_of(place["uri"])
    info = filesystem.info(path)
    if (info.get("size"), version_of(info)) == (place["size_bytes"], place["changed"]):
        return None
    with local_copy(place["uri"]) as copy:
        return None if hash_file(copy) == content_sha256 else "holds another file now"


def restate(dataset: Dataset) -> None:
    """Have `sources` say what follows from its places, where a program with other rules has written it."""
    rows = iterate_rows(dataset, "sources", ["source_id", "reason", "uris", "provenance", "places", *STATED])
    said = ((row, _said_by(places)) for row in rows if (places := places_of(row)))
    if any(row[name] != now[name] for row, now in said for name in STATED):
        merged = merge_sources(read_table(dataset, "sources").to_pylist())
        replace_table(dataset, "sources", make_table("sources", merged))


def superseded_units(sources: Iterable[dict[str, Any]], listed: dict[str, str], failed: Collection[str]) -> set[str]:
    """Units of index that must not count as finished, because their place was indexed as something else last.

    listed: of each URI that a run is given, its unit. failed: units that ended as failures: of those the places of the
    sources know nothing.
    """
    found = set()
    for source in sources:
        for place in source["places"] or []:
            now = listed.get(place["uri"], place["unit"])
            if place["unit"] is not None and now != place["unit"]:
                found |= {place["unit"], now} - set(failed)
    return found


def merge_sources(
    rows: list[dict[str, Any]],
    refused: Collection[str] = (),
    listed: Collection[str] = (),
    are_there: Callable[[list[str]], list[bool]] | None = None,
) -> list[dict[str, Any]]:
    """One row a content, with its places and what they say of it. Of a place and of a content the last row is right.

    rows: oldest first. refused: SHA-256 of contents that were forgotten; they leave no row.
    listed: the places that this run was given. Others of a content that is among them stay while they `are_there`.
    """
    contents = {row["source_id"]: row for row in rows}
    former: dict[str, set[str]] = {}
    holders: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in rows:
        former.setdefault(row["source_id"], set()).update(row["uris"])
        for place in places_of(row):
            source_id, before = holders.get(place["uri"], (None, place))
            if place["columns"] is None and source_id == row["source_id"]:
                place["columns"] = before["columns"]  # only a list takes back what a list has said
            holders[place["uri"]] = (row["source_id"], place)
    found: dict[str, dict[str, dict[str, Any]]] = {source_id: {} for source_id in contents}
    for uri, (source_id, place) in holders.items():
        found[source_id][uri] = place
    moved: dict[str, list[dict[str, Any]]] = {}
    for uri in _moved(found, set(listed), are_there or _are_there):
        source_id = holders[uri][0]
        moved.setdefault(source_id, []).append(found[source_id].pop(uri))
    for source_id, gone in moved.items():
        _hand_on(gone, found[source_id].values())
    merged = []
    for source_id, row in contents.items():
        if row.get("content_sha256") not in refused:
            places = [found[source_id][uri] for uri in sorted(found[source_id])]
            merged.append(row | (_said_by(places) if places else _replaced(sorted(former[source_id]))))
    return merged


def _said_by(places: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known of a source from its places: of rights all that is said, of each other column what the first place
    says that says anything."""
    columns: dict[str, str] = {}
    for place in places:
        columns = (place["columns"] or {}) | columns
    stated = {name: _all_said(name, [(place["columns"] or {}).get(name) for place in places]) for name in STATED}
    provenance = {name: value for name, value in columns.items() if name not in STATED}
    return {"uris": [place["uri"] for place in places], "places": places, "provenance": provenance, **stated}


def _all_said(name: str, texts: list[str | None]) -> str | None:
    """What the places of a content say of its licence, attribution or consent.

    Which of them is right nobody can tell from their names: where they differ, all is told, and no list of allowed
    licences has "CC0; proprietary". A refusal of consent holds against what others state.
    """
    said = {text.lower(): text for text in sorted((t for t in texts if t and not says_nothing(t)), reverse=True)}
    if name == "consent" and (refusals := sorted(filter(is_refusal, said.values()))):
        return refusals[0]
    return "; ".join(sorted(text for text in said.values() if name != "licence" or not is_refusal(text))) or None


def _hand_on(gone: list[dict[str, Any]], places: Iterable[dict[str, Any]]) -> None:
    """What lists have said of a content where it was they have said of it where it is now, unless they say more."""
    if all(place["columns"] is None for place in gone):
        return
    said = _said_by(gone)
    columns = said["provenance"] | {name: said[name] for name in STATED if said[name] is not None}
    for place in places:
        if place["columns"] is None:
            place["columns"] = columns


def _replaced(uris: list[str]) -> dict[str, Any]:
    detail = "its place holds another file now"
    return {"uris": uris, "places": [], "status": "rejected", "reason": "replaced", "detail": detail}


def _moved(
    found: dict[str, dict[str, Any]], listed: set[str], are_there: Callable[[list[str]], list[bool]]
) -> list[str]:
    """Places of contents that are listed elsewhere, which this run was not given and which are gone."""
    asked = [uri for of_one in found.values() if listed & of_one.keys() for uri in of_one.keys() - listed]
    return [uri for uri, is_there in zip(asked, are_there(asked), strict=True) if not is_there]


def _are_there(uris: list[str]) -> list[bool]:
    """Whether there is anything at each place, or no way to know."""

    def is_there(uri: str) -> bool:
        try:
            filesystem, path = filesystem_of(uri)
            filesystem.info(path)
        except (FileNotFoundError, NoBucket):
            return False
        except (OSError, ValueError):
            return True
        return True

    return map_places(is_there, uris, where=lambda uri: uri)
