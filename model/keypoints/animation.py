"""From source and driving motions to the key points x_s and x_d that W gets, frame by frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.keypoints.motion import Motion, transform_keypoints
from model.keypoints.regions import REGIONS, Region, neutral_expression, region_mask, require_released_keypoints
from model.keypoints.retargeting import CorrectionNetworks, retarget_eye, retarget_lip, stitch
from model.keypoints.smoothing import kalman_smooth

FALLBACK_EYE_OPEN = 0.39
"""Eye openness that a source video with closed eyes in its first frame is brought to."""


@dataclass(frozen=True, kw_only=True)
class AnimationOptions:
    """How the driving motion is carried over. The defaults are the published ones."""

    relative: bool = True
    """Add the driving motion's change since its first frame to the source; otherwise copy the driving motion."""
    region: Region = "all"
    """What moves: all, exp (expression), pose (head), lip or eyes."""
    driving_option: Literal["pose-friendly", "expression-friendly"] = "pose-friendly"
    """expression-friendly scales motion by the size of the two faces (stills driven by relative videos only)."""
    multiplier: float = 1.0
    """Scales the distance between source and driving key points."""
    stitching: bool = True
    """Correct the key points so that the animated crop can be pasted back without seams."""
    normalize_lip: bool = True
    """Close the source's lips where relative motion is added; not together with eye or lip retargeting."""
    lip_normalize_threshold: float = 0.03
    """Lips less open than this are taken as closed."""
    eye_retargeting: bool = False
    """Open the source's eyes as far as the driving ones; relative motion, of the head too, is then not carried over."""
    lip_retargeting: bool = False
    """Open the source's lips as far as the driving ones; relative motion, of the head too, is then not carried over."""
    source_video_eye_retargeting: bool = False
    """Hold the eyes of a source video as open as in its first frame; not together with eye or lip retargeting."""
    source_video_eye_retargeting_threshold: float = 0.18
    """A first frame with eyes less open than this is not a model to hold to; 0.39 is taken instead."""
    smooth_observation_variance: float = 3e-7
    """Kalman smoothing where a video drives a source video: larger is smoother and less exact."""

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise ValueError(f"region must be one of {', '.join(REGIONS)}; got {self.region!r}")
        if self.driving_option not in ("pose-friendly", "expression-friendly"):
            raise ValueError(
                f"driving_option must be pose-friendly or expression-friendly; got {self.driving_option!r}"
            )

    def check(self) -> None:
        """ValueError for numbers that make no sense."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{item.name} is {value}: expected a finite number")
        if self.smooth_observation_variance <= 0:
            raise ValueError(f"smooth_observation_variance is {self.smooth_observation_variance}: expected above 0")

    def check_keypoints(self, num_keypoints: int, *, source_is_video: bool, driving_is_video: bool = True) -> None:
        """ValueError where only a part of the expression is carried over, and that is not known of these key points."""
        moves_every_number = self.relative and self.region in ("all", "exp")
        if not moves_every_number or source_is_video or not driving_is_video:
            require_released_keypoints(
                num_keypoints,
                "moving a part of the expression",
                "animate a still with a video's motion, --relative and --region all or exp",
            )


def hull_size_ratio(x_s: Tensor, x_d: Tensor) -> float:
    """Square root of the ratio of the convex hulls' volumes of two sets of key points [K, 3]: source over driving."""
    from scipy.spatial import ConvexHull

    source, driving = (ConvexHull(points.double().cpu().numpy()).volume for points in (x_s, x_d))
    return float(np.sqrt(source) / np.sqrt(driving))


