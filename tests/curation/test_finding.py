"""What is found of a person besides their clips, in sources of theirs alone and in those that show others, too; and
photographs of whom to forget. The rest of `forget` is in test_forget.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from curation import pipeline
from curation.card import make_card
from curation.finding import embed_photo
from curation.forget import Request, forget
from curation.recipe import Recipe, SelectOptions, recipe_toml
from curation.tombstones import LateRows, Refusals, refusals_of
from curation.verify import verify
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table

SHE, HE = [1.0, 0.0], [0.0, 1.0]
SQUARE = {"crop_center_x_px": 50.0, "crop_center_y_px": 50.0, "crop_size_px": 80.0}


def track(source_id: str, number: int, start_s: float, end_s: float, embedding: list[float] | None = None) -> dict:
    """A row of `tracks`, with one candidate where there is an embedding."""
    place = {"source_id": source_id, "start_s": start_s, "end_s": end_s}
    clip = {"clip_id": f"{source_id}_{number:07d}_0", "start_s": start_s, "end_s": end_s, "embedding": embedding}
    return place | {
        "track_id": f"{source_id}_t{number:07d}_0",
        "unit": f"{source_id}-0000",
        "reasons": [] if embedding else ["too_short"],
        "candidates": [clip | SQUARE] if embedding else [],
        "analyser": "a",
    }


TRACKS = [
    track("s0", 0, 0.0, 3.0, SHE),
    track("s0", 110, 3.67, 4.67),
    track("s0", 150, 5.0, 8.0, HE),
    track("s0", 180, 6.0, 7.0),  # beside him
    track("s0", 270, 9.0, 11.0, SHE),  # not cropped yet
    track("s1", 0, 0.0, 3.0, SHE),
    track("s1", 110, 3.67, 4.67),
    track("s2", 0, 0.0, 3.0, HE),
    track("s2", 110, 3.67, 4.67),
]


@pytest.fixture
def shared(tmp_path) -> Dataset:
    """Of s0, which shows two people, s1, which shows her, and s2, which shows him."""
    dataset = Dataset(tmp_path / "dataset")
    candidates = [(row, row["candidates"][0]) for row in TRACKS if row["candidates"]]
    columns = ("source_id", "unit", "track_id", "analyser")
    clips = [c | {n: row[n] for n in columns} for row, c in candidates if c["clip_id"] != "s0_0000270_0"]
    names = {tuple(SHE): "she", tuple(HE): "he"}
    clips = [clip | {"identity_id": names[tuple(clip["embedding"])]} for clip in clips]
    sources = [
        {"source_id": f"s{k}", "content_sha256": f"{k}" * 64, "uris": [f"{k}.mp4"], "status": "ok"} for k in range(3)
    ]
    tables = {"tracks": TRACKS, "clips": clips, "sources": sources, "shards": [], "units": []}
    for name, rows in tables.items():
        replace_table(dataset, name, make_table(name, rows))
    dataset.recipe_file.write_text(recipe_toml(Recipe(select=SelectOptions(identity_similarity=0.5))))
    return dataset


def differences(dataset: Dataset) -> list[str]:
    """What verify says of what was forgotten."""
    return [f"{d.what}: {d.problem}" for d in verify(dataset) if "forgotten" in d.problem]


@pytest.mark.parametrize("way", ["identity", "face"])
def test_what_became_no_clip_goes_with_the_person(shared, way, monkeypatch, capsys):
    monkeypatch.setattr("curation.finding.embed_photo", lambda path, recipe: np.array(SHE, np.float32))
    request = Request(identities=("she",)) if way == "identity" else Request(face=shared.root)
    assert forget(shared, request)
    shown = " ".join(capsys.readouterr().out.split())
    assert "nobody else was found in 1 sources: they go, and are refused, as a whole" in shown
    assert "tracks 3 of which no clip stays" in shown
    assert "1 sources show others too and stay" in shown
    assert shown.count("--source s0") == 1
    stones = read_table(shared, "tombstones").to_pylist()
    assert [row["source_id"] for row in stones if row["kind"] == "source"] == ["s1"]
    assert sorted(row["clip_id"] for row in stones if row["kind"] == "clip") == [
        *("s0_0000000_0", "s0_0000270_0", "s1_0000000_0")
    ]
    times = sorted((row["source_id"], row["start_s"], row["end_s"]) for row in stones if row["kind"] == "track")
    assert times == [("s0", 0.0, 3.0), ("s0", 3.67, 4.67), ("s0", 9.0, 11.0)]
    assert all(row["embedding"] is None for row in stones), "nothing biometric is kept"
    left = read_table(shared, "tracks")["track_id"].to_pylist()
    assert left == ["s0_t0000150_0", "s0_t0000180_0", "s2_t0000000_0", "s2_t0000110_0"]
    assert read_table(shared, "sources")["source_id"].to_pylist() == ["s0", "s2"]
    assert differences(shared) == []
    assert "1 sources, 3 clips, 3 tracks" in make_card(shared)


def test_of_a_condition_the_clips_alone_go(shared, capsys):
    assert forget(shared, Request(where="identity_id = 'she'"))
    stones = read_table(shared, "tombstones").to_pylist()
    assert sorted(row["clip_id"] for row in stones) == ["s0_0000000_0", "s1_0000000_0"]
    assert "1 sources have no other clip" in " ".join(capsys.readouterr().out.split())


def test_what_another_recipe_cuts_there_is_refused(shared):
    """Anywhere in the picture, where a face was before and nobody's clip stays; also of a scan that commits late."""
    assert forget(shared, Request(identities=("she",)))
    stones = read_table(shared, "tombstones").to_pylist()
    refusals = Refusals(refusals_of(stones)["s0"])
    candidate = {"clip_id": "c", "embedding": SHE} | SQUARE | {"crop_center_x_px": 500.0}
    for start_s, end_s, is_refused in ((3.7, 4.6, True), (2.5, 3.2, True), (3.0, 3.6, False), (5.0, 8.0, False)):
        assert refusals.refuses(candidate | {"start_s": start_s, "end_s": end_s}, "a") == is_refused
    late = [track("s0", 112, 3.7, 4.6, SHE), *(row for row in TRACKS if row["source_id"] == "s0")]
    rows = {"tracks": late}
    assert LateRows(stones).take_out(rows, "s0") >= {"s0_0000112_0"}
    assert [row["track_id"] for row in rows["tracks"]] == ["s0_t0000150_0", "s0_t0000180_0"]


