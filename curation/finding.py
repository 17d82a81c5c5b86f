"""What a request to forget touches: looked for in the manifests, by name, condition, identity or photograph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from PIL import Image

from curation.recipe import Recipe
from manifests.query import find_sources
from manifests.schema import CLIPS
from manifests.store import Dataset, read_table
from manifests.views import connect
from model.faces import has_direction, load_analyser, same_person_similarity
from model.stills import read_still

_OF_SOURCES = ("source_id", "content_sha256", "uris", "reason", "licence", "attribution", "consent", "provenance")
_UNSTATED = 'where no source list states a licence or consent: --where "NOT is_stated(licence)"'
_PLACE = ("start_s", "end_s", "crop_center_x_px", "crop_center_y_px", "crop_size_px")
_OF_CLIPS = (
    *("clip_id", "source_id", *_PLACE, "duration_s", "num_frames", "staged_bytes", "decision", "split", "shard"),
    *("identity_id", "licence", "attribution", "consent"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to forget; exactly one of the first four."""

    sources: tuple[str, ...] = ()
    """URIs, file names or source_ids."""
    identities: tuple[str, ...] = ()
    face: Path | None = None
    """A photograph with one face."""
    where: str = ""
    """SQL condition."""
    min_similarity: float | None = None
    """For `face` and `keep_face`: least cosine of two embeddings of one person; None: as the recipe's identities."""
    keep_face: bool = False
    """Keep the embedding, so that new material of the same person is refused."""

    def __post_init__(self) -> None:
        given = [name for name in ("sources", "identities", "face", "where") if getattr(self, name)]
        if len(given) != 1:
            named = "--source, --identity, --face and --where"
            raise ValueError(f"say what to forget by exactly one of {named}, got {len(given)} of them")
        if self.keep_face and not (self.identities or self.face):
            raise ValueError("--keep-face-to-refuse needs one person: use it with --identity or --face")
        if self.min_similarity is not None and not (self.keep_face or self.face):
            raise ValueError("--min-similarity compares faces: use it with --face or --keep-face-to-refuse")
        if self.min_similarity is not None and not 0 < self.min_similarity <= 1:
            raise ValueError(f"--min-similarity is {self.min_similarity}: expected more than 0, at most 1")

    @property
    def kind(self) -> str:
        return "source" if self.sources else "identity" if self.identities else "face" if self.face else "where"


