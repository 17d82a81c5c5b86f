"""What becomes a source: every way to name inputs, and every kind of file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.fetching import local_copy
from curation.index import IndexStage, list_inputs
from curation.places import hash_file, merge_sources
from curation.recipe import IndexOptions, Recipe, ScanOptions
from model.video import VideoWriter

OPTIONS = IndexOptions()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Two seconds of a moving gradient."""
    path = tmp_path_factory.mktemp("index") / "made.mp4"
    ramp = np.tile(np.arange(160, dtype=np.uint8), (120, 1))
    with VideoWriter(path, 25) as writer:
        for k in range(50):
            writer.write(np.stack([np.roll(ramp, k, axis=1)] * 3, axis=-1))
    return path


@pytest.fixture
def folder(tmp_path, video) -> Path:
    """videos/a.mp4, videos/deep/B.MP4, videos/still.png, videos/notes.txt"""
    made = tmp_path / "videos"
    (made / "deep").mkdir(parents=True)
    shutil.copy(video, made / "a.mp4")
    shutil.copy(video, made / "deep" / "B.MP4")
    Image.new("RGB", (40, 30), "red").save(made / "still.png")
    (made / "notes.txt").write_text("no video")
    return made


def names(inputs) -> list[str]:
    return [Path(unit["uri"]).name for unit in list_inputs([str(i) for i in inputs], OPTIONS)]


def index_one(path: Path, **columns: str) -> dict:
    (unit,) = list_inputs([str(path)], OPTIONS)
    return said_of(unit | {"columns": columns})


def said_of(unit: dict) -> dict:
    (row,) = merge_sources(IndexStage(Recipe(), Path()).process(unit).rows["sources"])
    return row


def test_folder_is_searched_below(folder):
    assert names([folder]) == ["a.mp4", "B.MP4", "still.png"]


def test_endings_are_taken_with_a_dot_and_in_capitals(folder):
    options = IndexOptions(video_extensions=(".MP4", "*.WebM"), still_extensions=(".gif",))
    assert options == IndexOptions(video_extensions=("mp4", "webm"), still_extensions=("gif",))
    assert [Path(unit["uri"]).name for unit in list_inputs([str(folder)], options)] == ["a.mp4", "B.MP4"]


def test_glob_and_single_file(folder):
    assert names([folder / "*.mp4"]) == ["a.mp4"]
    assert names([folder / "**" / "*.[mM][pP]4"]) == ["a.mp4", "B.MP4"]
    assert names([folder / "notes.txt"]) == ["notes.txt"], "a named file is tried whatever its ending"


@pytest.mark.parametrize("kind", ["folder", "glob", "memory"])
def test_data_sets_in_a_folder_are_no_sources(folder, capsys, kind):
    """Neither the pictures of their reports nor any others; twice named is once said."""
    other = folder / "deep" / "set"
    for file in ("recipe.toml", "manifests/runs/runs.parquet", "report/strips/x.jpg"):
        (other / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "still.png", other / file)
    shutil.copy(folder / "still.png", folder / "recipe.toml")
    text, expected = str(folder), ["a.mp4", "B.MP4", "still.png"]
    if kind == "glob":
        text, expected = f"{folder}/**/*.[jp][pn]g", ["still.png"]
    elif kind == "memory":
        fsspec.filesystem("memory").put(str(folder), "/of_sets/", recursive=True)
        text = "memory://of_sets"
    units = list_inputs([text, text], OPTIONS)
    assert [Path(unit["uri"]).name for unit in units] == expected
    place = "memory:///of_sets/videos/deep/set" if kind == "memory" else other
    assert capsys.readouterr().err.count(f"data sets among the inputs are left out: {place}\n") == 1
    assert names([other / "report"]) == ["x.jpg"], "named by the user"
    with pytest.raises(ValueError, match="set is a data set: name the folder of its sources"):
        list_inputs([str(other)], OPTIONS)


