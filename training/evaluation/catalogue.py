"""Every figure of an evaluation: its name, unit, direction, and what exactly is meant by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["self", "cross", "control", "shoulders"]
PARTS: tuple[Part, ...] = ("self", "cross", "control", "shoulders")


@dataclass(frozen=True)
class Metric:
    """One figure."""

    key: str
    group: str
    """What a user asks for with --metrics: all figures of one kind come together."""
    label: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    digits: int
    parts: tuple[Part, ...]
    definition: str


_SELF: tuple[Part, ...] = ("self",)
_BOTH: tuple[Part, ...] = ("self", "cross")
_CONTROL: tuple[Part, ...] = ("control",)
_SHOULDERS: tuple[Part, ...] = ("shoulders",)

METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("l1", "l1", "L1", "", "lower", 4, _SELF,
            "Mean absolute difference of RGB in [0, 1]."),
        Metric("face_l1", "l1", "L1, face", "", "lower", 4, _SELF,
            "L1 inside the convex hull of the driving frame's 68 landmarks (brows to chin)."),
        Metric("psnr", "psnr", "PSNR", "dB", "higher", 2, _SELF,
            "10 log10(1 / mean squared difference), of each frame, at most 100 dB, then averaged."),
        Metric("face_psnr", "psnr", "PSNR, face", "dB", "higher", 2, _SELF,
            "PSNR inside the convex hull of the landmarks."),
        Metric("ssim", "ssim", "SSIM", "", "higher", 4, _SELF,
            "Structural similarity, Gaussian window 11x11 of sigma 1.5 inside the picture, mean of the three "
            "channels."),
        Metric("face_ssim", "ssim", "SSIM, face", "", "higher", 4, _SELF,
            "Mean of the SSIM map inside the convex hull of the landmarks."),
        Metric("lpips", "lpips", "LPIPS", "", "lower", 4, _SELF,
            "Learned perceptual distance, version 0.1, on features of AlexNet or VGG16."),
        Metric("fid", "fid", "FID", "", "lower", 2, _BOTH,
            "Fréchet distance of features of result frames and of the driving frames of the same clips. Biased "
            "upwards on few frames: compare only evaluations over the same clips."),
        Metric("csim", "csim", "CSIM", "", "higher", 4, _BOTH,
            "Cosine similarity of identity embeddings: result and driving frame (self), result and source (cross). "
            "Depends on the recogniser: figures of another one do not compare."),
        Metric("aed", "aed", "AED", "% eyes", "lower", 2, _BOTH,
            "Average expression distance: mean distance of brow, eyelid and mouth landmarks after nose and eye "
            "corners were brought to one frontal face (least squares, affine), in percent of the distance between "
            "the outer eye corners. Relative cross-reenactment compares changes since the first frame; its source's "
            "lips are not closed first, as `animate` does by default. Not the published AED, which is in units of "
            "SMIRK's coefficients."),
        Metric("apd", "apd", "APD", "deg", "lower", 2, _BOTH,
            "Average pose distance: mean absolute difference of yaw, pitch and roll to the pose that was asked for. "
            "Not the published APD, which is in radians of SMIRK's pose."),
        Metric("pose_angle", "pose", "Head pose MAE", "deg", "lower", 2, _BOTH,
            "Mean angular error of the head: angle of the rotation between the result's head and the one asked for."),
        Metric("gaze", "gaze", "Gaze MAE", "deg", "lower", 2, _BOTH,
            "Mean angular error of the direction of the eyeballs."),
        Metric("eye_error", "openness", "Eye openness error", "", "lower", 4, _SELF,
            "Mean absolute difference of the eyes' openness (distance between the middles of the lids over the eye's "
            "width) to the driving frame."),
        Metric("lip_error", "openness", "Lip openness error", "", "lower", 4, _SELF,
            "Mean absolute difference of the lips' openness (gap in the middle of the mouth over its width) to the "
            "driving frame."),
        Metric("jitter", "jitter", "Jitter", "% eyes", "lower", 3, _BOTH,
            "Temporal jitter: median over a clip of the landmarks' mean second difference in time, in percent of the "
            "distance between the eyes. Read it beside the jitter of the driving clip."),
        Metric("jitter_driving", "jitter", "Jitter of driving", "% eyes", "neither", 3, _BOTH,
            "The same figure of the driving clip: what the analyser and the movement themselves contribute."),
        Metric("face_found", "faces", "Faces found", "%", "higher", 1, _BOTH,
            "Result frames in which the analyser finds a face. All other figures about faces, also those of copying "
            "the source, are means over these frames only, so read them with this one."),
        Metric("eye_control", "control", "Eye control error", "", "lower", 4, _CONTROL,
            "Mean absolute difference of asked and achieved openness of the eyes over the steps of a sweep that show "
            "a face. Copying the source means: no retargeting, over the same steps."),
        Metric("eye_spearman", "control", "Eye control, rank correlation", "", "higher", 3, _CONTROL,
            "Spearman correlation of asked and achieved openness of the eyes, mean over sources."),
        Metric("eye_rest", "control", "L1 outside the eyes", "", "lower", 4, _CONTROL,
            "L1 to the picture without retargeting, outside the region of the eyes."),
        Metric("lip_control", "control", "Lip control error", "", "lower", 4, _CONTROL,
            "Mean absolute difference of asked and achieved openness of the lips over the steps of a sweep that show "
            "a face."),
        Metric("lip_spearman", "control", "Lip control, rank correlation", "", "higher", 3, _CONTROL,
            "Spearman correlation of asked and achieved openness of the lips, mean over sources."),
        Metric("lip_rest", "control", "L1 outside the mouth", "", "lower", 4, _CONTROL,
            "L1 to the picture without retargeting, outside the region of the mouth."),
        Metric("shoulders_plain", "shoulders", "Shoulder difference, no stitching", "", "neither", 4, _SHOULDERS,
            "L1 in the shoulder region between the animated source and the source rendered at rest, driven by another "
            "person, without stitching."),
        Metric("shoulders_stitched", "shoulders", "Shoulder difference, stitched", "", "lower", 4, _SHOULDERS,
            "The same with stitching."),
        Metric("shoulders_ratio", "shoulders", "Stitched over not stitched", "", "lower", 3, _SHOULDERS,
            "Quotient of the two means: 1 means that stitching does nothing."),
    )
}  # fmt: skip
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
