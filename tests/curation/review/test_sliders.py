"""The sliders of the thresholds in a real browser: what they count, and what they print."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from curation.__main__ import main
from curation.recipe import Recipe, SelectOptions, load_recipe, recipe_of, recipe_toml
from curation.rules import RULES, failed_rules_sql
from curation.select import select
from manifests.store import Dataset, read_table, replace_table


def _clips_of(dataset: Dataset) -> duckdb.DuckDBPyConnection:
    db = duckdb.connect()
    db.register("clips", read_table(dataset, "clips"))
    return db


def _survivors(db: duckdb.DuckDBPyConnection, options: SelectOptions) -> tuple[int, float]:
    """Clips and hours that pass all rules, by the statement that decides."""
    passed = f"len({failed_rules_sql(options)}) = 0"
    return db.execute(f"SELECT count(*), coalesce(sum(duration_s), 0) / 3600 FROM clips WHERE {passed}").fetchone()


def _costs(db: duckdb.DuckDBPyConnection, options: SelectOptions, rule: str) -> tuple[int, int]:
    """Clips that a rule rejects, and those that only it does; copies are those of the last select, as the page says."""
    return db.execute(
        "SELECT count(*) FILTER (list_contains(failed, $rule)), count(*) FILTER (failed = [$rule])"
        f" FROM (SELECT {failed_rules_sql(options)} AS failed FROM clips)",
        {"rule": rule},
    ).fetchone()


def _shown_costs(page: Any, rule: str) -> tuple[int, int]:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    text = page.locator(".rule", has=page.locator(f"[data-rule={rule}]")).locator(".costs").inner_text()
    return (0, 0) if text == "rejects none" else tuple(int(word.strip(",")) for word in text.split()[1::3])


def _with_gaps(measured: Path, folder: Path) -> Dataset:
    """A copy of the data set in which every third measure is unknown, and some are not numbers."""
    shutil.copytree(measured, folder)
    dataset = Dataset(folder)
    clips = read_table(dataset, "clips")
    for number, name in enumerate(("sharpness", "motion", "presence_p10", "upscale_factor", "quality", "kind")):
        values = clips[name].to_pylist()
        for k in range(number, len(values), 3):
            values[k] = None
        if pa.types.is_floating(clips.schema.field(name).type):
            values[1 + number] = math.nan
        field = clips.schema.field(name)
        clips = clips.set_column(clips.schema.get_field_index(name), field, pa.array(values, field.type))
    replace_table(dataset, "clips", clips)
    return dataset


def test_sliders_count_what_select_would_keep(measured: Path, tmp_path: Path, visit: Callable[..., Any]) -> None:
    """Every rule with a threshold, at and around measured values, with unknown values and such that are no numbers."""
    dataset = _with_gaps(measured, tmp_path / "gaps")
    seen, db = visit(dataset.root), _clips_of(dataset)
    page = seen.page
    page.click("#tab-thresholds")
    options = recipe_of(dataset.root).select
    assert seen.count("#survivors") == _survivors(db, options)[0]
    clips = read_table(dataset, "clips")
    counts = set()
    rules = [r for r in RULES if "<= {value}" in r.condition or ">= {value}" in r.condition]
    assert len(rules) >= 22
    for rule in rules:
        column = next((n for n in clips.column_names if n != "kind" and n in rule.condition.split()), "duration_s")
        values = sorted(v for v in clips[column].to_pylist() if v is not None and v == v) or [0.5]
        for threshold in (values[len(values) // 3], values[-len(values) // 4] + 1e-7, 1e-05):
            try:
                changed = replace(options, **{rule.option: float(threshold)})
            except ValueError:
                continue  # `select` refuses it: no clip could pass
            page.fill(f"input[type=number][data-rule={rule.name}]", repr(float(threshold)))
            expected = _survivors(db, changed)[0]
            assert seen.count("#survivors") == expected, (rule.name, threshold)
            counts.add(expected)
        assert _shown_costs(page, rule.name) == _costs(db, changed, rule.name)
        page.uncheck(f"input[type=checkbox][data-rule={rule.name}]")
        assert seen.count("#survivors") == _survivors(db, replace(options, **{rule.option: None}))[0]
        if page.is_enabled("#reset-thresholds"):
            page.click("#reset-thresholds")
    assert len(counts) > 20


def test_sliders_leave_alone_what_was_decided_by_hand(
    measured: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    dataset = Dataset(shutil.copytree(measured, tmp_path / "by_hand"))
    ids = read_table(dataset, "clips")["clip_id"].to_pylist()
    options = replace(recipe_of(dataset.root).select, keep_clips=tuple(ids[:9]), reject_clips=tuple(ids[9:18]))
    dataset.recipe_file.write_text(recipe_toml(Recipe(select=options)))
    select(dataset, Recipe(select=options), 0.5)
    db = _clips_of(dataset)
    page = (seen := visit(dataset.root)).page
    page.click("#tab-thresholds")
    assert seen.count("#survivors") == _survivors(db, options)[0] > 9
    page.fill("input[type=number][data-rule=yaw]", "0.5")
    assert seen.count("#survivors") == _survivors(db, replace(options, max_yaw_deg=0.5))[0] > 0
    assert "rejected by hand" in page.inner_text("#thresholds")


def test_switches_choices_and_several_sliders_at_once(measured: Path, visit: Callable[..., Any]) -> None:
    seen, db = visit(measured), _clips_of(Dataset(measured))
    page = seen.page
    page.click("#tab-thresholds")
    options = recipe_of(measured).select
    page.check("[data-rule=no_licence]")
    options = replace(options, require_licence=True)
    assert seen.count("#survivors") == _survivors(db, options)[0]
    page.fill("input[type=number][data-rule=blurred]", "0.12")
    page.fill("input[type=number][data-rule=yaw]", "25.5")
    page.uncheck("input[type=checkbox][data-rule=face_covered]")
    page.check("input[value='cc0-1.0']")
    options = replace(options, min_sharpness=0.12, max_yaw_deg=25.5, min_presence=None, licences=("cc0-1.0",))
    num, hours = _survivors(db, options)
    assert seen.count("#survivors") == num > 0
    assert page.inner_text("#surviving-hours") == f"{hours * 60:.1f} min"
    lines = page.inner_text("#recipe-lines").splitlines()
    assert lines[0] == "[select]"
    assert set(lines[1:]) == {
        *("require_licence = true", "min_sharpness = 0.12", "max_yaw_deg = 25.5", 'min_presence = "none"'),
        'licences = ["cc0-1.0"]',
    }
    page.click("#show-changes")
    survives = f"len({failed_rules_sql(options)}) = 0"
    changes = db.execute(f"SELECT count(*) FROM clips WHERE (decision = 'keep') <> ({survives})").fetchone()
    num_changed = changes[0]
    assert seen.count("#clip-count") == num_changed > 0


def test_the_count_is_about_where_the_best_copy_falls(measured: Path, visit: Callable[..., Any]) -> None:
    rows = {row["clip_id"]: row for row in read_table(Dataset(measured), "clips").to_pylist()}
    pairs = [(row["sharpness"], rows[row["duplicate_of"]]["sharpness"]) for row in rows.values() if row["duplicate_of"]]
    copy, best = max(pairs, key=lambda pair: pair[0] - pair[1])
    assert copy > best
    page = visit(measured).page
    page.click("#tab-thresholds")
    about, slider = page.locator("#thresholds .about"), "input[type=number][data-rule=blurred]"
    assert about.count() == 2
    assert not about.first.is_visible()
    page.fill(slider, repr((copy + best) / 2))
    assert about.first.is_visible()
    assert about.last.is_visible()
    page.check("[data-rule=duplicate]")
    assert not about.first.is_visible(), "copies are kept, so the count is exact"
    page.uncheck("[data-rule=duplicate]")
    page.fill(slider, "1000")
    assert not about.first.is_visible(), "the copies fall, too"


def test_what_the_command_would_refuse_is_not_offered(
    licensed: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    page = (seen := visit(licensed)).page
    page.click("#tab-thresholds")
    kept = seen.count("#survivors")
    yaw, similarity = (f"input[type=number][data-rule={rule}]" for rule in ("yaw", "identity_changes"))
    page.fill(yaw, "-5")
    assert page.inner_text("#recipe-lines").startswith("#"), "an angle below 0 is none"
    page.fill(yaw, "")
    page.locator(yaw).blur()
    assert page.input_value(yaw) == str(recipe_of(licensed).select.max_yaw_deg).removesuffix(".0")
    assert seen.count("#survivors") == kept
    page.fill(similarity, "-0.5")
    assert page.inner_text("#recipe-lines").splitlines()[1:] == ["min_identity_similarity = -0.5"]
    assert page.inner_text("#command").endswith("--select.min-identity-similarity -0.5")
    page.check("input[value='-evil']")
    assert page.inner_text("#command").splitlines() == [
        '# no command: it would take "-evil" for an option. '
        "Put the recipe lines into a copy of recipe.toml, for run --recipe"
    ]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(page.inner_text("#recipe-lines"))
    options = load_recipe(str(recipe)).select
    assert "-evil" in options.licences
    assert options.min_identity_similarity == -0.5
    page.uncheck("input[value='-evil']")
    assert page.inner_text("#command").startswith("python -m curation select")


def test_the_printed_lines_and_command_do_what_the_sliders_showed(
    demo_copy: Path, tmp_path: Path, visit: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line, word for word, and the recipe lines, as TOML, give the thresholds that were set."""
    seen = visit(demo_copy)
    page = seen.page
    page.click("#tab-thresholds")
    page.fill("input[type=number][data-rule=face_too_small]", "90")
    page.fill("input[type=number][data-rule=blurred]", "0.0125")
    page.uncheck("input[type=checkbox][data-rule=upscaled]")
    page.uncheck("[data-rule=still]")
    shown = seen.count("#survivors")
    expected = {"min_face_px": 90.0, "min_sharpness": 0.0125, "max_upscale": None, "stills": False}
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(page.inner_text("#recipe-lines"))
    options = load_recipe(str(recipe)).select
    assert {name: getattr(options, name) for name in expected} == expected
    words = page.inner_text("#command").replace("\\\n", " ").split()
    assert words[:3] == ["python", "-m", "curation"]
    assert main(words[3:]) == 0
    capsys.readouterr()
    decided = recipe_of(demo_copy).select
    defaults = load_recipe("default").select
    changed = {f.name for f in fields(SelectOptions) if getattr(decided, f.name) != getattr(defaults, f.name)}
    assert {name: getattr(decided, name) for name in changed} == expected
    decisions = read_table(Dataset(demo_copy), "clips")["decision"].to_pylist()
    assert decisions.count("keep") == shown
