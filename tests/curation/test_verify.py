"""verify finds every kind of damage, names it and says what to do; a sound data set has none."""

from __future__ import annotations

import re
import tarfile
from contextlib import ExitStack

import pyarrow.parquet as pq
import pytest

from curation.__main__ import main
from curation.decisions import keep_decisions
from curation.lock import only_run
from curation.recipe import Recipe, recipe_toml
from curation.samples import BLOCK_BYTES
from curation.tombstones import STRETCH, add_tombstones, clip_tombstone, source_tombstone
from curation.units import UnitResult, commit_unit
from curation.verify import verify
from manifests.schema import TABLES, make_table
from manifests.store import Dataset, read_table, replace_table, write_parquet


def differences(folder) -> list[str]:
    return [f"{d.what}: {d.problem}" for d in verify(Dataset(folder))]


def alter(folder, table: str, **values: object) -> None:
    """Change columns of the first row of a kept clip: its own, its frames', its shard's or its source's."""
    dataset = Dataset(folder)
    rows = read_table(dataset, table).to_pylist()
    kept = [clip for clip in read_table(dataset, "clips").to_pylist() if clip["decision"] == "keep"]
    key = {"shards": "shard", "tracks": "track_id", "sources": "source_id"}.get(table, "clip_id")
    row = next(r for r in rows if r[key] in {clip[key] for clip in kept})
    row |= values
    if len(files := dataset.table_files(table)) == 1:
        write_parquet(files[0], make_table(table, rows))
    else:
        replace_table(dataset, table, make_table(table, rows))


def test_a_sound_data_set(demo_copy, capsys):
    assert main(["verify", str(demo_copy)]) == 0
    shown = capsys.readouterr()
    assert "all is as the manifests say" in shown.out
    assert "shards 1/1" in shown.err
    assert main(["review", str(demo_copy), "--no-open"]) == 0
    assert main(["card", str(demo_copy)]) == 0
    assert main(["verify", str(demo_copy)]) == 0


def test_a_data_set_that_a_run_is_writing(tmp_path, capsys):
    """Its tables are missing because they are not written yet."""
    dataset = Dataset(tmp_path)
    dataset.recipe_file.write_text(recipe_toml(Recipe()))
    with only_run(dataset):
        assert main(["verify", str(tmp_path)]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"error: nothing can be said yet, another run is writing to .* process \d+.*: wait", shown.err)
    (tmp_path / ".lock").touch()
    assert main(["verify", str(tmp_path)]) == 1, "left by a run that was killed"


def test_a_run_that_begins_meanwhile(tmp_path, capsys, monkeypatch):
    dataset = Dataset(tmp_path)
    dataset.recipe_file.write_text(recipe_toml(Recipe()))
    with ExitStack() as stack:

        def begin(of: Dataset) -> int:
            stack.enter_context(only_run(of))
            return 1

        monkeypatch.setattr("curation.verify._print_differences", begin)
        assert main(["verify", str(tmp_path)]) == 3
    assert "another run is writing" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["header", "picture", "label", "end"])
def test_a_flipped_byte_in_a_shard(demo_copy, place, capsys):
    clip = next(c for c in read_table(Dataset(demo_copy), "clips").to_pylist() if c["shard"])
    path = demo_copy / "shards" / clip["shard"]
    data = bytearray(path.read_bytes())
    offset = {
        "header": clip["frame_offsets"][3] - BLOCK_BYTES + 5,
        "picture": clip["frame_offsets"][3] + 2000,
        "label": clip["label_offsets"][3] + 1,
        "end": len(data) - 1,
    }[place]
    data[offset] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(demo_copy)]) == 1
    shown = capsys.readouterr().out
    assert f"shards/{clip['shard']}: its SHA-256 is" in shown
    assert "what to do: remove this file and run" in shown
    named = {"header": "expected", "label": f"{clip['clip_id']}_000003.json", "end": "something else is in it"}
    assert named.get(place, "SHA-256") in shown


def test_missing_cut_and_foreign_shards(demo_copy):
    (path,) = (demo_copy / "shards").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-BLOCK_BYTES])
    assert any("bytes, expected" in line for line in differences(demo_copy))
    path.unlink()
    assert differences(demo_copy) == [f"shards/{path.name}: the file is missing"]
    path.write_bytes(content)
    (demo_copy / "shards" / "train-000007.tar").write_bytes(content)
    (demo_copy / "notes.txt").write_text("mine")
    (demo_copy / "manifests" / "clips" / ".clips.parquet.1.tmp").write_bytes(b"x")
    found = differences(demo_copy)
    assert len(found) == 3
    assert all("no manifest knows this file" in line for line in found)


