"""The card says what the manifests say, the same on every machine."""

from __future__ import annotations

import shutil
from dataclasses import replace

from curation import card
from curation.card import make_card, write_card
from curation.forget import Request, forget
from curation.recipe import recipe_of, recipe_toml
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table


def rows_of_card(text: str, section: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    part = text.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_figures_are_those_of_the_manifests(demo_copy):
    dataset = Dataset(demo_copy)
    sources = read_table(dataset, "sources").to_pylist()
    for row in sources:
        row |= {"licence": "CC-BY|4.0", "consent": "form 7", "attribution": "Jane Doe"}
    replace_table(dataset, "sources", make_table("sources", sources))
    rows = [row | {"attribution": "Jane Doe"} for row in read_table(dataset, "clips").to_pylist()]
    replace_table(dataset, "clips", make_table("clips", rows))
    text = make_card(dataset)
    kept = [row for row in rows if row["decision"] == "keep"]
    size = rows_of_card(text, "Size")
    assert [row[0] for row in size] == ["train", "all"]
    assert size[-1][1:6] == [
        str(len(kept)), f"{sum(r['duration_s'] for r in kept) / 3600:.2f}", str(sum(r["num_frames"] for r in kept)),
        str(len({r["identity_id"] for r in kept})), str(len({r["source_id"] for r in kept})),
    ]  # fmt: skip
    assert "0 identities and 0 sources are in more than one split" in text
    usable = sum(row["status"] == "ok" for row in sources)
    assert f"{usable} of {len(sources)} sources could be used" in text
    assert rows_of_card(text, "Sources, licences and consent")[0][0].startswith("CC-BY\\")
    assert "To be credited: Jane Doe." in text
    reasons = {(row[0], row[1]): row[2] for row in rows_of_card(text, "What was left out, and why")}
    assert reasons["clip", "blurred"] == "1"
    assert reasons["clip", "face_too_small"] == "1"
    assert recipe_of(demo_copy).stage_hash("pack") in text
    tracks = read_table(dataset, "tracks").to_pylist()
    for part, weight in tracks[0]["analyser_weights"]:
        assert f"{part}: `{weight}`" in text, "each file with its hash"
    assert tracks[0]["analyser_licence"] in text
    heat_map = text.split("by head pose", 1)[1]
    shares = [float(c) for line in heat_map.splitlines()[4:9] for c in line.strip("|").split("|")[1:]]
    assert abs(sum(shares) - 100) < 2


def test_texts_of_source_lists_are_no_markup(demo_copy):
    dataset = Dataset(demo_copy)
    sources = read_table(dataset, "sources").to_pylist()
    for row in sources:
        row |= {"licence": "a & b <b>4.0</b> \\| c\r\nd", "provenance": {"<i>note</i>": "x"}}
    replace_table(dataset, "sources", make_table("sources", sources))
    rows = [
        row | {"attribution": "<svg onload=alert(1)> [a](b) _c_ __d__ e_f ~~g~~"}
        for row in read_table(dataset, "clips").to_pylist()
    ]
    replace_table(dataset, "clips", make_table("clips", rows))
    text = make_card(dataset).split("## Sources, licences and consent\n", 1)[1].split("\n## ", 1)[0]
    assert "| a &amp; b &lt;b&gt;4.0&lt;/b&gt; \\\\\\| c d | no |" in text
    assert "in `clips.provenance`: &lt;i&gt;note&lt;/i&gt;." in text
    assert r"To be credited: &lt;svg onload=alert(1)&gt; \[a\](b) \_c\_ \_\_d\_\_ e_f \~\~g\~\~." in text
    assert "<" not in text


def test_a_refusal_is_not_told_as_consent(demo_copy):
    dataset = Dataset(demo_copy)
    sources = read_table(dataset, "sources").to_pylist()
    for number, row in enumerate(sources):
        row |= {"consent": "form 7" if number else "Withdrawn"}
    replace_table(dataset, "sources", make_table("sources", sources))
    stated = {row[1]: int(row[2]) for row in rows_of_card(make_card(dataset), "Sources, licences and consent")}
    usable = [row["status"] == "ok" for row in sources]
    assert stated == {"no": 1, "yes": sum(usable) - 1}


def test_the_same_anywhere(demo_copy, tmp_path):
    shutil.copytree(demo_copy, tmp_path / "elsewhere" / demo_copy.name)
    assert make_card(Dataset(demo_copy)) == make_card(Dataset(tmp_path / "elsewhere" / demo_copy.name))
    assert str(tmp_path) not in make_card(Dataset(demo_copy)), "no places of this machine"
    path = write_card(Dataset(demo_copy))
    assert path == demo_copy / "report" / "card.md"
    assert write_card(Dataset(demo_copy), tmp_path / "CARD.md").read_text() == path.read_text()


def test_a_quality_network_is_named_without_its_place(demo_copy):
    dataset = Dataset(demo_copy)
    recipe = recipe_of(demo_copy)
    crop = replace(recipe.crop, quality_model="private/q.onnx")
    dataset.recipe_file.write_text(recipe_toml(replace(recipe, crop=crop)))
    text = make_card(dataset)
    assert "\n- quality network `q.onnx`\n" in text
    assert "private" not in text


def test_says_what_was_forgotten(demo_copy):
    dataset = Dataset(demo_copy)
    assert "Nothing has been forgotten until now." in make_card(dataset)
    forget(dataset, Request(sources=("sway.mp4",)))
    assert "Forgotten until now, and refused: 1 sources, 1 clips." in make_card(dataset)


def test_a_data_set_without_a_clip(demo_copy):
    dataset = Dataset(demo_copy)
    forget(dataset, Request(where="TRUE"))
    text = make_card(dataset)
    assert rows_of_card(text, "Size") == [["all", "0", "0.00", "0", "0", "0", "0", "0.00"]]


def test_each_analyser_is_named_once_however_many_tracks_it_followed(demo_copy, monkeypatch):
    """The tracks are grouped where they lie, not turned into rows here."""
    dataset = Dataset(demo_copy)
    rows = read_table(dataset, "tracks").to_pylist()
    other = {"track_id": "z", "analyser": "older", "analyser_weights": None, "analyser_licence": None}
    replace_table(dataset, "tracks", make_table("tracks", [*rows, rows[0] | {"track_id": "y"}, rows[0] | other]))
    read = []
    monkeypatch.setattr(card, "read_table", lambda *which: read.append(which[1]) or read_table(*which))
    text = make_card(dataset)
    assert text.count(f"- analyser `{rows[0]['analyser']}`") == 1
    assert "- analyser `older`, licence: unknown\n" in text
    assert "tracks" not in read
