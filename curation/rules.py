"""The rules that decide about a clip: each is a name, a threshold of the recipe and one SQL condition over `clips`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from curation.recipe import SelectOptions
from manifests.rights import is_stated_sql


@dataclass(frozen=True, slots=True)
class Rule:
    """A clip passes when `condition` is true or, for want of a measurement, unknown."""

    name: str
    option: str
    condition: str  # {value} stands for the option's value
    meaning: str

    def shown(self, condition: str) -> str:
        """What to show for a condition of `active_rules`: itself where it compares with a threshold, else what it is
        about."""
        return condition if self.condition.endswith("= {value}") else self.meaning


RULES = (
    Rule("face_too_small", "min_face_px", "face_height_median_px >= {value}", "median height of the face's box, px"),
    Rule("face_small_at_times", "min_face_p05_px", "face_height_px >= {value}", "5th percentile of the same, px"),
    Rule("upscaled", "max_upscale", "upscale_factor <= {value}", "output pixels per source pixel"),
    Rule("detection_unsure", "min_detection_score", "detection_score >= {value}", "median score of the detector"),
    Rule("face_covered", "min_presence", "presence_p10 >= {value}", "10th percentile of the face-presence probability"),
    Rule("yaw", "max_yaw_deg", "yaw_abs_p95_deg <= {value}", "95th percentile of the absolute yaw"),
    Rule("pitch", "max_pitch_deg", "pitch_abs_p95_deg <= {value}", "95th percentile of the absolute pitch"),
    Rule("roll", "max_roll_deg", "roll_abs_p95_deg <= {value}", "95th percentile of the absolute roll"),
    Rule("blurred", "min_sharpness", "sharpness >= {value}", "median sharpness of the face"),
    Rule("too_dark", "min_exposure", "exposure >= {value}", "mean luma of the face, 0 to 1"),
    Rule("too_bright", "max_exposure", "exposure <= {value}", "the same"),
    Rule("black_areas", "max_dark_fraction", "dark_fraction <= {value}", "share of nearly black pixels in the face"),
    Rule("burnt_out", "max_bright_fraction", "bright_fraction <= {value}", "share of nearly white pixels in the face"),
    Rule("too_short", "min_duration_s", "kind = 'still' OR duration_s >= {value}", "length of the clip, s"),
    Rule("too_long", "max_duration_s", "duration_s <= {value}", "length of the clip, s"),
    Rule("unstable_landmarks", "max_landmark_jitter", "landmark_jitter <= {value}", "jumping landmarks"),
    Rule("too_much_motion", "max_motion", "motion <= {value}", "landmark movement, eye distances a second"),
    Rule("no_motion", "min_motion", "motion >= {value}", "the same: a still filmed"),
    Rule("outside_picture", "max_outside_fraction", "outside_fraction <= {value}", "share of the crop off the picture"),
    Rule("identity_changes", "min_identity_similarity", "identity_similarity >= {value}", "least cosine to the mean"),
    Rule("low_quality", "min_quality", "quality >= {value}", "mean score of the quality model"),
    Rule("damaged_frames", "max_corrupt_fraction", "num_corrupt / num_frames <= {value}", "share of repaired frames"),
    Rule("no_licence", "require_licence", f"NOT {{value}} OR {is_stated_sql('licence')}", "no licence is named"),
    Rule("licence_not_allowed", "licences", "lower(trim(coalesce(licence, ''))) IN {value}", "another licence"),
    Rule("no_consent", "require_consent", f"NOT {{value}} OR {is_stated_sql('consent')}", "the list states no consent"),
    Rule("rejected_by_hand", "reject_clips", "clip_id NOT IN {value}", "somebody does not want this clip"),
    Rule("still", "stills", "{value} OR kind <> 'still'", "stills are not wanted"),
    Rule("duplicate", "duplicates", "{value} OR duplicate_of IS NULL", "a better clip shows the same footage"),
)  # fmt: skip

SOURCE_REJECTED = "source_rejected"
"""A reason besides the rules, which no option switches off: the clip's source has the status `rejected`."""
SOURCE_REJECTED_MEANING = "its source was replaced, or cannot be used any more"

_missing = {r.option for r in RULES} - {f.name for f in fields(SelectOptions)}
assert not _missing, f"rules without an option: {_missing}"


def active_rules(options: SelectOptions) -> list[tuple[Rule, str]]:
    """Every rule that is not switched off, with its condition as SQL."""
    active = []
    for rule in RULES:
        value = getattr(options, rule.option)
        if value is not None and value != ():
            active.append((rule, rule.condition.format(value=sql_literal(value))))
    return active


def sql_literal(value: bool | float | tuple[str, ...]) -> str:
    """A threshold as SQL; names are compared in lower case."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, tuple):
        return "(" + ", ".join("'" + name.strip().lower().replace("'", "''") + "'" for name in value) + ")"
    return repr(float(value))


def _exempt_sql(rule: Rule, options: SelectOptions) -> str:
    """What keeps thresholds from rejecting `keep_clips`; rules that are no thresholds hold for these, too."""
    is_threshold = not isinstance(getattr(options, rule.option), bool | tuple)
    return f" AND clip_id NOT IN {sql_literal(options.keep_clips)}" if options.keep_clips and is_threshold else ""


def failed_rules_sql(options: SelectOptions) -> str:
    """An SQL expression over `clips`: the list of the names of all rules that a clip fails."""
    cases = [
        f"CASE WHEN NOT coalesce(({condition}), TRUE){_exempt_sql(rule, options)} THEN '{rule.name}' END"
        for rule, condition in active_rules(options)
    ]
    return f"list_filter([{', '.join(cases)}]::VARCHAR[], lambda name: name IS NOT NULL)"