def test_a_shard_that_was_made_anew_by_something_else(demo_copy, tmp_path):
    """The same members, written by tar: nothing is where the manifests say."""
    (path,) = (demo_copy / "shards").iterdir()
    with tarfile.open(path) as old, tarfile.open(tmp_path / "new.tar", "w") as new:
        for member in sorted(old, key=lambda m: m.name, reverse=True):
            new.addfile(member, old.extractfile(member))
    path.write_bytes((tmp_path / "new.tar").read_bytes())
    found = differences(demo_copy)
    assert any("SHA-256" in line for line in found)
    assert any("expected" in line and "member" in line for line in found)
    assert any("more differences inside" in line for line in found)


@pytest.mark.parametrize(
    ("table", "values", "words"),
    [
        ("clips", {"num_frames": 3}, "not one row for each frame"),
        ("clips", {"yaw_deg": 12.0}, "measurements other than its frames'"),
        ("clips", {"sharpness": 0.001}, "failed rules other than the recipe's"),
        ("clips", {"decision": "reject", "failed_rules": ["yaw"]}, "in a shard, but not kept"),
        ("clips", {"split": "val"}, "of another split"),
        ("clips", {"identity_id": "id_other"}, "identity is"),
        ("clips", {"shard": None}, "kept, but in no shard"),
        ("clips", {"licence": "CC0"}, "licence, attribution or consent other than its source's"),
        ("clips", {"end_frame": 9}, "no track has it as a candidate"),
        ("clips", {"frame_offsets": [512]}, "places for"),
        ("frames", {"frame": 999}, "not one row for each frame"),
        ("frames", {"sharpness": 0.9}, "sharpness is"),
        ("frames", {"lip_openness": 0.9}, "measurements other than its frames'"),
        ("shards", {"num_samples": 1}, "numbers of clips or samples"),
        ("shards", {"licences": ["MIT"]}, "licences other than"),
        ("shards", {"sha256": "0" * 64}, "its SHA-256 is"),
        ("tracks", {"source_id": "0" * 16}, "from no source"),
        ("sources", {"source_id": "0" * 16}, "other than its source's"),
    ],
)
def test_an_altered_row(demo_copy, table, values, words):
    alter(demo_copy, table, **values)
    found = differences(demo_copy)
    assert any(words in line for line in found), found


def test_a_data_set_of_which_nothing_is_left(demo_copy, capsys):
    assert main(["forget", str(demo_copy), "--where", "clip_id IS NOT NULL", "--yes"]) == 0
    assert main(["verify", str(demo_copy)]) == 0, capsys.readouterr().out


def test_frames_that_have_no_file(demo_copy):
    for file in Dataset(demo_copy).table_files("frames"):
        file.unlink()
    assert any("table frames: not one row for each frame" in line for line in differences(demo_copy))


def test_manifests_that_cannot_be_read(demo_copy):
    file = demo_copy / "manifests" / "clips" / "clips.parquet"
    content = bytearray(file.read_bytes())
    file.write_bytes(content[: len(content) // 2])
    assert any("manifests/clips/clips.parquet: cannot be read" in line for line in differences(demo_copy))
    file.unlink()
    assert any("the table has no file" in line for line in differences(demo_copy))


def test_a_table_of_a_later_schema(demo_copy, monkeypatch):
    monkeypatch.setattr("manifests.store.SCHEMA_VERSION", 99)
    replace_table(Dataset(demo_copy), "shards", read_table(Dataset(demo_copy), "shards"))
    monkeypatch.undo()
    assert any("schema version 99" in line for line in differences(demo_copy))


def test_a_recipe_that_was_changed_by_hand(demo_copy):
    file = demo_copy / "recipe.toml"
    file.write_text(file.read_text().replace("max_yaw_deg = 50.0", "max_yaw_deg = 20.0"))
    assert any("recipe.toml: changed by hand" in line for line in differences(demo_copy))


def test_splits_that_share_a_person(demo_copy):
    """Moved as a whole, labels left out: one clip of the one person goes to another split."""
    rows = read_table(Dataset(demo_copy), "clips").to_pylist()
    (first, *_) = [row for row in rows if row["decision"] == "keep"]
    first["split"] = "test"
    replace_table(Dataset(demo_copy), "clips", make_table("clips", rows))
    assert any("an identity in more than one split" in line for line in differences(demo_copy))


def test_what_was_forgotten_must_not_be_there(demo_copy):
    dataset = Dataset(demo_copy)
    clip = next(c for c in read_table(dataset, "clips").to_pylist() if c["shard"])
    (source,) = (s for s in read_table(dataset, "sources").to_pylist() if s["source_id"] == clip["source_id"])
    add_tombstones(dataset, [clip_tombstone(clip, source["content_sha256"])])
    found = "\n".join(differences(demo_copy))
    for table in ("clips", "tracks", "frames"):
        assert f"table {table}: " in found
    add_tombstones(dataset, [source_tombstone(source)])
    found = "\n".join(differences(demo_copy))
    for table in ("sources", "units"):
        assert f"table {table}: " in found
    (demo_copy / "forget.json").write_text("{}")
    assert "forget.json: a removal was interrupted" in "\n".join(differences(demo_copy))


def test_data_sets_of_older_programs_are_sound(demo_copy):
    """Columns and options that came later are missing in them."""
    dataset = Dataset(demo_copy)
    for table, later in (("sources", "consent"), ("clips", "consent"), ("shards", "licences")):
        (file,) = dataset.table_files(table)
        old = read_table(dataset, table)
        write_parquet(file, old.drop_columns([later]))
        assert later not in pq.read_schema(file).names
    text = dataset.recipe_file.read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("licences", "require_consent", "hash"))]
    dataset.recipe_file.write_text("\n".join([lines[0], 'hash = "00000000"', *lines[1:]]) + "\n")
    assert differences(demo_copy) == []
    assert set(TABLES) >= {"tombstones"}


