"""Sampling weights: how often to draw each kept clip, so that rare people, poses and expressions are not drowned.

    raw    = (T_identity / mean T)^-balance_identity * (T_pose / mean T)^-balance_pose * (E / mean E)^balance_expression
    weight = clip(s * raw, 1 / max_weight, max_weight)          with s such that the mean weight of a split is 1

T_identity: seconds of the clip's identity; clips of nobody known are each a person of their own.
T_pose: seconds in the clip's pose bin, 15 degrees of mean yaw by 15 degrees of mean pitch.
E: how much eyes and lips open and close (5th to 95th percentile), each over its mean in the split, plus 0.5, so that a
clip without any expression is drawn less and not never. A still counts as one second. "mean T" is over the clips.

An exponent of 0.5 draws a person who has 100 times the material of another 10 times as often, not 100 times.
Everything is computed inside one split: weights of train do not depend on what is in test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curation.recipe import SelectOptions

BALANCE_COLUMNS = ("duration_s", "yaw_deg", "pitch_deg", "eye_openness_range", "lip_openness_range")
_POSE_BIN_DEG = 15.0
_STILL_S = 1.0
_EXPRESSION_FLOOR = 0.5


def sampling_weights(
    columns: dict[str, np.ndarray], identities: Sequence[str | None], splits: Sequence[str], options: SelectOptions
) -> np.ndarray:
    """Weight of each kept clip: float64 [n], mean 1 in each split.

    columns: `BALANCE_COLUMNS`, float [n]; NaN is unknown and neither favoured nor put back.
    """
    weights = np.ones(len(splits))
    people = np.array([f"clip {k}" if name is None else f"id {name}" for k, name in enumerate(identities)], object)
    of_split = np.array(splits, object)
    for split in sorted(set(splits)):
        mine = of_split == split
        raw = _raw_weights({name: values[mine] for name, values in columns.items()}, people[mine], options)
        weights[mine] = _with_mean_one(raw, options.max_weight)
    return weights


def _raw_weights(columns: dict[str, np.ndarray], people: np.ndarray, options: SelectOptions) -> np.ndarray:
    seconds = np.maximum(np.nan_to_num(columns["duration_s"]), _STILL_S)
    raw = _seconds_of(people, seconds) ** -options.balance_identity
    yaw, pitch = (np.round(columns[name] / _POSE_BIN_DEG) + 0.0 for name in ("yaw_deg", "pitch_deg"))
    known = ~(np.isnan(yaw) | np.isnan(pitch))
    bins = np.array([f"{y:.0f} {p:.0f}" for y, p in zip(yaw[known], pitch[known], strict=True)], object)
    raw[known] *= _seconds_of(bins, seconds[known]) ** -options.balance_pose
    ranges = [columns[name] for name in ("eye_openness_range", "lip_openness_range")]
    return raw * (sum(_over_mean(r) for r in ranges) / 2 + _EXPRESSION_FLOOR) ** options.balance_expression


def _seconds_of(groups: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Seconds of the group that each clip is in, over their mean."""
    _, inverse = np.unique(groups.astype(str), return_inverse=True)
    return _over_mean(np.bincount(inverse, weights=seconds)[inverse])


def _over_mean(values: np.ndarray) -> np.ndarray:
    """Values over the mean of those that are known; 1 where unknown or where all are 0."""
    known = ~np.isnan(values)
    mean = values[known].mean() if known.any() else 0.0
    return np.where(known, values / mean, 1.0) if mean > 0 else np.ones(len(values))


def _with_mean_one(raw: np.ndarray, max_weight: float) -> np.ndarray:
    """Scaled and capped so that the mean is 1; the mean grows with the scale, so halving an interval finds it."""
    low, high = 1 / max_weight / raw.max(), max_weight / raw.min()
    for _ in range(100):
        scale = (low + high) / 2
        if np.clip(raw * scale, 1 / max_weight, max_weight).mean() < 1:
            low = scale
        else:
            high = scale
    return np.clip(raw * high, 1 / max_weight, max_weight)