@dataclass(kw_only=True, slots=True)
class Found:
    """What a request touches."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `sources` that go as a whole."""
    clips: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `clips`, and candidates that are not cropped yet, with their source_id."""
    tracks: list[dict[str, Any]] = field(default_factory=list)
    """Of `tracks` the source_id, start_s and end_s of those that may show the person and became no clip that stays."""
    similarities: dict[str, float] = field(default_factory=dict)
    """Of clips to the photograph, or to the face of an identity that is kept."""
    faces: list[np.ndarray] = field(default_factory=list)
    """float32 [D] each: to be refused from now on."""
    notes: list[str] = field(default_factory=list)


def find(dataset: Dataset, recipe: Recipe, request: Request) -> Found:
    """Look for what `request` names in the manifests."""
    db = connect(dataset.root)
    # of tracks and not cropped yet, so that no other table has them; a run may have ended there
    db.execute(
        "CREATE TEMP VIEW uncropped AS"
        " SELECT source_id, c.* FROM (SELECT source_id, unnest(candidates) AS c FROM tracks)"
        " WHERE c.clip_id NOT IN (SELECT clip_id FROM clips)"
    )
    if request.sources:
        found = _find_named_sources(db, request.sources)
    elif request.where:
        found = _find_where(db, request.where)
        if not found.sources and not found.clips:
            found.notes.append(_UNSTATED)
    elif request.identities:
        found = _find_identities(db, recipe, request)
    else:
        found = _find_face(db, recipe, request)
    if request.kind in ("identity", "face"):
        _add_what_became_no_clip(db, found)
    found.notes += _what_stays(db, found)
    return found


def _add_what_became_no_clip(db: duckdb.DuckDBPyConnection, found: Found) -> None:
    """Add what else may show the person in the sources of their clips, of which other options could make clips.

    Tracks that became no clip have no embedding to compare. So where nobody else was found in a source it goes as a
    whole; in the others all tracks go of which, and beside which, no clip stays.
    """
    db.register("gone", pa.table({"clip_id": pa.array([clip["clip_id"] for clip in found.clips], pa.string())}))
    touched = sorted({clip["source_id"] for clip in found.clips})
    db.register("touched", pa.table({"source_id": pa.array(touched, pa.string())}))
    db.execute(
        "CREATE OR REPLACE TEMP TABLE staying AS SELECT source_id, start_s, end_s"
        " FROM (SELECT clip_id, source_id, start_s, end_s FROM clips"
        " UNION ALL SELECT clip_id, source_id, start_s, end_s FROM uncropped)"
        " SEMI JOIN touched USING (source_id) ANTI JOIN gone USING (clip_id)"
    )
    shared = [name for (name,) in db.execute("SELECT DISTINCT source_id FROM staying ORDER BY 1").fetchall()]
    whole = sorted(set(touched) - set(shared))
    found.sources = _rows(db, "sources", "source_id", whole)
    found.tracks = db.sql(
        "SELECT source_id, start_s, end_s FROM tracks WHERE source_id IN (SELECT source_id FROM staying) AND NOT EXISTS"
        " (FROM staying AS s WHERE s.source_id = tracks.source_id AND"
        " (s.start_s = tracks.start_s OR s.start_s < tracks.end_s AND tracks.start_s < s.end_s)) ORDER BY track_id"
    ).to_arrow_table().to_pylist()  # fmt: skip
    if whole:
        found.notes.append(f"nobody else was found in {len(whole)} sources: they go, and are refused, as a whole")
    if shared:
        found.notes.append(
            f"{len(shared)} sources show others too and stay; another recipe may find the person again there where no"
            f" track was found until now, or only beside clips that stay; to rule that out: --source {' '.join(shared)}"
        )


def _what_stays(db: duckdb.DuckDBPyConnection, found: Found) -> list[str]:
    """Notes on copies of the footage that goes, as select found them, and on sources of which only a row stays."""
    db.register("gone", pa.table({"clip_id": pa.array([clip["clip_id"] for clip in found.clips], pa.string())}))
    db.register("whole", pa.table({"source_id": pa.array([row["source_id"] for row in found.sources], pa.string())}))
    copies = db.execute(
        "SELECT DISTINCT source_id FROM clips ANTI JOIN gone USING (clip_id) WHERE clip_id IN (SELECT duplicate_of FROM"
        " clips SEMI JOIN gone USING (clip_id)) OR duplicate_of IN (SELECT clip_id FROM gone) ORDER BY 1"
    ).fetchall()
    empty = db.execute(
        "SELECT DISTINCT source_id FROM clips SEMI JOIN gone USING (clip_id) ANTI JOIN whole USING (source_id)"
        " WHERE source_id NOT IN (SELECT source_id FROM clips ANTI JOIN gone USING (clip_id)) ORDER BY 1"
    ).fetchall()
    notes = []
    for ids, text in (
        (copies, "the same footage is in {} other sources and stays"),
        (empty, "{} sources have no other clip; the rows that tell their places and formats stay"),
    ):
        if ids:
            names = " ".join(source_id for (source_id,) in ids)
            notes.append(f"{text.format(len(ids))}; to remove that too: --source {names}")
    return notes


def _rows(db: duckdb.DuckDBPyConnection, view: str, column: str, values: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of `clips`, `uncropped` or `sources` of which `column` is one of `values`."""
    names = {"clips": _OF_CLIPS, "sources": _OF_SOURCES, "uncropped": ("clip_id", "source_id", *_PLACE)}[view]
    db.register("wanted", pa.table({column: pa.array(sorted(set(values)), pa.string())}))
    found = db.sql(f"SELECT {', '.join(names)} FROM {view} SEMI JOIN wanted USING ({column}) ORDER BY {names[0]}")
    return found.to_arrow_table().to_pylist()


def _whole_sources(db: duckdb.DuckDBPyConnection, source_ids: list[str]) -> Found:
    return Found(
        sources=_rows(db, "sources", "source_id", source_ids),
        clips=_rows(db, "clips", "source_id", source_ids) + _rows(db, "uncropped", "source_id", source_ids),
    )


