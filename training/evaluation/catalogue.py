"""Every figure of an evaluation: its name, unit, direction, and what exactly is meant by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["self", "cross", "control", "shoulders"]
PARTS: tuple[Part, ...] = ("self", "cross", "control", "shoulders")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure."""

    key: str
    group: str
    """What a user asks for with --metrics: all figures of one kind come together."""
    label: str
    unit: str = ""
    better: Literal["lower", "higher", "neither"]
    digits: int
    parts: tuple[Part, ...]
    definition: str


_SELF: tuple[Part, ...] = ("self",)
_BOTH: tuple[Part, ...] = ("self", "cross")

METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            key="l1",
            group="l1",
            label="L1",
            better="lower",
            digits=4,
            parts=_SELF,
            definition="Mean absolute difference of RGB in [0, 1].",
        ),
        Metric(
            key="face_l1",
            group="l1",
            label="L1, face",
            better="lower",
            digits=4,
            parts=_SELF,
            definition="L1 inside the convex hull of the driving frame's 68 landmarks (brows to chin).",
        ),
        Metric(
            key="psnr",
            group="psnr",
            label="PSNR",
            unit="dB",
            better="higher",
            digits=2,
            parts=_SELF,
            definition="10 log10(1 / mean squared difference), of each frame, at most 100 dB, then averaged.",
        ),
        Metric(
            key="face_psnr",
            group="psnr",
            label="PSNR, face",
            unit="dB",
            better="higher",
            digits=2,
            parts=_SELF,
            definition="PSNR inside the convex hull of the landmarks.",
        ),
        Metric(
            key="ssim",
            group="ssim",
            label="SSIM",
            better="higher",
            digits=4,
            parts=_SELF,
            definition="Structural similarity, Gaussian window 11x11 of sigma 1.5 inside the picture, mean of the "
            "three channels.",
        ),
        Metric(
            key="face_ssim",
            group="ssim",
            label="SSIM, face",
            better="higher",
            digits=4,
            parts=_SELF,
            definition="Mean of the SSIM map inside the convex hull of the landmarks.",
        ),
        Metric(
            key="lpips",
            group="lpips",
            label="LPIPS",
            better="lower",
            digits=4,
            parts=_SELF,
            definition="Learned perceptual distance, version 0.1, on features of AlexNet or VGG16.",
        ),
        Metric(
            key="fid",
            group="fid",
            label="FID",
            better="lower",
            digits=2,
            parts=_BOTH,
            definition="Fréchet distance of features of result frames and of the driving frames of the same clips. "
            "Biased upwards on few frames: compare only evaluations over the same clips.",
        ),
        Metric(
            key="csim",
            group="csim",
            label="CSIM",
            better="higher",
            digits=4,
            parts=_BOTH,
            definition="Cosine similarity of identity embeddings: result and driving frame (self), result and source "
            "(cross). Depends on the recogniser: figures of another one do not compare.",
        ),
        Metric(
            key="aed",
            group="aed",
            label="AED",
            unit="% eyes",
            better="lower",
            digits=2,
            parts=_BOTH,
            definition="Average expression distance: mean distance of brow, eyelid and mouth landmarks after nose and "
            "eye corners were brought to one frontal face (least squares, affine), in percent of the distance between "
            "the outer eye corners. Relative cross-reenactment compares changes since the first frame; its source's "
            "lips are not closed first, as `animate` does by default. Not the published AED, which is in units of "
            "SMIRK's coefficients.",
        ),
        Metric(
            key="apd",
            group="apd",
            label="APD",
            unit="deg",
            better="lower",
            digits=2,
            parts=_BOTH,
            definition="Average pose distance: mean absolute difference of yaw, pitch and roll to the pose that was "
            "asked for. Not the published APD, which is in radians of SMIRK's pose.",
        ),
        Metric(
            key="pose_angle",
            group="pose",
            label="Head pose MAE",
            unit="deg",
            better="lower",
            digits=2,
            parts=_BOTH,
            definition="Mean angular error of the head: angle of the rotation between the result's head and the one "
            "asked for.",
        ),
        Metric(
            key="gaze",
            group="gaze",
            label="Gaze MAE",
            unit="deg",
            better="lower",
            digits=2,
            parts=_BOTH,
            definition="Mean angular error of the direction of the eyeballs.",
        ),
        Metric(
            key="eye_error",
            group="openness",
            label="Eye openness error",
            better="lower",
            digits=4,
            parts=_SELF,
            definition="Mean absolute difference of the eyes' openness (distance between the middles of the lids over "
            "the eye's width) to the driving frame.",
        ),
        Metric(
            key="lip_error",
            group="openness",
            label="Lip openness error",
            better="lower",
            digits=4,
            parts=_SELF,
            definition="Mean absolute difference of the lips' openness (gap in the middle of the mouth over its width) "
            "to the driving frame.",
        ),
        Metric(
            key="jitter",
            group="jitter",
            label="Jitter",
            unit="% eyes",
            better="lower",
            digits=3,
            parts=_BOTH,
            definition="Temporal jitter: median over a clip of the landmarks' mean second difference in time, in "
            "percent of the distance between the eyes. Read it beside the jitter of the driving clip.",
        ),
        Metric(
            key="jitter_driving",
            group="jitter",
            label="Jitter of driving",
            unit="% eyes",
            better="neither",
            digits=3,
            parts=_BOTH,
            definition="The same figure of the driving clip: what the analyser and the movement themselves contribute.",
        ),
        Metric(
            key="face_found",
            group="faces",
            label="Faces found",
            unit="%",
            better="higher",
            digits=1,
            parts=_BOTH,
            definition="Result frames in which the analyser finds a face. All other figures about faces, also those of "
            "copying the source, are means over these frames only, so read them with this one.",
        ),
        Metric(
            key="eye_control",
            group="control",
            label="Eye control error",
            better="lower",
            digits=4,
            parts=("control",),
            definition="Mean absolute difference of asked and achieved openness of the eyes over the steps of a sweep "
            "that show a face. Copying the source means: no retargeting, over the same steps.",
        ),
        Metric(
            key="eye_spearman",
            group="control",
            label="Eye control, rank correlation",
            better="higher",
            digits=3,
            parts=("control",),
            definition="Spearman correlation of asked and achieved openness of the eyes, mean over sources.",
        ),
        Metric(
            key="eye_rest",
            group="control",
            label="L1 outside the eyes",
            better="lower",
            digits=4,
            parts=("control",),
            definition="L1 to the picture without retargeting, outside the region of the eyes.",
        ),
        Metric(
            key="lip_control",
            group="control",
            label="Lip control error",
            better="lower",
            digits=4,
            parts=("control",),
            definition="Mean absolute difference of asked and achieved openness of the lips over the steps of a sweep "
            "that show a face.",
        ),
        Metric(
            key="lip_spearman",
            group="control",
            label="Lip control, rank correlation",
            better="higher",
            digits=3,
            parts=("control",),
            definition="Spearman correlation of asked and achieved openness of the lips, mean over sources.",
        ),
        Metric(
            key="lip_rest",
            group="control",
            label="L1 outside the mouth",
            better="lower",
            digits=4,
            parts=("control",),
            definition="L1 to the picture without retargeting, outside the region of the mouth.",
        ),
        Metric(
            key="shoulders_plain",
            group="shoulders",
            label="Shoulder difference, no stitching",
            better="neither",
            digits=4,
            parts=("shoulders",),
            definition="L1 in the shoulder region between the animated source and the source rendered at rest, driven "
            "by another person, without stitching.",
        ),
        Metric(
            key="shoulders_stitched",
            group="shoulders",
            label="Shoulder difference, stitched",
            better="lower",
            digits=4,
            parts=("shoulders",),
            definition="The same with stitching.",
        ),
        Metric(
            key="shoulders_ratio",
            group="shoulders",
            label="Stitched over not stitched",
            better="lower",
            digits=3,
            parts=("shoulders",),
            definition="Quotient of the two means: 1 means that stitching does nothing.",
        ),
    )
}
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(metric.group for metric in METRICS.values()))
FACE_GROUPS = ("csim", "aed", "apd", "pose", "openness", "jitter", "faces", "control")
"""Groups that need a face analyser."""
ALWAYS_MISSING = {"gaze": "no analyser here sees the direction of the eyeballs"}
"""Groups that are published but cannot be measured with what this project has."""


def metrics_of(part: Part, groups: tuple[str, ...]) -> list[Metric]:
    """The figures of a part that were asked for, in the order of the catalogue."""
    return [metric for metric in METRICS.values() if part in metric.parts and metric.group in groups]


def parts_with_figures(parts: tuple[Part, ...], groups: tuple[str, ...]) -> tuple[Part, ...]:
    """Those of which the groups, as the user named them, ask for a figure; the others would be rendered for nothing."""
    named = GROUPS if groups == ("all",) or not groups else groups
    return tuple(part for part in parts if metrics_of(part, named))


def check_groups(groups: tuple[str, ...]) -> tuple[str, ...]:
    """The groups that a user named; `all` means every one. ValueError for unknown ones.

    Figures about faces bring `faces` with them, without which they cannot be read.
    """
    if groups == ("all",) or not groups:
        return GROUPS
    if unknown := [group for group in groups if group not in GROUPS]:
        raise ValueError(f"metrics: unknown {', '.join(unknown)}; expected all, or some of {', '.join(GROUPS)}")
    if any(group in FACE_GROUPS for group in groups):
        groups = (*groups, "faces")
    return tuple(group for group in GROUPS if group in groups)