@pytest.mark.parametrize("table", ["clips", "frames", "sources"])
def test_a_flipped_byte_in_a_table(demo_copy, table):
    (file,) = Dataset(demo_copy).table_files(table)
    sound = file.read_bytes()
    group = pq.ParquetFile(file).metadata.row_group(0)
    for number in (0, group.num_columns // 2, group.num_columns - 1):
        column = group.column(number)
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        content = bytearray(sound)
        content[start + column.total_compressed_size - 1] ^= 4
        file.write_bytes(content)
        assert any(f"{file.name}: cannot be read" in line for line in differences(demo_copy)), column.path_in_schema


def test_what_a_late_worker_left_of_what_was_forgotten(tmp_path):
    """Rows and pictures that it committed after `forget`, of sources, clips, the same stretch under another name and
    shards; and decisions about such clips. Of others nothing is said."""
    dataset = Dataset(tmp_path)
    dataset.recipe_file.write_text(recipe_toml(Recipe()))
    place = dict(zip(STRETCH, (0.0, 2.0, 50.0, 50.0, 80.0), strict=True))
    clips = {
        name: {"clip_id": f"{name}_0000000_0", "source_id": name, "analyser": "a"} | place for name in ("s0", "s1")
    }
    recut = clips["s1"] | {"clip_id": "s1_0000009_0", "start_s": 1.0}
    elsewhere = clips["s1"] | {"clip_id": "s1_0000090_0", "start_s": 90.0, "end_s": 92.0}

    def commit(stage: str, unit: str, source_id: str | None, **rows: list[dict]) -> None:
        folder = dataset.staging / f"{stage}-abcd1234"
        commit_unit(folder, stage, {"name": unit, "source_id": source_id}, UnitResult(rows=rows), 1.0, "w")
        if stage == "crop":
            (folder / unit).mkdir()
            for clip in rows["clips"]:
                (folder / unit / f"{clip['clip_id']}.tar").write_bytes(b"pictures")

    source = {"source_id": "s0", "content_sha256": "00"}
    commit("index", "a", None, sources=[source])
    commit("crop", "s0-0000", "s0", clips=[clips["s0"]])
    for unit, clip in (("s1-0000", clips["s1"]), ("s1-0001", recut), ("s1-0002", elsewhere)):
        commit("crop", unit, "s1", clips=[clip | {"embedding": None}])
    commit("pack", "b", None, shards=[], places=[{"clip_id": clip["clip_id"]} for clip in (clips["s1"], elsewhere)])
    commit("pack", "c", None, shards=[], places=[{"clip_id": elsewhere["clip_id"]}])
    replace_table(dataset, "clips", make_table("clips", [clips["s1"] | {"identity_id": "she"}]))
    keep_decisions(dataset)
    (dataset.staging / "crop-abcd1234" / "s2-0000.json").write_text('{"rows"')

    def found() -> list[str]:
        return sorted(line for line in differences(tmp_path) if line.startswith("staging/"))

    assert found() == []
    stones = (source_tombstone(source), clip_tombstone(clips["s1"], ""))
    add_tombstones(dataset, [row | {"request": "r"} for row in stones])
    (damaged,) = (line for line in found() if "s2-0000" in line)
    assert damaged.startswith("staging/crop-abcd1234/s2-0000.json: cannot be read")
    assert [line for line in found() if line != damaged] == [
        "staging/crop-abcd1234/s0-0000.json: rows of what was forgotten",
        "staging/crop-abcd1234/s0-0000/s0_0000000_0.tar: pictures of a forgotten clip",
        "staging/crop-abcd1234/s1-0000.json: rows of what was forgotten",
        "staging/crop-abcd1234/s1-0000/s1_0000000_0.tar: pictures of a forgotten clip",
        "staging/crop-abcd1234/s1-0001.json: rows of what was forgotten",
        "staging/decisions.parquet: names forgotten clips",
        "staging/index-abcd1234/a.json: rows of what was forgotten",
        "staging/pack-abcd1234/b.json: rows of what was forgotten",
    ]
