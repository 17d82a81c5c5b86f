"""Each rule alone on clips that just pass and just fail, and the list of all rules that a clip fails."""

from __future__ import annotations

from dataclasses import replace

import duckdb
import pytest

from curation.recipe import SelectOptions
from curation.rules import RULES, active_rules, failed_rules_sql
from manifests.schema import make_table

_ON = ("require_licence", "stills", "reject_clips")
OFF = replace(SelectOptions(), **{r.option: None for r in RULES if r.option not in _ON})

CASES = [  # rule, options, a clip that passes, a clip that fails
    ("face_too_small", {"min_face_px": 120.0}, {"face_height_median_px": 120.0}, {"face_height_median_px": 119.0}),
    ("face_small_at_times", {"min_face_p05_px": 80.0}, {"face_height_px": 80.0}, {"face_height_px": 79.0}),
    ("upscaled", {"max_upscale": 3.0}, {"upscale_factor": 3.0}, {"upscale_factor": 3.1}),
    ("detection_unsure", {"min_detection_score": 0.75}, {"detection_score": 0.75}, {"detection_score": 0.7}),
    ("face_covered", {"min_presence": 0.5}, {"presence_p10": 0.5}, {"presence_p10": 0.4}),
    ("yaw", {"max_yaw_deg": 50.0}, {"yaw_abs_p95_deg": 50.0}, {"yaw_abs_p95_deg": 51.0}),
    ("pitch", {"max_pitch_deg": 40.0}, {"pitch_abs_p95_deg": 40.0}, {"pitch_abs_p95_deg": 41.0}),
    ("roll", {"max_roll_deg": 35.0}, {"roll_abs_p95_deg": 35.0}, {"roll_abs_p95_deg": 36.0}),
    ("blurred", {"min_sharpness": 0.0625}, {"sharpness": 0.0625}, {"sharpness": 0.0620}),
    ("too_dark", {"min_exposure": 0.125}, {"exposure": 0.125}, {"exposure": 0.12}),
    ("too_bright", {"max_exposure": 0.875}, {"exposure": 0.875}, {"exposure": 0.9}),
    ("black_areas", {"max_dark_fraction": 0.5}, {"dark_fraction": 0.5}, {"dark_fraction": 0.51}),
    ("burnt_out", {"max_bright_fraction": 0.5}, {"bright_fraction": 0.5}, {"bright_fraction": 0.51}),
    ("too_short", {"min_duration_s": 1.5}, {"kind": "video", "duration_s": 1.5}, {"kind": "video", "duration_s": 1.4}),
    ("too_long", {"max_duration_s": 10.0}, {"duration_s": 10.0}, {"duration_s": 10.1}),
    ("unstable_landmarks", {"max_landmark_jitter": 0.5}, {"landmark_jitter": 0.5}, {"landmark_jitter": 0.6}),
    ("too_much_motion", {"max_motion": 6.0}, {"motion": 6.0}, {"motion": 6.1}),
    ("no_motion", {"min_motion": 0.25}, {"motion": 0.25}, {"motion": 0.2}),
    ("outside_picture", {"max_outside_fraction": 0.5}, {"outside_fraction": 0.5}, {"outside_fraction": 0.6}),
    ("identity_changes", {"min_identity_similarity": 0.5}, {"identity_similarity": 0.5}, {"identity_similarity": 0.4}),
    ("low_quality", {"min_quality": 0.5}, {"quality": 0.5}, {"quality": 0.4}),
    ("damaged_frames", {"max_corrupt_fraction": 0.1}, {"num_corrupt": 1, "num_frames": 10},
     {"num_corrupt": 2, "num_frames": 10}),
    ("no_licence", {"require_licence": True}, {"licence": "CC-BY"}, {"licence": ""}),
    ("licence_not_allowed", {"licences": ("CC0", " Bob's")}, {"licence": "bob's "}, {"licence": "CC-BY"}),
    ("no_consent", {"require_consent": True}, {"consent": "form 7"}, {"consent": None}),
    ("rejected_by_hand", {"reject_clips": ("a_0", "b_0")}, {"clip_id": "c_0"}, {"clip_id": "b_0"}),
    ("still", {"stills": False}, {"kind": "video"}, {"kind": "still"}),
    ("duplicate", {"duplicates": False}, {"duplicate_of": None}, {"duplicate_of": "another"}),
]  # fmt: skip


