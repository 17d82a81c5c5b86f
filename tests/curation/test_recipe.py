"""Recipes: what may be in one, and what a changed field costs."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest

from curation.recipe import (
    PRESETS,
    CropOptions,
    IndexOptions,
    PackOptions,
    Recipe,
    ScanOptions,
    SelectOptions,
    load_recipe,
    looser_rights,
    recipe_of,
    recipe_toml,
    with_full_paths,
)
from model.faces import FacesConfig

STAGES = ("index", "scan", "crop", "select", "pack")


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return str(path)


def test_default_preset_is_the_defaults():
    assert load_recipe("default") == Recipe()


@pytest.mark.parametrize("name", sorted(p.stem for p in PRESETS.glob("*.toml")))
def test_presets_load_and_come_back_from_toml(name, tmp_path):
    recipe = load_recipe(name)
    text = recipe_toml(recipe)
    assert load_recipe(write(tmp_path, text)) == recipe
    assert tomllib.loads(text)["hash"] == recipe.stage_hash("pack")
    assert recipe_of(tmp_path) == recipe


def test_presets_differ():
    assert load_recipe("lenient").select.min_face_px < Recipe().select.min_face_px
    assert load_recipe("liveportrait").select.min_face_px > Recipe().select.min_face_px


def test_off_switches_come_back_from_toml(tmp_path):
    recipe = Recipe(
        decoder="decord",
        faces=FacesConfig(detector="insightface", weights_dir='odd "name"'),
        select=SelectOptions(max_yaw_deg=None, max_duration_s=4.5, require_licence=True, stills=False),
    )
    assert load_recipe(write(tmp_path, recipe_toml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", r"unknown key 'colour'; valid keys are seed, decoder, faces, index, scan"),
        ("[scan]\nsample_rate = 1", r"\[scan\]: unknown key 'sample_rate'; valid keys are sample_fps, cut_ratio"),
        ("[crop]\nsize_px = 512.5", r"size_px is 512.5, expected int"),
        ("[crop]\nsize_px = true", r"size_px is True, expected int"),
        ('[crop]\nframing = "round"', r"framing is 'round', expected one of fixed, aligned"),
        ('[select]\nmin_face_px = "large"', r"min_face_px is 'large', expected float"),
        ("[select]\nstills = 1", r"stills is 1, expected bool"),
        ('[crop]\nscale = "none"', r"scale is 'none', expected float"),
        ('[index]\nstill_extensions = "jpg"', r"still_extensions is 'jpg', expected"),
        ("[scan]\nmin_clip_s = 9\nmax_clip_s = 8", r"min_clip_s 9.0 is larger than scan.max_clip_s 8.0"),
        ("[crop]\njpeg_quality = 101", r"jpeg_quality is 101, expected 1 to 100"),
        ("[crop]\nfps = 0", r"fps is 0.0, expected 0.01 to 1000"),
        ("[select]\nval_share = 0.6\ntest_share = 0.4", r"val_share \+ select.test_share is 1.0, expected < 1"),
        ("[select]\nmax_yaw_deg = inf", r'select.max_yaw_deg is inf, expected a finite number or "none", which sets'),
        ("[select]\nbalance_pose = -inf", r"select.balance_pose is -inf, expected a finite number$"),
        ("[crop]\nscale = nan", r"crop.scale is nan, expected a finite number$"),
        ("[select]\nmax_yaw_deg = -5", r"max_yaw_deg is -5.0, expected 0 or more"),
        ("[select]\nval_share = -0.1\ntest_share = 0.4", r"val_share is -0.1, expected 0 or more"),
        ("[scan]\ncut_window_frames = 0", r"cut_window_frames is 0, expected more than 0"),
        ("[scan]\nmin_cut_change = -1", r"min_cut_change is -1.0, expected 0 or more"),
        ("[scan]\nmin_presence = 50", r"min_presence is 50.0, expected 0 to 1$"),
        ("[scan]\nmax_size_ratio = 0.6", r"scan.max_size_ratio is 0.6, expected 1 or more"),
        ("[crop]\nsize_px = 4", r"size_px is 4, expected 16 to 8192"),
        ("[crop]\nquality_std = 0", r"quality_std is 0.0, expected more than 0"),
        ("[faces]\nmin_face_size_px = -1", r"min_face_size_px is -1.0: expected 0 or more"),
        ("[index]\nmax_span_s = 1", r"max_span_s 1.0 is less than scan.min_clip_s 1.5: no clip"),
        ("[select]\nmax_outside_fraction = 50", r"max_outside_fraction is 50.0, expected 0 to 1$"),
        ("[select]\nidentity_similarity = 2", r"identity_similarity is 2.0, expected -1 to 1$"),
        ("[select]\nmin_exposure = 0.95", r"min_exposure 0.95 is larger than select.max_exposure 0.92: no clip would"),
        ('[select]\nlicences = ["CC0", " "]', r"a name in select.licences is empty or none: leave the list empty"),
        ("[pack]\nshard_bytes = -1", r"shard_bytes is -1, expected more than 0"),
        ("recipe_version = 99", r"for recipe version 99, this program has version 1: use the checkout"),
        ("scan = 5", r"\[scan\] is 5, expected a section with keys of sample_fps"),
        ("[scan", r"is not valid TOML"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(write(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "recipe.toml"))


def test_scores_that_can_be_negative_may_be():
    options = SelectOptions(min_quality=-2.5, min_identity_similarity=-1.0, min_exposure=0.0, max_motion=None)
    assert Recipe(select=options).select.min_quality == -2.5


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="no recipe 'liveportait': expected one of default, lenient, liveportrait"):
        load_recipe("liveportait")


def test_no_recipe_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder with recipe\.toml"):
        recipe_of(tmp_path)


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"scan": ScanOptions(sample_fps=8.0)}, "scan"),
        ({"decoder": "decord"}, "scan"),
        ({"faces": FacesConfig(min_detection_score=0.7)}, "scan"),
        ({"crop": CropOptions(scale=2.0)}, "scan"),  # the reach of a fixed crop depends on it
        ({"crop": CropOptions(jpeg_quality=90)}, "crop"),
        ({"select": SelectOptions(max_yaw_deg=60.0)}, "select"),
        ({"seed": 3}, "select"),
        ({"pack": PackOptions(shard_bytes=5)}, "pack"),
        ({"faces": FacesConfig(num_threads=4, device="cuda", weights_dir="elsewhere")}, None),
        ({"index": IndexOptions(video_extensions=("mp4",), still_extensions=())}, None),
    ],
)
def test_a_changed_field_changes_its_stage_and_what_follows(changed, first):
    before, after = Recipe(), dataclasses.replace(Recipe(), **changed)
    differs = [stage for stage in STAGES if before.stage_hash(stage) != after.stage_hash(stage)]
    assert differs == ([] if first is None else list(STAGES[STAGES.index(first) :]))


def test_workers_in_other_folders_find_the_networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faces = FacesConfig(root="packs", weights_dir="../open")
    recipe = Recipe(faces=faces, crop=CropOptions(quality_model="quality.onnx"))
    given = with_full_paths(recipe)
    assert (given.faces.root, given.faces.weights_dir) == (f"{tmp_path}/packs", f"{tmp_path.parent}/open")
    assert given.crop.quality_model == f"{tmp_path}/quality.onnx"
    for name in ("", "pyiqa:topiq", "~/quality.onnx", "/quality.onnx"):
        recipe = Recipe(crop=CropOptions(quality_model=name))
        assert with_full_paths(recipe) == recipe


@pytest.mark.parametrize(
    ("before", "after", "is_looser"),
    [
        (("CC-BY",), ("cc-by ",), False),  # names are compared in any case
        (("cc-by", "cc0"), ("CC0",), False),
        (("cc-by",), ("cc-by", "cc0"), True),
        (("cc-by",), (), True),
        ((), ("cc-by",), False),
    ],
)
def test_licences_are_looser_where_more_of_them_are_allowed(before, after, is_looser):
    old, new = (Recipe(select=SelectOptions(licences=licences)) for licences in (before, after))
    assert looser_rights(old, new) == ([f"select.licences {before} -> {after}"] if is_looser else [])


def with_any(options, name: str, value: object):
    """A copy with another value of a field, whatever its own checks say of it."""
    other = object.__new__(type(options))
    for field in dataclasses.fields(options):
        object.__setattr__(other, field.name, value if field.name == name else getattr(options, field.name))
    return other


def test_every_option_is_read_by_a_stage():
    """A field that no stage's hash covers would change nothing on the next run."""
    unchanged = {"faces.weights_dir", "faces.root", "faces.num_threads", "faces.device"}
    unchanged |= {"index.video_extensions", "index.still_extensions"}  # what is listed is a unit of its own
    for section in dataclasses.fields(Recipe):
        value = getattr(Recipe(), section.name)
        if not dataclasses.is_dataclass(value):
            continue
        for field in dataclasses.fields(value):
            changed = with_any(Recipe(), section.name, with_any(value, field.name, "another value"))
            is_covered = changed.stage_hash("pack") != Recipe().stage_hash("pack")
            assert is_covered != (f"{section.name}.{field.name}" in unchanged), f"{section.name}.{field.name}"