def test_verify_finds_faces_in_times_that_are_refused(shared):
    assert forget(shared, Request(identities=("she",)))
    kept = {name: read_table(shared, name).to_pylist() for name in ("tracks", "clips")}
    back = {"clip_id": "s0_0000112_0", "source_id": "s0", "start_s": 3.7, "end_s": 4.6}
    replace_table(shared, "tracks", make_table("tracks", [*kept["tracks"], TRACKS[1]]))
    replace_table(shared, "clips", make_table("clips", [*kept["clips"], back]))
    assert differences(shared) == [
        "table tracks: of a forgotten source, or with a forgotten clip: s0_t0000110_0",
        "table clips: forgotten, but there: s0_0000112_0",
    ]


def test_a_source_of_one_person_stays_out_under_another_recipe(sources, tmp_path):
    dataset = Dataset(tmp_path / "dataset")
    recipe = Recipe(select=SelectOptions(min_sharpness=None, max_upscale=None, identity_similarity=0.99))
    pipeline.run(sources, dataset.root, recipe)
    clip = read_table(dataset, "clips").to_pylist()[0]
    assert forget(dataset, Request(identities=(clip["identity_id"],)))
    other = replace(recipe, scan=replace(recipe.scan, min_clip_s=0.5))
    for given in (recipe, other):
        pipeline.run(sources, dataset.root, given)
        for name in ("sources", "tracks", "clips", "units"):
            assert clip["source_id"] not in read_table(dataset, name)["source_id"].to_pylist()
        assert list(verify(dataset)) == []


@pytest.mark.parametrize("kind", ["huge", "no header", "broken chunk", "no picture"])
def test_photographs_that_cannot_be_read_are_told_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.png"
    Image.new("1", (20_000, 20_000) if kind == "huge" else (64, 64)).save(path)
    data = path.read_bytes()
    chunk = data.index(b"IDAT")
    if kind == "no header":
        path.write_bytes(data[:20] + bytes(4) + data[24:])
    elif kind == "broken chunk":
        path.write_bytes(data[: chunk - 4] + b"\xff\xff\xff\xffID\x00T" + data[chunk + 4 :])
    elif kind == "no picture":
        path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"photo\.png cannot be read as a photograph: .+"):
        embed_photo(path, Recipe())


def test_a_photograph_that_cannot_be_compared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would be like it."""
    path = tmp_path / "photo.png"
    Image.new("L", (64, 64)).save(path)
    networks = SimpleNamespace(
        detect=lambda images: [["a face"]],
        landmarks=lambda image, faces: SimpleNamespace(points5=None),
        embed=lambda image, points: np.full((1, 2), np.nan, np.float32),
    )
    monkeypatch.setattr("curation.finding.load_analyser", lambda config: networks)
    with pytest.raises(ValueError, match=r"photo\.png: the network finds no identity in its face; try another"):
        embed_photo(path, Recipe())
