"""forget on a data set of real people: found in each of the four ways, gone from every file, and not coming back."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation import pipeline
from curation.__main__ import main
from curation.forget import Request, forget
from curation.recipe import PackOptions, Recipe, SelectOptions, recipe_of
from curation.runs import run_file
from curation.verify import verify
from manifests.schema import TABLES, make_table
from manifests.store import Dataset, read_table, replace_table

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(pack=PackOptions(shard_bytes=250_000), select=SelectOptions(val_share=0.2, test_share=0.2))
FILES = ("images/i02", "images/i03", "images/i10", "images/i11", "images/i12", "images/i13", "images/i16", "images/i21",
         "videos/v08")  # fmt: skip
ONE_MAN = {"i11": 1, "i12": 1, "i13": 1}
"""Sources that show the same man, and how many clips of each are of him; i11 shows another one beside him."""


class People:
    """A data set, the list that it is made from, and what is in it by the short names of its sources."""

    def __init__(self, folder: Path, listing: Path) -> None:
        self.folder, self.listing = folder, listing
        self.dataset = Dataset(folder)

    def rows(self, table: str) -> list[dict]:
        return read_table(self.dataset, table).to_pylist()

    def source(self, short: str) -> dict:
        return next(row for row in self.rows("sources") if Path(row["uris"][0]).name.startswith(short))

    def clips(self, short: str) -> list[dict]:
        source_id = self.source(short)["source_id"]
        return [clip for clip in self.rows("clips") if clip["source_id"] == source_id]

    def shards(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.dataset.shards.iterdir())}

    def copy(self, folder: Path) -> People:
        shutil.copytree(self.folder, folder)
        return People(folder, self.listing)


@pytest.fixture(scope="module")
def made(media, run_here, tmp_path_factory) -> People:
    folder = tmp_path_factory.mktemp("people")
    rows = []
    for start in FILES:
        (path,) = media.glob(f"{start}_*")
        shutil.copy(path, folder / path.name)
        licence = "" if "i03" in start or "v08" in start else "CC-BY-4.0"
        rows.append({"uri": path.name, "licence": licence, "consent": "", "show": start})
    listing = folder / "list.csv"
    with open(listing, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    run_here([str(listing)], folder / "dataset", RECIPE)
    people = People(folder / "dataset", listing)
    assert len(people.shards()) >= 5
    return people


@pytest.fixture
def people(made, tmp_path) -> People:
    return made.copy(tmp_path / "dataset")


def traces(folder: Path, clip_ids: set[str]) -> set[str]:
    """Files other than tombstones in which a clip id stands, Parquet columns decoded."""
    wanted = re.compile("|".join(f"{re.escape(clip_id)}(?![0-9])" for clip_id in sorted(clip_ids)).encode())
    found = set()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        text = path.read_bytes() + str(path).encode()
        if path.suffix == ".parquet":
            text += str(pq.read_table(path).to_pylist()).encode()
        if wanted.search(text):
            found.add(path.relative_to(folder).parts[-2])
    return found - {"tombstones"}


def gone_by(people: People, way: str) -> tuple[list[str], set[str]]:
    """Arguments of the command, and ids of the clips that they mean."""
    ids = {clip["clip_id"] for clip in people.clips("i03")}
    if way == "source":
        return ["--source", people.source("i03")["uris"][0]], ids
    if way == "where":
        return ["--where", "NOT is_stated(licence)"], ids | {clip["clip_id"] for clip in people.clips("v08")}
    (face,) = people.listing.parent.glob("i13_*")
    (his,) = {clip["identity_id"] for clip in people.clips("i13")}
    him = {clip["clip_id"] for clip in people.rows("clips") if clip["identity_id"] == his}
    return ["--identity", his] if way == "identity" else ["--face", str(face)], him


@pytest.mark.parametrize("way", ["source", "identity", "face", "where"])
def test_forgotten_in_each_way(people, run_here, way, capsys):
    arguments, gone = gone_by(people, way)
    if way in ("identity", "face"):
        for short, count in ONE_MAN.items():
            assert sum(clip["clip_id"] in gone for clip in people.clips(short)) == count
    others = {clip["clip_id"] for clip in people.rows("clips")} - gone
    affected = {clip["shard"] for clip in people.rows("clips") if clip["clip_id"] in gone} - {None}
    embeddings = [clip["embedding"] for clip in people.rows("clips") if clip["clip_id"] in gone and clip["embedding"]]
    before = people.shards()
    assert main(["review", str(people.folder), "--no-open"]) == 0
    assert 0 < len(affected) < len(before)
    assert traces(people.folder, gone) >= {"clips", "tracks", "frames", "shards"}

    capsys.readouterr()
    assert main(["forget", str(people.folder), *arguments, "--yes"]) == 0
    shown = capsys.readouterr().out
    assert all(clip_id in shown for clip_id in gone), "what goes is shown first"
    assert not any(clip_id in shown for clip_id in others)
    assert all(name in shown for name in affected)
    assert ("nobody else was found in 2 sources" in shown) == (way in ("identity", "face"))

    def check() -> None:
        assert traces(people.folder, gone) == set()
        assert {clip["clip_id"] for clip in people.rows("clips")} == others
        left = people.shards()
        assert {n: c for n, c in left.items() if n not in affected} == {
            n: c for n, c in before.items() if n not in affected
        }
        known = [clip["embedding"] for clip in people.rows("clips")]
        known += [candidate["embedding"] for track in people.rows("tracks") for candidate in track["candidates"]]
        assert not any(embedding in known for embedding in embeddings)
        assert all(row["embedding"] is None for row in people.rows("tombstones")), "nothing biometric is kept"
        assert list(verify(people.dataset)) == []

    check()
    assert not people.dataset.report.exists(), "strips of pictures went with them"
    uris = {Path(uri).name[:3] for row in people.rows("sources") for uri in row["uris"]}
    whole = {"source": {"i03"}, "where": {"i03", "v08"}}.get(way, {"i12", "i13"})  # of i11 the other man stays
    assert uris == {Path(name).name for name in FILES} - whole
    after = people.shards()
    run_here([str(people.listing)], people.folder, RECIPE)
    check()
    assert people.shards() == after, "running again moves nothing"


def test_of_two_men_side_by_side_one_stays_when_the_recipe_changes(people, run_here):
    """The picture is scanned and cropped anew; the place in the picture tells the men apart."""
    _, gone = gone_by(people, "identity")
    (left,) = (clip["clip_id"] for clip in people.clips("i11") if clip["clip_id"] not in gone)
    (first, *others) = (clip["clip_id"] for clip in people.clips("i10"))
    condition = f"clip_id IN ('{first}') OR identity_id = '{people.clips('i13')[0]['identity_id']}'"
    assert forget(people.dataset, Request(where=condition))
    other = replace(RECIPE, scan=replace(RECIPE.scan, sample_fps=4.0), crop=replace(RECIPE.crop, scale=2.1))
    run_here([str(people.listing)], people.folder, other)
    assert [clip["clip_id"] for clip in people.clips("i11")] == [left]
    assert [clip["clip_id"] for clip in people.clips("i10")] == others
    assert people.clips("i13") == []
    assert traces(people.folder, gone | {first}) == set()
    assert list(verify(people.dataset)) == []


def test_a_source_is_refused_under_any_name_and_licence(people, run_here, tmp_path):
    source = people.source("i03")
    forget(people.dataset, Request(sources=(Path(source["uris"][0]).name,)))
    shutil.copy(source["uris"][0], tmp_path / "quite another name.jpg")
    (tmp_path / "list.csv").write_text("uri,licence\nquite another name.jpg,CC0\n")
    run_here([str(people.listing), str(tmp_path / "list.csv")], people.folder, RECIPE)
    assert len(people.rows("sources")) == len(FILES) - 1
    assert not {c["source_id"] for c in people.rows("clips") + people.rows("tracks")} & {source["source_id"]}


@pytest.mark.parametrize("is_kept", [True, False])
def test_new_pictures_of_a_person_are_refused_only_when_the_face_is_kept(people, media, run_here, is_kept, tmp_path):
    (photo,) = media.glob("images/i13_*")
    (new,) = media.glob("images/i14_*")  # the same man, at another time
    forget(people.dataset, Request(face=photo, keep_face=is_kept))
    num_clips = len(people.rows("clips"))
    run_here([str(people.listing), str(new)], people.folder, RECIPE)
    assert len(people.rows("clips")) == num_clips + (0 if is_kept else 1)
    (embedding,) = [row["embedding"] for row in people.rows("tombstones") if row["kind"] == "face"] or [None]
    assert (embedding is not None) == is_kept
    if is_kept:
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
        assert [d.what for d in verify(people.dataset)] == []


def test_nothing_changes_without_a_yes(people, monkeypatch, capsys):
    def content() -> dict:
        return people.shards() | {name: people.rows(name) for name in TABLES}

    before = content()
    arguments = ["forget", str(people.folder), "--source", "i03_oil_painting_girl.jpg"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "dry run" in capsys.readouterr().out
    assert main(arguments) == 2, "there is no terminal"
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(arguments) == 0
    assert content() == before
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(arguments) == 0
    assert len(people.rows("sources")) == len(FILES) - 1
    assert main(arguments) == 1, "there is nothing of it any more"
    assert "nothing in the data set matches" in capsys.readouterr().out


def test_a_condition_without_a_match_says_how_the_unstated_is_found(people, capsys):
    assert main(["forget", str(people.folder), "--where", "licence = 'unknown'", "--yes"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        'where no source list states a licence or consent: --where "NOT is_stated(licence)"',
        "nothing in the data set matches",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--yes"], "exactly one of"),
        (["--source", "a", "--where", "TRUE"], "exactly one of"),
        (["--where", "sharpness <"], "no SQL condition"),
        (["--where", "no_such_column = 1"], "no condition over sources"),
        (["--where", "TRUE", "--keep-face-to-refuse"], "needs one person"),
        (["--face", str(ROOT / "README.md")], "cannot be read as a photograph"),
        (["--face", str(ROOT / "README.md"), "--min-similarity", "-1"], "is -1.0: expected more than 0, at most 1"),
        (["--face", str(ROOT / "README.md"), "--min-similarity", "nan"], "is nan: expected more than 0, at most 1"),
        (["--where", "TRUE", "--min-similarity", "0.5"], "--min-similarity compares faces: use it with --face"),
    ],
)
def test_says_what_is_wrong(people, arguments, words, capsys):
    assert main(["forget", str(people.folder), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_photograph_of_several_people_is_no_reference(people, media, capsys):
    (several,) = media.glob("images/i10_*")
    assert main(["forget", str(people.folder), "--face", str(several)]) == 2
    assert re.search(r"shows \d+ faces, expected one", capsys.readouterr().err)


@pytest.fixture
def drawn(sources, tmp_path) -> Dataset:
    """A data set of five stills, of which identities are a matter of brightness."""
    lax = SelectOptions(min_sharpness=None, max_upscale=None, identity_similarity=0.843)
    pipeline.run(sources, tmp_path / "drawn", Recipe(select=lax))
    return Dataset(tmp_path / "drawn")


def test_a_misspelt_name_among_others_removes_nothing(drawn, capsys):
    def forgets(*arguments: str) -> int:
        return main(["forget", str(drawn.root), *arguments, "--yes"])

    clips = read_table(drawn, "clips").to_pylist()
    for option, name in (("--source", "0.png"), ("--identity", clips[0]["identity_id"])):
        assert forgets(option, name, option, "tpyo") == 2
        assert f"no {option[2:]} is called tpyo: correct the name or leave it out" in capsys.readouterr().err
        assert read_table(drawn, "clips").to_pylist() == clips
    ids = {Path(row["uris"][0]).name: row["source_id"] for row in read_table(drawn, "sources").to_pylist()}
    assert forgets("--source", ids["0.png"]) == 0
    assert forgets("--source", ids["0.png"], "tpyo") == 2
    assert forgets("--source", ids["0.png"], ids["1.png"]) == 0, "the first is known to be forgotten"
    assert f"forgotten before: {ids['0.png']}\n" in capsys.readouterr().out
    assert len(read_table(drawn, "clips")) == 3


def test_all_clips_that_a_kept_face_refuses_go_with_its_identity(drawn, sources, capsys):
    """Two clips are one person; a third is not alike enough to both, but to their mean, which is the kept face."""
    uris = {row["source_id"]: row["uris"][0] for row in read_table(drawn, "sources").to_pylist()}
    clips = {Path(uris[row["source_id"]]).name: row for row in read_table(drawn, "clips").to_pylist()}
    person = clips["0.png"]["identity_id"]
    assert [name for name, clip in sorted(clips.items()) if clip["identity_id"] == person] == ["0.png", "1.png"]
    command = ["forget", str(drawn.root), "--identity", person, "--keep-face-to-refuse", "--yes"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(clips[name]["clip_id"] in shown for name in ("0.png", "1.png", "2.png"))
    assert "1 clips besides those of the identities go too" in shown
    assert "are as before: the next `run` or `select` finds them anew" in shown
    for _ in range(2):
        left = {row["clip_id"] for row in read_table(drawn, "clips").to_pylist()}
        assert left == {clips[name]["clip_id"] for name in ("3.png", "4.png")}
        assert list(verify(drawn)) == []
        pipeline.run(sources, drawn.root, recipe_of(drawn.root))


def test_clip_that_was_never_kept_inherits_where_its_person_was(drawn):
    rows = {row["clip_id"]: row for row in read_table(drawn, "clips").to_pylist()}
    sources = {row["source_id"]: row["uris"][0] for row in read_table(drawn, "sources").to_pylist()}
    names = {Path(sources[row["source_id"]]).name: clip_id for clip_id, row in rows.items()}
    kept, copy = rows[names["0.png"]], rows[names["1.png"]]
    assert kept["identity_id"] == copy["identity_id"]
    copy |= {"decision": "reject", "failed_rules": ["duplicate"], "split": None, "split_group": None}
    replace_table(drawn, "clips", make_table("clips", list(rows.values())))
    assert forget(drawn, Request(sources=(kept["source_id"],)))
    left = {row["clip_id"]: row["split_group"] for row in read_table(drawn, "clips").to_pylist()}
    assert left == {i: kept["split_group"] if i == copy["clip_id"] else rows[i]["split_group"] for i in left}
    assert len(left) == len(rows) - 1


def test_of_several_persons_each_face_is_kept(people):
    wanted = sorted({people.clips(name)[0]["identity_id"] for name in ("i10", "i13")})
    assert len(wanted) == 2
    assert forget(people.dataset, Request(identities=tuple(wanted), keep_face=True))
    kept = [row["embedding"] for row in people.rows("tombstones") if row["kind"] == "face"]
    assert len(kept) == 2
    assert abs(float(np.dot(*kept))) < 0.5, "two faces, not their mean twice"
    assert not set(wanted) & {row["identity_id"] for row in people.rows("clips")}
    assert list(verify(people.dataset)) == []


@pytest.mark.parametrize("num_kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_random_moments(made, run_here, tmp_path, num_kills):
    """SIGKILL, then the same command again, or a run: the same state as without."""

    def content(people: People) -> dict:
        tables = {name: people.rows(name) for name in TABLES if name != "runs"}
        for row in tables["tombstones"]:
            row["forgotten_at"] = None
        return (
            people.shards() | tables | {"files": sorted(str(p.relative_to(people.folder)) for p in folder_of(people))}
        )

    def folder_of(people: People) -> list[Path]:
        return [p for p in people.folder.rglob("*") if p.is_file() and p.name != "metrics.jsonl"]

    arguments, gone = gone_by(made, "where")
    whole = made.copy(tmp_path / "whole")
    command = [sys.executable, "-m", "curation", "forget", "", *arguments, "--yes"]
    start = time.perf_counter()
    subprocess.run([*command[:4], whole.folder, *command[5:]], cwd=ROOT, check=True, capture_output=True)
    length_s = time.perf_counter() - start
    wanted = {"forget": content(whole)}
    run_here([str(whole.listing)], whole.folder, RECIPE)  # selects again: sampling weights follow what is left
    wanted["run"] = content(whole)
    chance = random.Random(time.time_ns())
    for number in range(num_kills):
        people = made.copy(tmp_path / f"killed{number}")
        process = subprocess.Popen(
            [*command[:4], people.folder, *command[5:]], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(length_s * chance.uniform(0.5, 1.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        then = "forget" if number % 2 or not people.rows("tombstones") else "run"
        if then == "forget":
            forget(people.dataset, Request(where=arguments[1]))
        else:
            run_here([str(people.listing)], people.folder, RECIPE)
        assert content(people) == wanted[then], f"killed {number}"
        assert traces(people.folder, gone) == set()
        shutil.rmtree(people.folder)


def test_copies_in_other_sources_are_pointed_out(people, capsys):
    """They stay unless they are named; nothing then points at what is gone."""
    best, copy = people.clips("i03")[0], people.clips("i16")[0]
    rows = [row | ({"duplicate_of": best["clip_id"]} if row == copy else {}) for row in people.rows("clips")]
    replace_table(people.dataset, "clips", make_table("clips", rows))
    assert main(["forget", str(people.folder), "--source", best["source_id"], "--yes"]) == 0
    assert f"--source {copy['source_id']}" in capsys.readouterr().out
    assert traces(people.folder, {best["clip_id"]}) == set()
    assert people.clips("i16")[0] == copy


def test_runs_name_it_no_more(demo_copy, rows_of):
    """Inputs that were this source itself and errors that name it go from the history; folders around it stay."""
    (uri,) = next(row["uris"] for row in rows_of(demo_copy, "sources") if row["uris"][0].endswith("sway.mp4"))
    dataset = Dataset(demo_copy)
    (run,) = rows_of(demo_copy, "runs")
    others = [str(Path(uri).parent), f"{uri}.copy"]
    rows = [run | {"inputs": [uri, *others], "last_error": f"{uri} is gone"}, run | {"run_id": "b", "inputs": [uri]}]
    replace_table(dataset, "runs", make_table("runs", rows))
    dataset.staging.mkdir()
    run_file(dataset).write_text(json.dumps({"failures": [{"uri": uri}]}))
    (dataset.staging / "plan-crop").mkdir()
    (dataset.staging / "plan-crop" / "000000.json").write_text(json.dumps([{"uri": uri}]))
    forget(dataset, Request(sources=(uri,)))
    after = rows_of(demo_copy, "runs")
    assert [row["inputs"] for row in after] == [["(forgotten)", *others], ["(forgotten)"], []]
    assert [row["last_error"] for row in after] == ["(forgotten)", None, None]
    assert after[0]["stages"] == run["stages"]
    assert not dataset.staging.exists(), "the heartbeat and the plan of a killed run named it, too"