def failed(options: SelectOptions, *rows: dict) -> list[list[str]]:
    clips = make_table("clips", list(rows))  # noqa: F841  (DuckDB finds it by its name)
    return [names for (names,) in duckdb.sql(f"SELECT {failed_rules_sql(options)} FROM clips").fetchall()]


@pytest.mark.parametrize(("rule", "options", "passing", "failing"), CASES, ids=[case[0] for case in CASES])
def test_rule_alone(rule, options, passing, failing):
    assert failed(replace(OFF, **options), passing, failing) == [[], [rule]]


def test_all_rules_are_tested():
    assert [case[0] for case in CASES] == [rule.name for rule in RULES]


def test_what_is_kept_by_hand_still_needs_its_rights():
    """No threshold rejects it; licence, stills and copies are no thresholds."""
    blurred = {"kind": "still", "sharpness": 0.01, "yaw_abs_p95_deg": 80.0, "duplicate_of": "another"}
    options = SelectOptions(keep_clips=("a_0",), require_licence=True, licences=("CC0",), stills=False)
    rows = [blurred | {"clip_id": "a_0"}, blurred | {"clip_id": "b_0"}]
    rights = ["no_licence", "licence_not_allowed", "still", "duplicate"]
    assert failed(options, *rows) == [rights, ["yaw", "blurred", *rights]]
    with pytest.raises(ValueError, match=r"a_0 is in select\.keep_clips and in select\.reject_clips"):
        replace(options, reject_clips=("a_0",))


def test_thresholds_are_shown_and_lists_of_words_are_not():
    active = active_rules(SelectOptions(require_consent=True, reject_clips=("a_0",)))
    shown = {rule.name: rule.shown(condition) for rule, condition in active}
    assert shown["yaw"] == "yaw_abs_p95_deg <= 50.0"
    assert shown["too_short"] == "kind = 'still' OR duration_s >= 1.5"
    assert shown["no_consent"] == "the list states no consent"
    assert shown["rejected_by_hand"] == "somebody does not want this clip"


def test_a_refusal_is_no_consent():
    required = replace(OFF, require_consent=True)
    stated = ["form 7", "yes", "1", "public figure", "no. 12", "Norah"]
    denied = [
        " No ",
        "none",
        "FALSE",
        "0",
        "0.0",
        "n",
        "refused",
        "Denied",
        "withdrawn\t",
        "-",
        "unknown",
        "N/A",
        " ",
        "",
    ]
    rows = [{"consent": text} for text in (*stated, *denied)]
    assert failed(required, *rows) == [[]] * len(stated) + [["no_consent"]] * len(denied)
    assert failed(OFF, {"consent": "no"}) == [[]]


def test_unknown_passes():
    """What was not measured is not judged: all columns NULL. Only a wanted licence must be there."""
    strict = SelectOptions(min_quality=0.5, max_duration_s=10.0, stills=False)
    assert failed(strict, {"clip_id": "a"}) == [[]]
    assert failed(replace(strict, require_licence=True), {"clip_id": "a"}) == [["no_licence"]]


def test_all_failed_rules_are_listed_in_order():
    clip = {"yaw_abs_p95_deg": 80.0, "face_height_median_px": 10.0, "sharpness": 0.0, "duration_s": 3.0}
    assert failed(SelectOptions(), clip) == [["face_too_small", "yaw", "blurred"]]


def test_stills_are_not_too_short():
    rows = [{"kind": kind, "duration_s": 0.0} for kind in ("still", "video")]
    assert failed(SelectOptions(), *rows) == [[], ["too_short"]]


def test_rules_that_are_off_do_not_judge():
    assert [rule.name for rule, _ in active_rules(OFF)] == ["no_licence", "still"]
    assert failed(OFF, {"yaw_abs_p95_deg": 90.0, "kind": "still"}) == [[]]