def _find_named_sources(db: duckdb.DuckDBPyConnection, names: tuple[str, ...]) -> Found:
    matches = {name: find_sources(db, name) for name in names}
    stones = db.execute("SELECT source_id, content_sha256 FROM tombstones WHERE kind = 'source'").fetchall()
    known = {name for name, source_ids in matches.items() if source_ids} | {name for stone in stones for name in stone}
    _require_known("source", names, known)
    found = _whole_sources(db, [source_id for source_ids in matches.values() for source_id in source_ids])
    if gone := [name for name, source_ids in matches.items() if not source_ids and name in known]:
        found.notes.append(f"forgotten before: {', '.join(gone)}")
    return found


def _require_known(what: str, names: tuple[str, ...], known: set[str]) -> None:
    """ValueError where some of the names are unknown: they may be misspelt, which would pass unnoticed among others.

    Where all are, the command says so anyway; it may be the second one, after a removal that was killed.
    """
    unknown = [name for name in names if name not in known]
    if unknown and known & set(names):
        raise ValueError(
            f"no {what} is called {', '.join(unknown)}: correct the name or leave it out; the others were not removed"
        )


def _find_identities(db: duckdb.DuckDBPyConnection, recipe: Recipe, request: Request) -> Found:
    found = Found(clips=_rows(db, "clips", "identity_id", request.identities))
    _require_known("identity", request.identities, {clip["identity_id"] for clip in found.clips})
    faces = [face for name in request.identities if (face := _mean_face(db, name)) is not None]
    if request.keep_face and faces:
        found.faces = faces
        _add_refused(db, found, min_similarity(recipe, request))
    elif faces:
        _add_unnamed(db, found, faces, min_similarity(recipe, request))
    return found


def _add_unnamed(db: duckdb.DuckDBPyConnection, found: Found, faces: list[np.ndarray], least: float) -> None:
    """Add candidates and clips of the same sources that look like one of the faces and have no identity yet."""
    db.register("touched", pa.table({"source_id": pa.array([c["source_id"] for c in found.clips], pa.string())}))
    unnamed = db.execute(
        "SELECT clip_id FROM (SELECT clip_id, source_id, embedding FROM uncropped UNION ALL"
        " SELECT clip_id, source_id, embedding FROM clips WHERE identity_id IS NULL)"
        " SEMI JOIN touched USING (source_id)"
        " WHERE list_bool_or([list_inner_product(embedding, f) >= $least for f in $faces::FLOAT[][]])",
        {"faces": [face.tolist() for face in faces], "least": least},
    ).fetchall()
    names = [clip_id for (clip_id,) in unnamed]
    found.clips += _rows(db, "clips", "clip_id", names) + _rows(db, "uncropped", "clip_id", names)


def _mean_face(db: duckdb.DuckDBPyConnection, identity: str) -> np.ndarray | None:
    """float32 [D], unit length: of all clips of an identity; None where no embedding is known."""
    query = "SELECT embedding FROM clips WHERE identity_id = ? AND embedding IS NOT NULL"
    embeddings = [row for (row,) in db.execute(query, [identity]).fetchall()]
    if not embeddings:
        return None
    mean = np.mean(np.array(embeddings, np.float32), axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-9)


def _add_refused(db: duckdb.DuckDBPyConnection, found: Found, least: float) -> None:
    """Add to the clips of identities all others that a kept face refuses: the mean of an identity's clips, made a unit
    long, may be nearer to those than the clips are."""
    of_faces = [_similarities(db, face) for face in found.faces]
    similarities = {clip_id: max(one[clip_id] for one in of_faces) for clip_id in of_faces[0]}
    known = {clip["clip_id"] for clip in found.clips}
    more = [clip_id for clip_id, value in similarities.items() if value >= least and clip_id not in known]
    found.clips += _rows(db, "clips", "clip_id", more) + _rows(db, "uncropped", "clip_id", more)
    found.similarities = {clip["clip_id"]: similarities[clip["clip_id"]] for clip in found.clips}
    if more:
        found.notes.append(
            f"{len(more)} clips besides those of the identities go too: a kept face refuses from {least:.2f} on"
        )


