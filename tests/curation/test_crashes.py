"""A run that dies before any of its changes on disk, at each of them in turn, and is started again.

The stages run in this process, with a stand-in for the networks, so that hundreds of runs take seconds; everything
else is real. A death stops all further changes, clean-up included, as SIGKILL does.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from curation import pipeline
from curation.forget import Request, forget
from curation.recipe import PackOptions, Recipe, SelectOptions
from curation.removal import journal_file
from curation.verify import verify
from manifests.schema import TABLES
from manifests.store import Dataset, read_table

RECIPE = Recipe(pack=PackOptions(shard_bytes=400_000), select=SelectOptions(min_sharpness=None, max_upscale=None))
STRICT = replace(RECIPE, select=replace(RECIPE.select, max_exposure=0.5))


_processes = itertools.count(1_000_000)


class Died(BaseException):
    """What a killed process does not even see."""


def run_until(sources: list[str], output: Path, recipe: Recipe, last_change: int | None) -> int:
    """A run that dies before change number `last_change`; returns how many changes there were until then."""
    return until(lambda: pipeline.run(sources, output, recipe), last_change)


def until(act: Callable[[], object], last_change: int | None) -> int:
    """Does `act` until it dies before change number `last_change`; returns how many changes there were."""
    num_changes = 0
    process = next(_processes)

    def deadly(original):
        def change(*arguments, **options):
            nonlocal num_changes
            if last_change is not None and num_changes >= last_change:
                raise Died
            num_changes += 1
            return original(*arguments, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process)  # names of temporary files
        patch.setattr(os, "replace", deadly(os.replace))
        patch.setattr(Path, "unlink", deadly(Path.unlink))
        patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
        try:
            act()
        except Died:
            assert last_change is not None
    return num_changes


def content_of(folder: Path) -> dict[str, object]:
    dataset = Dataset(folder)
    tables = {name: read_table(dataset, name).to_pylist() for name in TABLES if name not in ("units", "runs")}
    for row in tables["tombstones"]:
        row["forgotten_at"] = None
    tables["frames"].sort(key=lambda row: (row["clip_id"], row["frame"]))
    tables["unit names"] = sorted((u["stage"], u["unit"]) for u in read_table(dataset, "units").to_pylist())
    shards = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(dataset.shards.glob("*"))}
    return tables | {"shard files": shards}


def files_left(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith(".tmp") or "staging" in p.parts or p.name == ".lock"]


EVERY = pytest.mark.parametrize("step", [19, pytest.param(1, marks=pytest.mark.slow)])


@EVERY
def test_first_run_may_die_anywhere(sources, tmp_path, step):
    num_changes = run_until(sources, tmp_path / "undisturbed", RECIPE, None)
    wanted = content_of(tmp_path / "undisturbed")
    assert len(wanted["shard files"]) >= 2
    assert len(wanted["clips"]) == 5
    assert num_changes > 30
    for change in range(0, num_changes, step):
        output = tmp_path / f"died{change}"
        run_until(sources, output, RECIPE, change)
        run_until(sources, output, RECIPE, None)
        assert content_of(output) == wanted, f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        shutil.rmtree(output)


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("then", ["the same again", "back to the first"])
def test_other_thresholds_may_die_anywhere(sources, tmp_path, then, step):
    """Shards are rewritten from shards; then the same thresholds again, or the old ones after all."""
    run_until(sources, tmp_path / "first", RECIPE, None)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    num_changes = run_until(sources, tmp_path / "second", STRICT, None)
    first, second = content_of(tmp_path / "first"), content_of(tmp_path / "second")
    assert sum(clip["decision"] == "keep" for clip in second["clips"]) == 3
    assert first["shard files"] != second["shard files"]
    recipe, wanted = (STRICT, second) if then == "the same again" else (RECIPE, first)
    for change in range(0, num_changes, step):
        output = tmp_path / f"died{change}"
        shutil.copytree(tmp_path / "first", output)
        run_until(sources, output, STRICT, change)
        run_until(sources, output, recipe, None)
        assert content_of(output) == wanted, f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        shutil.rmtree(output)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_no_kept_clip_is_lost_with_its_source(sources, tmp_path, step):
    """A run that writes other shards dies, and one with other thresholds comes next: the old shards are the only place
    of the pictures, and both runs keep them."""
    run_until(sources, tmp_path / "first", RECIPE, None)
    for number in range(5):
        (Path(sources[0]) / f"{number}.png").unlink()
    other_shards = replace(RECIPE, seed=3)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    num_changes = run_until(sources, tmp_path / "second", other_shards, None)
    assert content_of(tmp_path / "first")["shard files"] != content_of(tmp_path / "second")["shard files"]
    wanted = {clip["clip_id"] for clip in content_of(tmp_path / "first")["clips"] if clip["exposure"] <= 0.5}
    assert len(wanted) == 3
    for change in range(0, num_changes, step):
        output = tmp_path / f"died{change}"
        shutil.copytree(tmp_path / "first", output)
        run_until(sources, output, other_shards, change)
        run_until(sources, output, STRICT, None)
        assert clips_in_shards(output) == wanted, f"died before change {change}"
        assert list(verify(Dataset(output))) == [], f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        shutil.rmtree(output)


@EVERY
def test_other_crops_may_die_anywhere(sources, tmp_path, step):
    """A recipe that redoes crop and all that follows."""
    larger = replace(RECIPE, crop=replace(RECIPE.crop, jpeg_quality=80))
    run_until(sources, tmp_path / "first", RECIPE, None)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    num_changes = run_until(sources, tmp_path / "second", larger, None)
    run_until(sources, tmp_path / "fresh", larger, None)
    wanted = content_of(tmp_path / "fresh")
    assert content_of(tmp_path / "second") == wanted, "nothing of the first recipe is left"
    for change in range(0, num_changes, step):
        output = tmp_path / f"died{change}"
        shutil.copytree(tmp_path / "first", output)
        run_until(sources, output, larger, change)
        run_until(sources, output, larger, None)
        assert content_of(output) == wanted, f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        shutil.rmtree(output)


def forget_until(output: Path, request: Request, last_change: int | None) -> int:
    return until(lambda: forget(Dataset(output), request), last_change)


def clips_in_shards(folder: Path) -> set[str]:
    found = set()
    for path in Dataset(folder).shards.glob("*.tar"):
        with tarfile.open(path) as archive:
            found |= {name.rsplit("_", 1)[0] for name in archive.getnames()}
    return found


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("what", "then"),
    [
        ("source", "run"),
        ("identity", "forget"),
        pytest.param("source", "forget", marks=pytest.mark.slow),
        pytest.param("identity", "run", marks=pytest.mark.slow),
    ],
)
def test_forget_may_die_anywhere(sources, tmp_path, what, then, step):
    """The same command again, or any other, ends in the same state."""
    run_until(sources, tmp_path / "first", RECIPE, None)
    clips = read_table(Dataset(tmp_path / "first"), "clips").to_pylist()
    target = next(c for c in clips if c["shard"] == "train-000000.tar")
    requests = {
        "source": Request(sources=(target["source_id"],)),
        "identity": Request(identities=(target["identity_id"],), keep_face=True),
    }
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    num_changes = forget_until(tmp_path / "second", requests[what], None)
    second = content_of(tmp_path / "second")
    assert target["clip_id"] not in clips_in_shards(tmp_path / "second")
    assert 0 < len(second["clips"]) < len(clips)
    assert num_changes > 8
    if then == "run":
        run_until(sources, tmp_path / "second", RECIPE, None)
        second = content_of(tmp_path / "second")
        assert target["clip_id"] not in clips_in_shards(tmp_path / "second"), "it does not come back"
    for change in range(0, num_changes, step):
        output = tmp_path / f"died{change}"
        shutil.copytree(tmp_path / "first", output)
        forget_until(output, requests[what], change)
        if then == "forget" or not (journal_file(Dataset(output)).exists() or read_tombstones(output)):
            forget_until(output, requests[what], None)
        if then == "run":
            run_until(sources, output, RECIPE, None)
        assert content_of(output) == second, f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        assert not journal_file(Dataset(output)).exists()
        shutil.rmtree(output)


def read_tombstones(folder: Path) -> list[dict]:
    return read_table(Dataset(folder), "tombstones").to_pylist()


@EVERY
@pytest.mark.parametrize("second_recipe", [pytest.param(False, marks=pytest.mark.slow), True])
def test_forget_after_a_run_that_died(sources, tmp_path, second_recipe, step):
    """Whatever a run had come to, what is forgotten then is nowhere after the run has been finished."""
    recipe = replace(RECIPE, crop=replace(RECIPE.crop, jpeg_quality=80)) if second_recipe else RECIPE
    run_until(sources, tmp_path / "whole", RECIPE, None)
    wanted = {c["clip_id"] for c in content_of(tmp_path / "whole")["clips"]}
    (source,) = (s for s in content_of(tmp_path / "whole")["sources"] if s["uris"][0].endswith("1.png"))
    gone = {c for c in wanted if c.startswith(source["source_id"])}
    shutil.copytree(tmp_path / "whole", tmp_path / "counted")
    num_changes = run_until(sources, tmp_path / ("counted" if second_recipe else "fresh"), recipe, None)
    num_found = 0
    for change in range(0, num_changes, step):
        output = tmp_path / f"died{change}"
        if second_recipe:
            shutil.copytree(tmp_path / "whole", output)
        run_until(sources, output, recipe, change)
        if not Dataset(output).recipe_file.exists():
            continue
        is_found = forget(Dataset(output), Request(sources=(source["source_id"],)))
        if is_found:
            num_found += 1
            text = " ".join(map(str, output.rglob("*"))) + str([content_of(output)[t] for t in ("clips", "tracks")])
            assert not any(clip_id in text for clip_id in gone), f"died before change {change}"
            assert not clips_in_shards(output) & gone, f"died before change {change}"
        run_until(sources, output, recipe, None)
        left = clips_in_shards(output)
        assert left == (wanted - gone if is_found else wanted), f"died before change {change}"
        assert files_left(output) == [], f"died before change {change}"
        shutil.rmtree(output)
    assert num_found > num_changes / step / 2