def test_only_regular_files_are_read(folder, video):
    """A pipe in a folder costs itself only; links are followed, except to folders."""
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to(video)
    (folder / "dead.mp4").symlink_to(folder / "nowhere")
    (folder / "deep.mp4").symlink_to(folder / "deep")
    (folder / "piped.mp4").symlink_to(folder / "pipe.mp4")
    expected = ["a.mp4", "dead.mp4", "link.mp4", "pipe.mp4", "piped.mp4"]
    assert names([folder / "*.mp4"]) == expected
    units = {Path(unit["uri"]).name: unit for unit in list_inputs([str(folder)], OPTIONS)}
    assert sorted(units) == sorted([*expected, "B.MP4", "still.png"])
    assert {name for name, unit in units.items() if "problem" in unit} == {"pipe.mp4", "piped.mp4"}
    (failure,) = IndexStage(Recipe(), folder).process(units["pipe.mp4"]).rows["failures"]
    assert (failure["reason"], failure["uri"]) == ("no_regular_file", str(folder / "pipe.mp4"))
    assert units["link.mp4"]["expected_s"] == units["a.mp4"]["expected_s"]


def test_a_name_that_is_no_utf8_costs_itself_only(folder):
    bad = os.fsencode(folder) + b"/bad\xff.mp4"
    shutil.copy(folder / "a.mp4", bad)
    units = list_inputs([str(folder)], OPTIONS)
    assert ["problem" in unit for unit in units] == [False, True, False, False]
    (failure,) = IndexStage(Recipe(), folder).process(units[1]).rows["failures"]
    assert (failure["reason"], failure["uri"]) == ("no_utf8_name", f"{folder}/bad\\xff.mp4")
    assert list_inputs([os.fsdecode(bad)], OPTIONS) == units[1:2], "as a shell names it for *"


def test_a_pipe_or_folder_in_a_list_costs_itself_only(folder):
    os.mkfifo(folder / "pipe.mp4")
    listing = folder.parent / "list.csv"
    listing.write_text("uri\nvideos/a.mp4\nvideos/deep\nvideos/pipe.mp4\n")
    assert ["problem" in unit for unit in list_inputs([str(listing)], OPTIONS)] == [False, True, True]


def test_name_with_glob_characters_is_a_name(folder):
    shutil.copy(folder / "a.mp4", folder / "take[1].mp4")
    assert names([folder / "take[1].mp4"]) == ["take[1].mp4"]


def test_fsspec_urls(folder):
    assert names([f"file://{folder}/a.mp4"]) == ["a.mp4"]
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/raw/x.mp4", b"not really")
    memory.pipe_file("/bucket/raw/x.txt", b"no")
    units = list_inputs(["memory://bucket/raw"], OPTIONS)
    assert [u["uri"] for u in units] == ["memory:///bucket/raw/x.mp4"]
    with local_copy(units[0]["uri"]) as path:
        assert Path(path).read_bytes() == b"not really"
        assert path.endswith(".mp4")
    assert not Path(path).exists()


def test_inputs_named_twice_are_listed_once(folder):
    assert names([folder, folder / "a.mp4", folder / "*.mp4"]) == ["a.mp4", "B.MP4", "still.png"]


def test_relative_path_is_the_same_unit(folder, monkeypatch):
    absolute = list_inputs([str(folder / "a.mp4")], OPTIONS)
    monkeypatch.chdir(folder.parent)
    assert list_inputs(["videos/a.mp4"], OPTIONS) == absolute


def test_dots_in_a_path_are_no_part_of_its_name(folder, monkeypatch):
    plain = list_inputs([str(folder / "a.mp4")], OPTIONS)
    monkeypatch.chdir(folder / "deep")
    for text in ("../a.mp4", "../deep/./../a.mp4", f"{folder}/deep/../a.mp4", "file://" + f"{folder}/deep/../a.mp4"):
        assert list_inputs([text], OPTIONS) == plain
    listing = folder / "deep" / "list.csv"
    listing.write_text("uri\n../a.mp4\n")
    assert list_inputs(["list.csv"], OPTIONS)[0]["uri"] == plain[0]["uri"]