class KeypointAnimator:
    """Carries driving motion over to a source, a batch of frames at a time.

    With a source video the whole driving motion must be known at the start, because it is smoothed; a still source
    takes driving frames as they come.
    """

    def __init__(
        self,
        source: Motion,
        *,
        networks: CorrectionNetworks,
        options: AnimationOptions | None = None,
        source_is_video: bool = False,
        driving_is_video: bool = True,
        driving: Motion | None = None,
        first_driving: Motion | None = None,
    ) -> None:
        """first_driving: what relative motion is the change since; the first driving frame given, unless said."""
        if source_is_video and driving is None:
            raise ValueError("animating a source video needs the whole driving motion at the start; pass driving=")
        self.source = source
        self.networks = networks
        self.options = options or AnimationOptions()
        self.options.check()
        self.options.check_keypoints(
            source.kp.shape[1], source_is_video=source_is_video, driving_is_video=driving_is_video
        )
        self.source_is_video = source_is_video
        self.driving_is_video = driving_is_video
        self.position = 0
        self._first_driving = first_driving
        self._friendly_anchor: tuple[Tensor, float] | None = None
        if source_is_video:
            self._plan_source_video(driving)

    def _plan_source_video(self, driving: Motion) -> None:
        """Expression and rotation of every output frame, smoothed where both sides move."""
        source, options = self.source, self.options
        if self.driving_is_video:
            num_frames = min(len(source), len(driving))
            source, driving = source[:num_frames], driving[:num_frames]
            exp, rotation = driving.exp, driving.rotation
            if options.relative:
                first = driving[0] if self._first_driving is None else self._first_driving
                exp = source.exp + exp - first.exp
                rotation = rotation @ first.rotation.mT @ source.rotation
            exp = kalman_smooth(exp, options.smooth_observation_variance)
            rotation = kalman_smooth(rotation, options.smooth_observation_variance)
        elif options.relative:
            exp = source.exp + (driving[0].exp - neutral_expression(source.exp))
            rotation = source.rotation
        else:
            still = driving[0].expand(len(source))
            exp, rotation = still.exp, still.rotation
        self._planned_exp, self._planned_rotation = exp, rotation

    @torch.no_grad()
    def step(self, driving: Motion) -> tuple[Tensor, Tensor]:
        """The next B output frames from B driving frames: x_s, x_d, each float32 [B, K, 3].

        A source video driven by a still wants the still repeated (`Motion.expand`).
        """
        start, stop = self.position, self.position + len(driving)
        if self.source_is_video and stop > len(self._planned_exp):
            raise ValueError(f"output ends after {len(self._planned_exp)} frames; frames up to {stop} were asked for")
        self.position = stop
        if self._first_driving is None:
            self._first_driving = driving[0]
        source = self.source[start:stop] if self.source_is_video else self.source[0].expand(len(driving))
        x_s = source.keypoints()
        x_d = self._carry_over(source, driving, slice(start, stop))
        if self._is_expression_friendly:
            x_d = self._rescale_motion(x_s, x_d)
        x_d = self._correct(source, driving, x_s, x_d)
        return x_s, x_s + (x_d - x_s) * self.options.multiplier

    def _carry_over(self, source: Motion, driving: Motion, frames: slice) -> Tensor:
        """Driving key points before any correction."""
        relative, region = self.options.relative, self.options.region
        first = self._first_driving
        rotation, scale, translation = source.rotation, source.scale, source.t

        if region in ("all", "pose"):
            if self.source_is_video:
                rotation = self._planned_rotation[frames]
            elif relative:
                rotation = driving.rotation @ first.rotation.mT @ rotation
            else:
                rotation = driving.rotation
            if not relative:
                translation = driving.t
            elif not self.source_is_video:
                translation = translation + (driving.t - first.t)
        if region == "all" and relative and not self.source_is_video:
            scale = scale * (driving.scale / first.scale)
        exp = self._carry_over_expression(source.exp, driving, frames)
        return transform_keypoints(source.kp, rotation, exp, scale, translation)

    def _carry_over_expression(self, exp: Tensor, driving: Motion, frames: slice) -> Tensor:
        relative, region = self.options.relative, self.options.region
        if self.source_is_video:
            wanted = self._planned_exp[frames]
        elif not relative:
            wanted = driving.exp
        elif self.driving_is_video:
            wanted = exp + (driving.exp - self._first_driving.exp)
        elif region == "eyes":
            wanted = exp + driving.exp
        else:
            wanted = exp + (driving.exp - neutral_expression(exp))
        if relative and region in ("all", "exp") and not self.source_is_video:
            return wanted  # the published relative motion of a still moves every number
        return torch.where(region_mask(region, exp), wanted, exp)

    @property
    def _is_expression_friendly(self) -> bool:
        friendly = self.options.relative and self.options.driving_option == "expression-friendly"
        return friendly and self.driving_is_video and not self.source_is_video

    def _rescale_motion(self, x_s: Tensor, x_d: Tensor) -> Tensor:
        """Start from the source itself and scale the motion by the relative size of the two faces."""
        if self._friendly_anchor is None:
            self._friendly_anchor = (x_d[:1], hull_size_ratio(x_s[0], x_d[0]))
        anchor, factor = self._friendly_anchor
        return x_s + (x_d - anchor) * factor

    def _correct(self, source: Motion, driving: Motion, x_s: Tensor, x_d: Tensor) -> Tensor:
        """Stitching and retargeting, in the published order."""
        options, networks = self.options, self.networks
        if options.eye_retargeting or options.lip_retargeting:
            x_d = (x_s if options.relative else x_d) + self._retargeting_offsets(source, driving, x_s)
            return stitch(networks, x_s, x_d) if options.stitching else x_d
        if options.stitching:
            x_d = stitch(networks, x_s, x_d)
        return x_d + self._lip_normalisation(source, x_s) + self._steady_eyes(source, x_s)

    def _retargeting_offsets(self, source: Motion, driving: Motion, x_s: Tensor) -> Tensor | float:
        """Offsets for the driving openness; a source without landmarks is not retargeted."""
        options, offsets = self.options, 0.0
        if options.eye_retargeting and source.eye_open is not None:
            wanted = _required(driving.eye_open, "eye")[:, :1]  # the published condition is the left eye's ratio
            offsets = offsets + retarget_eye(self.networks, x_s, source.eye_open, wanted)
        if options.lip_retargeting and source.lip_open is not None:
            wanted = _required(driving.lip_open, "lip")
            offsets = offsets + retarget_lip(self.networks, x_s, source.lip_open, wanted)
        return offsets

    def _lip_normalisation(self, source: Motion, x_s: Tensor) -> Tensor | float:
        """Offsets that close the lips of those source frames whose lips are open."""
        options = self.options
        if not (options.normalize_lip and options.relative) or source.lip_open is None:
            return 0.0
        offsets = retarget_lip(self.networks, x_s, source.lip_open, torch.zeros_like(source.lip_open))
        return torch.where((source.lip_open >= options.lip_normalize_threshold)[:, :, None], offsets, 0.0)

    def _steady_eyes(self, source: Motion, x_s: Tensor) -> Tensor | float:
        """Offsets that hold the eyes of a source video as open as in its first frame."""
        if not (self.options.source_video_eye_retargeting and self.source_is_video) or source.eye_open is None:
            return 0.0
        wanted = self.source.eye_open[0].mean()
        if wanted < self.options.source_video_eye_retargeting_threshold:
            wanted = torch.full_like(wanted, FALLBACK_EYE_OPEN)
        return retarget_eye(self.networks, x_s, source.eye_open, wanted.expand(len(source), 1))


def _required(openness: Tensor | None, part: str) -> Tensor:
    if openness is None:
        raise ValueError(
            f"{part} retargeting needs the driving {part} openness, but the driving motion has none; "
            "drive with a video or with a template that holds it"
        )
    return openness