def _similarities(db: duckdb.DuckDBPyConnection, face: np.ndarray) -> dict[str, float]:
    """Of all clips and candidates to a face (float32 [D]), the largest first."""
    return dict(
        db.execute(
            "SELECT clip_id, list_inner_product(embedding, $face::FLOAT[]) AS similarity FROM"
            " (SELECT clip_id, embedding FROM clips UNION ALL SELECT clip_id, embedding FROM uncropped)"
            " WHERE embedding IS NOT NULL ORDER BY similarity DESC, clip_id",
            {"face": face.tolist()},
        ).fetchall()
    )


def _find_where(db: duckdb.DuckDBPyConnection, condition: str) -> Found:
    """A condition over provenance alone means whole sources; any other means clips."""
    try:
        ids = db.execute(
            f"SELECT source_id FROM (SELECT {', '.join(_OF_SOURCES)} FROM sources) AS sources WHERE ({condition}\n)"
        ).fetchall()
        return _whole_sources(db, [source_id for (source_id,) in ids])
    except duckdb.BinderException:
        pass
    except duckdb.Error as error:
        raise ValueError(f"--where {condition!r} is no SQL condition: {error}") from error
    try:
        ids = db.execute(f"SELECT clip_id FROM clips WHERE ({condition}\n)").fetchall()
    except duckdb.Error as error:
        raise ValueError(
            f"--where {condition!r} is no condition over sources ({', '.join(_OF_SOURCES)}) or clips"
            f" ({', '.join(CLIPS.names)}): {error}"
        ) from error
    return Found(clips=_rows(db, "clips", "clip_id", [clip_id for (clip_id,) in ids]))


def _find_face(db: duckdb.DuckDBPyConnection, recipe: Recipe, request: Request) -> Found:
    assert request.face is not None
    face = embed_photo(request.face, recipe)
    least = min_similarity(recipe, request)
    similarities = _similarities(db, face)
    mine = {clip_id: value for clip_id, value in similarities.items() if value >= least}
    clips = _rows(db, "clips", "clip_id", mine) + _rows(db, "uncropped", "clip_id", mine)
    found = Found(
        clips=sorted(clips, key=lambda clip: (-mine[clip["clip_id"]], clip["clip_id"])),
        similarities=mine,
        faces=[face] if request.keep_face else [],
    )
    nearest = max((value for value in similarities.values() if value < least), default=None)
    if nearest is not None:
        found.notes.append(f"the most similar clip that stays: {nearest:.2f} (clips go from {least:.2f} on)")
    people = sorted({clip["identity_id"] for clip in clips if clip.get("identity_id")})
    for person in people:
        others = sum(clip["clip_id"] not in mine for clip in _rows(db, "clips", "identity_id", [person]))
        if others:
            found.notes.append(
                f"{others} more clips of {person} are less similar to the photograph and stay;"
                f" --identity {person} removes them too"
            )
    return found


def embed_photo(path: Path, recipe: Recipe) -> np.ndarray:
    """float32 [D]: the embedding of the one face in a photograph, by the data set's own analyser.

    Raises:
        ValueError: it cannot be read, or shows no face or several, or one that cannot be compared.
    """
    try:
        picture = read_still(str(path))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a photograph: {error}") from error
    analyser = load_analyser(recipe.faces)
    faces = analyser.detect([picture])[0]
    if len(faces) != 1:
        raise ValueError(f"{path} shows {len(faces)} faces, expected one: cut it to the face of the person")
    embedding = analyser.embed(picture, analyser.landmarks(picture, faces).points5)[0]
    if not has_direction(embedding):
        raise ValueError(f"{path}: the network finds no identity in its face; try another photograph")
    return embedding


def min_similarity(recipe: Recipe, request: Request) -> float:
    for value in (request.min_similarity, recipe.select.identity_similarity):
        if value is not None:
            return value
    return same_person_similarity(recipe.faces)


def analyser_name(dataset: Dataset, recipe: Recipe) -> str:
    names = read_table(dataset, "tracks", ["analyser"])["analyser"].drop_null()
    return names[0].as_py() if len(names) else load_analyser(recipe.faces).info.name
