"""Licence, attribution and consent from source lists to clips, where files are replaced, copied and listed again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from curation.card import make_card
from curation.places import merge_sources
from curation.summary import print_summary
from curation.table_check import CHECKS
from manifests.query import ask
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table
from manifests.views import connect
from tests.curation.test_card import rows_of_card
from tests.curation.test_places import LAX, RECIPE, World, picture

BY_CONSENT = replace(RECIPE, select=replace(LAX, require_consent=True))


@pytest.fixture
def world(tmp_path: Path, sources: list[str]) -> World:
    """`sources` only for its networks: they take every picture for a face."""
    return World(tmp_path / "world")


def test_clips_of_a_replaced_file_are_rejected(world: World) -> None:
    """Also where they are to be kept by hand; put back, the file gives them again."""
    path = picture(world.root / "0.png", 90)
    picture(world.root / "1.png", 150)
    listing = "uri,licence,consent\n0.png,CC-BY,{}\n1.png,CC0,form 2\n"
    world.run(world.list(listing.format("form 1")))
    old = world.source(path)["source_id"]
    (clip,) = (row["clip_id"] for row in world.rows("clips") if row["source_id"] == old)
    picture(path, 220)
    by_hand = replace(BY_CONSENT, select=replace(BY_CONSENT.select, keep_clips=(clip,)))
    world.run(world.list(listing.format("withdrawn")), recipe=by_hand)
    new = world.source(path)["source_id"]
    failed = {row["source_id"]: (row["failed_rules"], row["shard"]) for row in world.rows("clips")}
    assert failed.pop(old) == (["source_rejected"], None)
    assert failed.pop(new) == (["no_consent"], None)
    assert list(failed.values()) == [([], "train-000000.tar")]
    text = make_card(Dataset(world.dataset))
    assert [row[4] for row in rows_of_card(text, "Sources, licences and consent")] == ["0.00", "0.00"]
    assert rows_of_card(text, "Size")[-1][1] == "1"
    picture(path, 90)
    world.run(world.list(listing.format("form 1")), recipe=by_hand)
    assert {row["source_id"]: row["failed_rules"] for row in world.rows("clips")}[old] == []


def test_kept_clips_of_a_rejected_source_are_told(world: World) -> None:
    """As an older program left them: by `verify` and in the card, whose tables have the same sums."""
    path = picture(world.root / "0.png", 90)
    world.run(path)
    dataset = Dataset(world.dataset)
    (check,) = (check for check in CHECKS if check.problem == "kept, but of a source that is rejected")
    assert connect(dataset.root).execute(check.query).fetchall() == []
    clips = read_table(dataset, "clips")
    picture(path, 220)
    world.run(path)
    (old,) = (row["clip_id"] for row in world.rows("clips") if row["decision"] == "reject")
    replace_table(dataset, "clips", clips)
    assert connect(dataset.root).execute(check.query).fetchall() == [(old,)]
    text = make_card(dataset)
    assert rows_of_card(text, "Size")[-1][1] == "1"
    assert [row[:4] for row in rows_of_card(text, "Sources, licences and consent")] == [["not stated", "no", "2", "1"]]


def stated(world: World) -> list[tuple[str | None, ...]]:
    """Licence, attribution and consent of each source; its clips have the same."""
    names = ("licence", "attribution", "consent")
    of_source = {row["source_id"]: tuple(row[name] for name in names) for row in world.rows("sources")}
    for row in world.rows("clips"):
        assert of_source[row["source_id"]] == tuple(row[name] for name in names)
    return list(of_source.values())


@pytest.mark.parametrize("others", ["", "moved", "uri"])
def test_what_a_list_states_is_taken_back_by_a_list_alone(world: World, others: str) -> None:
    """Not by a folder, a glob, a file or a list without further columns; also where the folder was moved."""
    folder = picture(world.root / "in" / "0.png", 90).parent
    world.run(world.list("uri,licence,attribution,consent\nin/0.png,CC-BY,Bob,form 7\n"))
    if others == "moved":
        folder = folder.rename(world.root / "elsewhere")
    inputs = world.list("uri\nin/0.png\n") if others == "uri" else folder
    assert world.run(inputs).num_units > 0
    assert stated(world) == [("CC-BY", "Bob", "form 7")]
    assert world.run(inputs).num_units == 0
    world.run(world.list(f"uri,licence,attribution,consent\n{folder.name}/0.png,,,\n"))
    assert stated(world) == [(None, None, None)]
    world.run(world.list(f"uri,licence,attribution,consent\n{folder.name}/0.png,CC0,,\n"))
    assert stated(world) == [("CC0", None, None)]


def test_what_was_said_of_a_file_is_not_said_of_another_one_in_its_place(world: World) -> None:
    path = picture(world.root / "0.png", 90)
    world.run(world.list("uri,licence\n0.png,CC-BY\n"))
    picture(path, 220)
    world.run(path)
    assert sorted(stated(world), key=str) == [("CC-BY", None, None), (None, None, None)]


def said_in(*places: dict[str, str] | None) -> tuple[str | None, ...]:
    """Licence, attribution and consent of one content with what is said in its places, in their order."""
    listed = [
        {"uri": f"{k}.png", "size_bytes": 1, "changed": "", "unit": str(k), "columns": columns}
        for k, columns in enumerate(places)
    ]
    (row,) = merge_sources([{"source_id": "s", "uris": [p["uri"] for p in listed], "places": listed}])
    return row["licence"], row["attribution"], row["consent"]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([None, {}, {"licence": "CC0", "consent": "form 7"}], ("CC0", None, "form 7")),
        ([{"licence": "CC0", "attribution": "Bob"}, {"licence": "cc0", "attribution": "Bob"}], ("CC0", "Bob", None)),
        ([{"licence": "proprietary", "attribution": "Jo"}, {"licence": "CC0"}], ("CC0; proprietary", "Jo", None)),
        ([{"attribution": "Jo"}, {"attribution": "Bob"}], (None, "Bob; Jo", None)),
        ([{"consent": "release"}, {"consent": "Withdrawn"}, {"consent": "form 7"}], (None, None, "Withdrawn")),
        ([{"consent": "form 7"}, {"consent": "form 12"}, {"consent": "n/a"}], (None, None, "form 12; form 7")),
        ([{"licence": "nan", "attribution": "unknown", "consent": "-"}], (None, None, None)),
        ([{"licence": "none"}, {"licence": "CC0"}], ("CC0", None, None)),
    ],
)
def test_rights_of_a_content_in_several_places(places: list[Any], expected: tuple[str | None, ...]) -> None:
    assert said_in(*places) == expected
    assert said_in(*reversed(places)) == expected


def test_lists_that_contradict_each_other(world: World, capsys: pytest.CaptureFixture) -> None:
    """Neither of them is taken for the truth; a copy of which nothing is said contradicts nobody."""
    for name in ("a", "b", "c"):
        picture(world.root / f"{name}.png", 90)
    picture(world.root / "d.png", 150)
    rights = "uri,licence,attribution,consent\na.png,CC0,,release\nb.png,{}\nc.png,,,\nd.png,CC0,,release\n"
    careful = replace(RECIPE, select=replace(LAX, require_consent=True, licences=("cc0",)))
    world.run(world.list(rights.format("proprietary,Bob,withdrawn")), recipe=careful)
    one = world.source(world.root / "a.png")["source_id"]
    assert sorted(stated(world), key=str) == [("CC0", None, "release"), ("CC0; proprietary", "Bob", "withdrawn")]
    failed = {row["source_id"]: row["failed_rules"] for row in world.rows("clips")}
    assert failed.pop(one) == ["licence_not_allowed", "no_consent"]
    assert list(failed.values()) == [[]]
    places = {what: [f"{world.root}/{name}.png" for name in "ab"] for what in ("licence", "consent")}
    said = {"licence": ["CC0", "proprietary"], "consent": ["release", "withdrawn"]}
    conflicts = ask(connect(world.dataset), "rights_conflicts").fetchall()
    assert conflicts == [
        (one, what, [f"{uri}: {text}" for uri, text in zip(places[what], said[what], strict=True)], 0)
        for what in ("consent", "licence")
    ]
    print_summary(Dataset(world.dataset), careful.select, Console(width=200))
    assert "different rights of 1 contents in different places" in capsys.readouterr().out
    world.run(world.list(rights.format("CC0,Bob,release")), recipe=careful)
    assert {row["source_id"]: row["failed_rules"] for row in world.rows("clips")}[one] == []
    assert ask(connect(world.dataset), "rights_conflicts").fetchall() == []
    print_summary(Dataset(world.dataset), careful.select, Console(width=200))
    assert "different rights" not in capsys.readouterr().out


def test_sources_that_an_older_program_has_merged(world: World) -> None:
    """Which took of each column what the first place said, in its own words for nothing, too."""
    for name in ("a", "b"):
        picture(world.root / f"{name}.png", 90)
    listing = world.list("uri,licence,consent\na.png,CC0,nan\nb.png,CC-BY,no\n")
    world.run(listing)
    dataset = Dataset(world.dataset)
    now = world.rows("sources")
    old = [row | {"licence": "CC0", "consent": "nan"} for row in now]
    replace_table(dataset, "sources", make_table("sources", old))
    assert world.run(listing).num_units == 0
    assert world.rows("sources") == now
    assert stated(world) == [("CC-BY; CC0", None, "no")]


def test_words_that_say_nothing_are_not_stated_anywhere(tmp_path: Path) -> None:
    """Also in tables where they stand, as older programs wrote them."""
    dataset = Dataset(tmp_path)
    said = [("CC0", "form 7"), ("N/A", "nan"), ("none", "Withdrawn"), (None, None)]
    rows = [{"source_id": str(k), "licence": licence, "consent": consent} for k, (licence, consent) in enumerate(said)]
    replace_table(dataset, "sources", make_table("sources", [row | {"status": "ok"} for row in rows]))
    clips = [row | {"clip_id": f"{k}", "decision": "keep", "attribution": "nan"} for k, row in enumerate(rows)]
    replace_table(dataset, "clips", make_table("clips", clips))
    db = connect(tmp_path)
    assert [(row[0], row[1], row[2]) for row in ask(db, "licences").fetchall()] == [("unknown", 3, 3), ("CC0", 1, 1)]
    consent = [(row[0], row[1], row[4]) for row in ask(db, "consent").fetchall()]
    assert consent == [("unknown", False, 2), ("Withdrawn", False, 1), ("form 7", True, 1)]
    assert [row[:2] for row in ask(db, "attributions").fetchall()] == [(None, None), ("CC0", None)]
    assert db.sql("SELECT source_id FROM sources WHERE NOT is_stated(licence) ORDER BY 1").fetchall() == [
        ("1",), ("2",), ("3",),
    ]  # fmt: skip
