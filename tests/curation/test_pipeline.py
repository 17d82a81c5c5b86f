"""What happens to a finished data set when something changes: thresholds, inputs, files that were lost."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from curation import index, pipeline, scan, worker
from curation.__main__ import main
from curation.decisions import kept_decisions
from curation.demo import make_videos
from curation.recipe import PackOptions, Recipe
from curation.sandbox import FatalError
from curation.select import select
from curation.units import Ledger, UnitResult, commit_unit
from manifests.query import ask
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table
from manifests.views import connect

SMALL_SHARDS = ("--pack.shard-bytes", 3_000_000)


def shards_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "shards").iterdir()}


@pytest.fixture(scope="module")
def made(run_here, tmp_path_factory) -> tuple[Path, Path]:
    """A source list with licences over three made videos, and the data set of it, with several shards."""
    root = tmp_path_factory.mktemp("pipeline")
    make_videos(root / "all")
    (root / "few").mkdir()
    for name in ("sway", "cut", "broken"):
        shutil.move(root / "all" / f"{name}.mp4", root / "few")
    shutil.copy(root / "few" / "sway.mp4", root / "few" / "copy_of_sway.mp4")
    listing = root / "list.csv"
    listing.write_text(
        "uri,licence,attribution,show\nfew/sway.mp4,CC-BY-4.0,Jane Doe,first\nfew/copy_of_sway.mp4,,,\n"
        "few/cut.mp4,,NASA,second\nfew/broken.mp4,CC0,,\n"
    )
    run_here([str(listing)], root / "dataset", Recipe(pack=PackOptions(shard_bytes=int(SMALL_SHARDS[1]))))
    return listing, root / "dataset"


@pytest.fixture
def command_here(without_ray, capfd):
    """The same command in this process; returns what it printed on standard error."""

    def run(*arguments: object, status: int = 0) -> str:
        assert main(["run", *map(str, arguments)]) == status
        return capfd.readouterr().err

    return run


def test_licence_and_provenance_reach_every_clip(made, rows_of):
    sources = {tuple(Path(u).name for u in row["uris"]): row for row in rows_of(made[1], "sources")}
    assert set(sources) == {("copy_of_sway.mp4", "sway.mp4"), ("cut.mp4",), ("broken.mp4",)}, "a copy is no new source"
    clips = {row["source_id"]: row for row in rows_of(made[1], "clips")}
    assert len(clips) == 2
    sway = clips[sources["copy_of_sway.mp4", "sway.mp4"]["source_id"]]
    assert (sway["licence"], sway["attribution"], dict(sway["provenance"])) == (
        "CC-BY-4.0", "Jane Doe", {"show": "first"},
    )  # fmt: skip
    cut = clips[sources[("cut.mp4",)]["source_id"]]
    assert (cut["licence"], cut["attribution"], dict(cut["provenance"])) == (None, "NASA", {"show": "second"})
    assert sources[("broken.mp4",)]["licence"] == "CC0"


def test_clips_that_are_wanted_again_are_cropped_again(made, command_here, rows_of, tmp_path):
    """Stricter: shards are rewritten from shards. Back again: what was dropped comes from its source, bit for bit."""
    output = tmp_path / "dataset"
    shutil.copytree(made[1], output)
    first, clips, frames = shards_of(output), rows_of(output, "clips"), rows_of(output, "frames")
    assert len(first) == 2
    shown = command_here(made[0], "--output", output, *SMALL_SHARDS, "--select.require-licence")
    assert "scan " not in shown
    assert "crop " not in shown
    (kept,) = (clip for clip in rows_of(output, "clips") if clip["decision"] == "keep")
    assert kept["licence"] == "CC-BY-4.0"
    assert len(shards_of(output)) == 1
    shown = command_here(made[0], "--output", output, *SMALL_SHARDS, "--allow-looser-rights")
    assert "scan " not in shown
    assert "recrop 1/1" in shown, "the dropped clip alone"
    assert "0 clips" not in shown
    assert shards_of(output) == first
    assert rows_of(output, "clips") == clips
    assert rows_of(output, "frames") == frames


def test_a_run_that_only_decides_again_says_what_changed(made, without_ray, capsys, tmp_path):
    output = tmp_path / "dataset"
    shutil.copytree(made[1], output)
    arguments = ["run", str(made[0]), "--output", str(output), "--pack.shard-bytes", "3000000"]
    assert main(arguments) == 0
    assert "nothing to do: everything was finished before\n" in capsys.readouterr().out
    for options, change in (
        (["--select.max-weight", "3"], "2 clips kept before, 2 now; 0 shards written, 0 removed, 2 left as they were"),
        (["--select.min-sharpness", "0.9"], "2 clips kept before, 0 now; 0 shards written, 2 removed, 0 left as"),
        ([], "0 clips kept before, 2 now; 2 shards written, 0 removed, 0 left as they were"),
    ):
        assert main([*arguments, *options]) == 0
        shown = capsys.readouterr()
        assert f"changed: {change}" in shown.out
        assert "nothing to do" not in shown.out
    assert "the data set's recipe changes: select.min_sharpness 0.9 -> " in shown.err
    assert "kept clips: 0 before, 2 now\n  newly kept: 2 (failed before: blurred 2)\n" in shown.err
    last = ask(connect(output), "runs").to_arrow_table().to_pylist()[0]
    assert (last["num_kept"], last["num_kept_change"]) == (2, 2)
    assert [change.split(" -> ")[0] for change in last["recipe_changes"]] == ["select.min_sharpness 0.9"]


def test_rights_are_not_loosened_by_leaving_an_option_out(made, without_ray, capsys, tmp_path):
    output = tmp_path / "dataset"
    shutil.copytree(made[1], output)
    command = ["run", str(made[0]), "--output", str(output), *map(str, SMALL_SHARDS)]
    strict = ["--select.require-licence", "--select.licences", "CC-BY-4.0", "CC0"]
    assert main([*command, *strict]) == 0
    first = shards_of(output)
    for options in ([], strict[:1], [*strict, "public domain"]):
        assert main([*command, *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "keeps clips out for their rights" in error
        assert "--recipe" in error
    assert main([*command, *strict[:-1]]) == 0, "fewer licences are stricter"
    assert main([*command, "--recipe", str(output / "recipe.toml")]) == 0
    assert shards_of(output) == first
    assert main([*command, "--allow-looser-rights"]) == 0
    assert len(shards_of(output)) > len(first)


def test_lost_shard_is_written_again(made, command_here, tmp_path):
    output = tmp_path / "dataset"
    shutil.copytree(made[1], output)
    first = shards_of(output)
    next((output / "shards").iterdir()).unlink()
    command_here(made[0], "--output", output, *SMALL_SHARDS)
    assert shards_of(output) == first


def test_more_inputs_are_added(made, command_here, rows_of, tmp_path):
    """Only what is new is read. The rows of the old clips stay as they are, but for the shard that they are in."""
    output = tmp_path / "dataset"
    shutil.copytree(made[1], output)
    before = {clip["clip_id"]: clip for clip in rows_of(output, "clips")}
    shown = command_here(made[0], made[0].parent / "all", "--output", output, *SMALL_SHARDS)
    assert "scan   5/5" in shown
    assert "2 done before" in shown
    after = {clip["clip_id"]: clip for clip in rows_of(output, "clips")}
    assert len(after) == 5
    places = {"shard", "frame_offsets", "frame_sizes", "label_offsets", "label_sizes", "weight"}
    for clip_id, clip in before.items():
        assert {k: v for k, v in clip.items() if k not in places} == {
            k: v for k, v in after[clip_id].items() if k not in places
        }
    assert sorted({f["clip_id"] for f in rows_of(output, "frames")}) == sorted(after)


def test_changed_crop_redoes_crop_and_not_scan(made, command_here, rows_of, tmp_path):
    output = tmp_path / "dataset"
    shutil.copytree(made[1], output)
    tracks = rows_of(output, "tracks")
    shown = command_here(made[0], "--output", output, "--crop.size-px", 256, "--keep-staging")
    assert "the recipe of crop has changed: doing it again" in shown
    assert "scan " not in shown
    assert rows_of(output, "tracks") == tracks
    assert {clip["upscale_factor"] < 1 for clip in rows_of(output, "clips")} == {True}
    staged = {p.stem for p in (output / "staging").glob("crop-*/*/*.tar")}
    assert staged == {clip["clip_id"] for clip in rows_of(output, "clips")}, "asked for, so kept"
    assert len(rows_of(output, "frames")) == sum(clip["num_frames"] for clip in rows_of(output, "clips"))


def test_odd_names_and_pipes_stop_nothing(sources, rows_of, tmp_path):
    (folder,) = sources
    for name in (b"odd\xff", b"odd\xff/bad\xfe.png"):
        path = os.path.join(os.fsencode(folder), name)
        shutil.copy(f"{folder}/0.png", path) if name.endswith(b"png") else os.mkdir(path)
    os.mkfifo(f"{folder}/pipe.png")
    output = tmp_path / "dataset"
    pipeline.run([folder, os.path.join(folder, "odd\udcff")], output, Recipe())
    found = {failure["uri"].removeprefix(folder): failure["reason"] for failure in rows_of(output, "failures")}
    assert found == {"/odd\\xff/bad\\xfe.png": "no_utf8_name", "/pipe.png": "no_regular_file"}
    assert sum(row["status"] == "ok" for row in rows_of(output, "sources")) == 5
    assert rows_of(output, "runs")[0]["inputs"] == [folder, f"{folder}/odd\\xff"]


def test_a_failure_goes_when_its_file_is_there(sources, rows_of, tmp_path):
    """And comes again when it is missing again; failures of other inputs stay."""
    (folder,) = sources
    listing, other = tmp_path / "list.csv", tmp_path / "other.csv"
    listing.write_text("uri\nsources/0.png\nsources/late.png\n")
    other.write_text("uri\nsources/never.png\n")
    output, late = tmp_path / "dataset", Path(folder) / "late.png"

    def failed(*inputs: Path) -> list[str]:
        pipeline.run([str(name) for name in inputs], output, Recipe())
        return [Path(row["uri"]).name for row in rows_of(output, "failures")]

    assert sorted(failed(listing, other)) == ["late.png", "never.png"]
    assert sorted(failed(listing)) == ["late.png", "never.png"]
    shutil.copy(f"{folder}/1.png", late)
    assert failed(listing) == ["never.png"]
    assert sum(row["status"] == "ok" for row in rows_of(output, "sources")) == 2
    late.unlink()
    assert sorted(failed(listing)) == ["late.png", "never.png"]


def test_failures_of_a_replaced_file_go(sources, rows_of, tmp_path, monkeypatch):
    """Also those of later stages, which name the content that is gone."""
    (folder,) = sources
    output = tmp_path / "dataset"

    def find_nothing(stage: scan.ScanStage, unit: dict) -> UnitResult:
        result = UnitResult()
        result.fail("scan", unit, "no_face", "nobody there")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(scan.ScanStage, "process", find_nothing)
        pipeline.run([f"{folder}/0.png", f"{folder}/1.png"], output, Recipe())
    assert [row["reason"] for row in rows_of(output, "failures")] == ["no_face", "no_face"]
    shutil.copy(f"{folder}/2.png", f"{folder}/0.png")
    pipeline.run([f"{folder}/0.png"], output, Recipe())
    (failure,) = rows_of(output, "failures")
    assert failure["uri"] == f"{folder}/1.png"


def test_persons_and_splits_stay_where_a_unit_is_cropped_again(tmp_path):
    """A file with damage that was replaced and put back, say; also where the run was killed before and after it."""
    dataset, recipe = Dataset(tmp_path), Recipe()
    decided = {"identity_id": "id_a", "split_group": "group_a"}
    clip = {"clip_id": "s0_0000000_0", "source_id": "s0", "unit": "s0-0000", "kind": "video", "embedding": [1.0, 0.0]}
    replace_table(dataset, "clips", make_table("clips", [clip | decided]))
    ledger = Ledger(dataset, "crop", recipe.stage_hash("crop"))
    job = pipeline._Job(dataset, recipe, None, SimpleNamespace(enter=lambda *_: None), (), may_lose_clips=False)
    for _ in range(2):
        result = UnitResult(rows={"clips": [clip]})
        commit_unit(ledger.folder, "crop", {"name": "s0-0000", "source_id": "s0"}, result, 0.0, "w")
        job.do("crop", ["s0-0000"], lambda is_wanted: ())
        assert read_table(dataset, "clips")["identity_id"].to_pylist() == [None], "select has not been here yet"
        (kept,) = kept_decisions(dataset).to_pylist()
        assert decided.items() <= kept.items()
    select(dataset, recipe, 0.4)
    assert read_table(dataset, "clips", [*decided]).to_pylist() == [decided]


@pytest.mark.parametrize(("reason", "is_asked"), [("unreadable", False), ("deadline", True)])
def test_failures_that_an_interrupted_run_has_left_are_tried_again(
    sources, rows_of, tmp_path, monkeypatch, reason, is_asked
):
    """By the next run, not by the one after it; what was done beside them is not done again."""
    output, pictures = tmp_path / "dataset", [f"{sources[0]}/{k}.png" for k in range(3)]
    process = index.IndexStage.process

    def fail(stage: index.IndexStage, unit: dict) -> UnitResult:
        if unit["uri"] == pictures[0]:
            return process(stage, unit)
        result = UnitResult()
        result.fail("index", unit, reason if unit["uri"] == pictures[1] else "not_found", "not today")
        return result

    def die(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index.IndexStage, "process", fail)
        patch.setattr(Ledger, "absorb", die)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(pictures, output, Recipe())
    assert pipeline.run(pictures, output, Recipe(), retry_failed=is_asked).num_units == 2 + 3 + 3 + 1
    assert not rows_of(output, "failures")
    assert len(rows_of(output, "clips")) == 3


@pytest.mark.parametrize(("lost", "num_lost"), [("index", 3), ("scan", 3), ("crop", 3), ("pack", 1)])
def test_units_that_are_told_as_done_and_are_not_there_end_the_run(sources, tmp_path, monkeypatch, lost, num_lost):
    """A node that does not see the shared output writes to its own disk."""
    output = tmp_path / "dataset"
    calls = 0

    def commit(folder, stage, *rest):
        nonlocal calls
        calls += stage == lost
        is_lost = stage == lost and calls % 2
        place = tmp_path / "elsewhere" if is_lost else folder
        return commit_unit(place, stage, *rest[:-1], "node7/8" if is_lost else rest[-1])

    with monkeypatch.context() as patch:
        patch.setattr(worker, "commit_unit", commit)
        with pytest.raises(FatalError) as told:
            pipeline.run(sources, output, Recipe())
    said = str(told.value)
    assert said.startswith(f"{lost}: {num_lost} units were told as done by workers on node7, but are not in {output}: ")
    pipeline.run(sources, output, Recipe())
    assert len(list((output / "shards").iterdir())) == 1


def test_nothing_usable_is_status_1(made, command_here, rows_of, tmp_path):
    shown = command_here(made[0].parent / "few" / "broken.mp4", "--output", tmp_path / "out", status=1)
    assert "error: none of the inputs could be used" in shown
    (row,) = rows_of(tmp_path / "out", "sources")
    assert row["status"] == "rejected"