def test_dots_behind_a_link_keep_their_meaning(folder):
    (folder.parent / "link").symlink_to(folder / "deep")
    (unit,) = list_inputs([f"{folder.parent}/link/../a.mp4"], OPTIONS)
    assert unit["uri"] == f"{folder.parent}/link/../a.mp4"


def test_blanks_and_the_home_folder_in_a_list(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    listing = folder.parent / "list.csv"
    listing.write_text("uri\n  ~/a.mp4\nvideos/deep/B.MP4 \n")
    units = list_inputs([str(listing)], OPTIONS)
    assert [unit["uri"] for unit in units] == [f"{folder}/a.mp4", f"{folder}/deep/B.MP4"]


def test_unit_changes_with_the_file(folder):
    before = list_inputs([str(folder)], OPTIONS)
    assert list_inputs([str(folder)], OPTIONS) == before
    with open(folder / "a.mp4", "ab") as file:
        file.write(b"more")
    after = list_inputs([str(folder)], OPTIONS)
    assert [a["name"] != b["name"] for a, b in zip(before, after, strict=True)] == [True, False, False]


def test_csv_list_carries_its_columns(folder):
    listing = folder.parent / "list.csv"
    listing.write_text(
        "\ufeffuri,licence,attribution,show,empty\nvideos/a.mp4,CC-BY-4.0,\"Doe, Jane\",one,\n"
        f"{folder}/deep/B.MP4,CC0,,two,\n", encoding="utf-8",
    )  # fmt: skip
    units = list_inputs([str(listing)], OPTIONS)
    assert [Path(u["uri"]).name for u in units] == ["a.mp4", "B.MP4"]
    assert units[0]["columns"] == {"licence": "CC-BY-4.0", "attribution": "Doe, Jane", "show": "one"}
    row = said_of(units[0])
    assert (row["status"], row["licence"], row["attribution"], row["provenance"]) == (
        "ok", "CC-BY-4.0", "Doe, Jane", {"show": "one"},
    )  # fmt: skip


def test_quoted_line_break_in_a_csv_list(folder):
    listing = folder.parent / "list.csv"
    listing.write_text('uri,attribution\nvideos/a.mp4,"Jane Doe\nand others"\n')
    (unit,) = list_inputs([str(listing)], OPTIONS)
    assert unit["columns"] == {"attribution": "Jane Doe\nand others"}


def test_parquet_list(folder, monkeypatch):
    pq.write_table(
        pa.table({"uri": ["videos/a.mp4"], "license": ["CC0"], "year": [1999]}), folder.parent / "list.parquet"
    )
    monkeypatch.chdir(folder.parent)
    (unit,) = list_inputs(["list.parquet"], OPTIONS)
    row = said_of(unit)
    assert (row["licence"], row["provenance"]) == ("CC0", {"year": "1999"})


def test_columns_with_a_meaning_are_known_in_any_case(folder):
    listing = folder.parent / "list.csv"
    listing.write_text("URI, License ,Attribution,CONSENT,Show\nvideos/a.mp4,CC0,Jane,form 7,One\n")
    (unit,) = list_inputs([str(listing)], OPTIONS)
    assert unit["columns"] == {"licence": "CC0", "attribution": "Jane", "consent": "form 7", "Show": "One"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("uri,licence,Licence,a", "2 columns 'licence': 'licence', 'Licence'; leave one"),
        ("Uri,uri ,licence,a", "2 columns 'uri': 'Uri', 'uri '; leave one"),
        ("uri,consent,consent,consent", "3 columns 'consent'"),
    ],
)
def test_two_columns_of_one_meaning_are_refused(folder, header, message):
    listing = folder.parent / "list.csv"
    listing.write_text(f"{header}\nvideos/a.mp4,b,c,d\n")
    with pytest.raises(ValueError, match=message):
        list_inputs([str(listing)], OPTIONS)


def test_list_that_names_a_missing_file_keeps_it(folder):
    """One dead line does not stop a list of thousands: that file fails alone when it is read."""
    listing = folder.parent / "list.csv"
    listing.write_text("uri\nvideos/a.mp4\nvideos/gone.mp4\n")
    units = list_inputs([str(listing)], OPTIONS)
    assert [Path(u["uri"]).name for u in units] == ["a.mp4", "gone.mp4"]
    (failure,) = IndexStage(Recipe(), folder).process(units[1]).rows["failures"]
    assert (failure["reason"], failure["uri"]) == ("not_found", f"{folder}/gone.mp4")


