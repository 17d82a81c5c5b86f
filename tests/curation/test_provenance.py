"""Licence, attribution, consent and free columns: from the list to every clip, shard and label, corrections too."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

import manifests.__main__
from curation.recipe import PackOptions, Recipe, SelectOptions, load_recipe, recipe_toml
from curation.samples import member_bytes
from curation.shard_plan import plan_shards, planned_bytes
from curation.verify import verify
from manifests.schema import make_table
from manifests.store import Dataset, read_table

RECIPE = Recipe(pack=PackOptions(shard_bytes=200_000))
ROWS = {
    "i02": {"licence": "CC-BY-4.0", "attribution": "Jane Doe", "consent": "form 7", "show": "one"},
    "i16": {"licence": "cc0", "attribution": "", "consent": "", "show": "two"},
    "i21": {"licence": "", "attribution": "", "consent": "public figure", "show": ""},
}


class Listed:
    def __init__(self, folder: Path, media: Path) -> None:
        self.folder, self.listing, self.dataset = folder, folder / "list.csv", Dataset(folder / "dataset")
        self.files = {}
        for short in ROWS:
            (path,) = media.glob(f"images/{short}_*")
            self.files[short] = shutil.copy(path, folder / path.name)

    def write_list(self, rows: dict[str, dict[str, str]]) -> list[str]:
        with open(self.listing, "w", newline="") as file:
            writer = csv.DictWriter(file, ["uri", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"uri": self.files[short].name} | row for short, row in rows.items())
        return [str(self.listing)]

    def labels(self) -> dict[str, dict]:
        """Of every packed frame, by the short name of its source."""
        names = {row["source_id"]: Path(row["uris"][0]).name[:3] for row in self.rows("sources")}
        found = {}
        for path in self.dataset.shards.iterdir():
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.name.endswith(".json"):
                        label = json.load(archive.extractfile(member))
                        found[names[label["clip_id"].split("_")[0]]] = label
        return found

    def rows(self, table: str) -> list[dict]:
        return read_table(self.dataset, table).to_pylist()


@pytest.fixture
def listed(tmp_path, media) -> Listed:
    return Listed(tmp_path, media)


def test_from_the_list_to_every_label(listed, run_here):
    run_here(listed.write_list(ROWS), listed.dataset.root, RECIPE)
    labels = listed.labels()
    assert {short: (x["licence"], x["attribution"], x["consent"]) for short, x in labels.items()} == {
        "i02": ("CC-BY-4.0", "Jane Doe", "form 7"), "i16": ("cc0", None, None), "i21": (None, None, "public figure"),
    }  # fmt: skip
    assert not any("show" in label for label in labels.values()), "free columns are in the tables only"
    clips = listed.rows("clips")
    assert sorted(dict(clip["provenance"]).get("show", "") for clip in clips) == ["", "one", "two"]
    assert {(c["licence"], c["consent"]) for c in clips} == {
        ("CC-BY-4.0", "form 7"), ("cc0", None), (None, "public figure"),
    }  # fmt: skip
    of_shards = sorted(licence for row in listed.rows("shards") for licence in row["licences"])
    assert of_shards == ["", "CC-BY-4.0", "cc0"]


def test_a_query_that_names_sources_is_a_source_list(listed, run_here, tmp_path):
    run_here(listed.write_list(ROWS), listed.dataset.root, RECIPE)
    part = tmp_path / "part.csv"
    query = "SELECT uris[1] AS uri, licence, attribution, consent FROM sources WHERE licence IS NOT NULL"
    assert manifests.__main__.main([str(listed.dataset.root), query, "--output", str(part)]) == 0
    run_here([str(part)], tmp_path / "part", RECIPE)
    columns = ("source_id", "uris", "licence", "attribution", "consent")
    have = [{name: row[name] for name in columns} for row in listed.rows("sources") if row["licence"]]
    assert len(have) == 2
    rows = read_table(Dataset(tmp_path / "part"), "sources").to_pylist()
    assert [{name: row[name] for name in columns} for row in rows] == have


def test_a_corrected_list_reaches_the_shards_with_the_next_run(listed, run_here):
    run_here(listed.write_list(ROWS), listed.dataset.root, RECIPE)
    before = {row["shard"]: row["sha256"] for row in listed.rows("shards")}
    corrected = ROWS | {"i16": ROWS["i16"] | {"licence": "CC-BY-SA-4.0", "attribution": "Joe"}}
    for source in listed.write_list(corrected), listed.write_list(corrected):
        run_here(source, listed.dataset.root, RECIPE)
    label = listed.labels()["i16"]
    assert (label["licence"], label["attribution"]) == ("CC-BY-SA-4.0", "Joe")
    assert {licence for row in listed.rows("shards") for licence in row["licences"]} == {
        "",
        "CC-BY-4.0",
        "CC-BY-SA-4.0",
    }
    after = {row["shard"]: row["sha256"] for row in listed.rows("shards")}
    assert set(after) == set(before)
    assert sum(after[name] != before[name] for name in after) == 1, "only the shard that it is in"
    assert list(verify(listed.dataset)) == []


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"require_licence": True}, {"i02", "i16"}),
        ({"require_consent": True}, {"i02", "i21"}),
        ({"licences": ("CC0", "MIT")}, {"i16"}),
        ({"licences": ("CC0",), "require_consent": True}, set()),
    ],
)
def test_recipes_can_require_them(listed, run_here, options, kept, tmp_path):
    (tmp_path / "r.toml").write_text(recipe_toml(replace(RECIPE, select=SelectOptions(**options))))
    recipe = load_recipe(str(tmp_path / "r.toml"))
    run_here(listed.write_list(ROWS), listed.dataset.root, recipe)
    assert set(listed.labels()) == kept
    failed = {rule for clip in listed.rows("clips") for rule in clip["failed_rules"]}
    wanted = {"require_licence": "no_licence", "require_consent": "no_consent", "licences": "licence_not_allowed"}
    assert failed == {wanted[name] for name in options}
    assert list(verify(listed.dataset)) == []


def test_room_for_long_attributions():
    """A clip is never planned smaller than it becomes: the labels' growth in full blocks, whatever stands there."""
    row = {"clip_id": "c", "identity_id": "id_c", "split": "train", "staged_bytes": 100_000, "num_frames": 10}
    row |= {"licence": None, "consent": None, "decision": "keep"}
    short = planned_bytes(row | {"attribution": "Jane Doe"})
    assert short == 100_000 + 10 * 512
    long = planned_bytes(row | {"attribution": "Zoë " * 300})
    assert long - 100_000 >= 10 * (member_bytes(1000 + 1200) - member_bytes(1000))
    clips = make_table("clips", [row | {"clip_id": f"c{k}", "attribution": "Zoë " * 300} for k in range(4)])
    plan = plan_shards(clips, Recipe(pack=PackOptions(shard_bytes=2 * short + 2000)))
    assert [len(shard["clips"]) for shard in plan] == [1, 1, 1, 1], "two would not fit any more"