def test_list_in_a_bucket(flaky_s3, s3, video):
    """Its rows are relative to it, also with dots, and cost a request each."""
    flaky_s3.failed_share = 0.0
    s3.upload_file(str(video), "data", "raw/videos/a.mp4")
    uris = ["../videos/a.mp4", "./gone.mp4", "../../../data/b.mp4", "s3://nowhere/c.mp4", str(video)]
    s3.put_object(Bucket="data", Key="raw/lists/list.csv", Body="\n".join(["uri", *uris]).encode())
    units = {unit["uri"]: unit for unit in list_inputs(["s3://data/raw/lists/list.csv"], OPTIONS)}
    assert sorted(units) == [
        *(str(video), "s3://data/data/b.mp4", "s3://data/raw/lists/gone.mp4", "s3://data/raw/videos/a.mp4"),
        "s3://nowhere/c.mp4",
    ]
    assert sum("/raw/videos/a.mp4" in path for _, path in flaky_s3.requests) == 1
    stage = IndexStage(Recipe(), video.parent)
    assert stage.process(units["s3://data/raw/videos/a.mp4"]).rows["sources"][0]["status"] == "ok"
    for gone in ("s3://data/raw/lists/gone.mp4", "s3://nowhere/c.mp4"):
        assert stage.process(units[gone]).rows["failures"][0]["reason"] == "not_found"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "no such file or folder: .*nowhere"),
        ("empty", r"nothing to curate in .*empty: no file with a known ending, .* \(0 files in all\)"),
        ("texts", r"nothing to curate in .*texts: no file with a known ending, .* \(1 files in all\)"),
        ("videos/*.xyz", r"nothing to curate in .*\*\.xyz: no file matches it"),
        ("bad.csv", r"bad\.csv is no source list: expected a column 'uri', got \['path'\]"),
        ("none.csv", "none.csv is no source list: expected a column 'uri', got no rows"),
        ("gap.csv", r"gap\.csv: row 2 has no uri"),
        ("latin.csv", r"latin\.csv cannot be read as a source list: .*utf-8"),
        ("broken.parquet", r"broken\.parquet cannot be read as a source list"),
        ("pipe", r"pipe cannot be curated: expected a regular file, got a pipe"),
    ],
)
def test_wrong_inputs_say_what_is_wrong(folder, text, message):
    root = folder.parent
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    os.mkfifo(root / "pipe")
    (root / "texts" / "a.txt").write_text("x")
    (root / "bad.csv").write_text("path\na.mp4\n")
    (root / "none.csv").write_text("uri\n")
    (root / "gap.csv").write_text("uri,show\nvideos/a.mp4,x\n,y\n")
    (root / "latin.csv").write_bytes("uri,show\nvideos/a.mp4,Caf\xe9\n".encode("latin-1"))
    (root / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=message):
        list_inputs([str(root / text)], OPTIONS)


@pytest.mark.parametrize(("url", "said"), [("s3://", "names no bucket"), ("gs://bucket/a.mp4", "install gcsfs")])
def test_urls_that_lead_nowhere_say_what_is_wrong(tmp_path, url, said):
    listing = tmp_path / "list.csv"
    listing.write_text(f"uri\n{url}\n")
    for text in (url, str(listing)):
        with pytest.raises(ValueError, match=said):
            list_inputs([text], OPTIONS)


def test_video_row(video):
    row = index_one(video)
    assert {k: row[k] for k in ("kind", "status", "codec", "width_px", "height_px", "fps", "num_frames")} == {
        "kind": "video", "status": "ok", "codec": "h264", "width_px": 160, "height_px": 120, "fps": 25.0,
        "num_frames": 50,
    }  # fmt: skip
    assert row["duration_s"] == pytest.approx(2.0, abs=0.05)
    assert row["spans"] == [{"start_frame": 0, "start_pts": None, "end_pts": None}]
    assert row["source_id"] == row["content_sha256"][:16] == hash_file(str(video))[:16]


def test_long_video_is_divided_into_even_spans(video):
    from model.video import open_video

    (unit,) = list_inputs([str(video)], OPTIONS)
    recipe = Recipe(index=IndexOptions(max_span_s=0.6), scan=ScanOptions(min_clip_s=0.5))
    spans = IndexStage(recipe, video.parent).process(unit).rows["sources"][0]["spans"]
    assert len(spans) == 4
    assert spans[0]["start_pts"] is None
    assert spans[-1]["end_pts"] is None
    assert [s["end_pts"] for s in spans[:-1]] == [s["start_pts"] for s in spans[1:]]
    seen = []
    for span in spans:
        with open_video(str(video)) as reader:
            frames = reader.frames(
                start_pts=span["start_pts"], end_pts=span["end_pts"], first_index=span["start_frame"]
            )  # fmt: skip
            seen.append([f.index for f in frames])
    assert [k for part in seen for k in part] == list(range(50)), "no frame twice, none missing"
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [(b"", "video", "empty_file"), (b"not a video at all" * 50, "video", None), (b"\x89PNG\r\n\x1a\nxx", None, None)],
)
def test_broken_files_are_rows_with_a_reason(tmp_path, content, kind, reason):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    row = index_one(path)
    assert row["status"] == "rejected"
    assert row["reason"]
    assert len(row["detail"].split()) > 3
    assert kind is None or row["kind"] == kind
    assert reason is None or row["reason"] == reason


def test_same_content_twice_is_one_source(folder):
    rows = [index_one(folder / "deep" / "B.MP4", show="two"), index_one(folder / "a.mp4", licence="CC0")]
    other = index_one(folder / "still.png")
    merged = merge_sources([*rows, other])
    assert [row["kind"] for row in merged] == ["video", "still"]
    assert merged[0]["uris"] == [str(folder / "a.mp4"), str(folder / "deep" / "B.MP4")]
    assert (merged[0]["licence"], merged[0]["provenance"]) == ("CC0", {"show": "two"})
    again = merge_sources([other, *rows[::-1], index_one(folder / "a.mp4", licence="CC0")])
    assert sorted(again, key=lambda r: r["kind"]) == sorted(merged, key=lambda r: r["kind"])


def test_what_was_found_last_is_right(folder):
    """Rows of an earlier run come first: its spans and its licence give way, its places stay."""
    old = [index_one(folder / "a.mp4", licence="unclear"), index_one(folder / "deep" / "B.MP4")]
    (before,) = merge_sources(old)
    new = index_one(folder / "a.mp4", licence="CC0") | {"spans": [{"start_frame": 1}]}
    (merged,) = merge_sources([before, new])
    assert merged["licence"] == "CC0"
    assert merged["spans"] == [{"start_frame": 1}]
    assert len(merged["uris"]) == 2


def test_file_that_was_replaced_is_another_source(folder):
    """Nothing may be cropped from it under the old name."""
    old = merge_sources([index_one(folder / "a.mp4"), index_one(folder / "deep" / "B.MP4")])
    with open(folder / "a.mp4", "ab") as file:
        file.write(b"more")
    first = {row["source_id"]: row for row in merge_sources([*old, index_one(folder / "a.mp4")])}
    assert len(first) == 2
    assert first[old[0]["source_id"]]["uris"] == [str(folder / "deep" / "B.MP4")]
    assert {row["status"] for row in first.values()} == {"ok"}
    shutil.copy(folder / "a.mp4", folder / "deep" / "B.MP4")
    second = {row["source_id"]: row for row in merge_sources([*first.values(), index_one(folder / "deep" / "B.MP4")])}
    gone = second.pop(old[0]["source_id"])
    assert (gone["status"], gone["reason"]) == ("rejected", "replaced")
    (left,) = second.values()
    assert left["uris"] == [str(folder / "a.mp4"), str(folder / "deep" / "B.MP4")]
