"""What nobody publishes: how well R_eyes and R_lip obey, and what stitching does for the shoulders."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import spearmanr

from model.animation.progress import Report
from model.inference import InferenceEngine
from model.keypoints import open_ratios_68, retarget_eye, retarget_lip, stitch
from training.evaluation.measuring import Tools, mean_of
from training.evaluation.pixels import masked_l1, to_tensor
from training.evaluation.reenactment import driven_keypoints, source_motion, spread
from training.evaluation.selection import Clip, Selection, pair_with_sources
from training.evaluation.thumbnails import DIFFERENCE_GAIN, SMALL_PX, difference, thumbnail
from training.losses.regions import eye_mask, lip_mask, shoulder_mask

NUM_SHOULDER_FRAMES = 4
REGION_MASKS = {"eye": eye_mask, "lip": lip_mask}


@dataclass(kw_only=True)
class Sweep:
    """One source whose eyes or lips were asked to open step by step."""

    clip: Clip
    region: str
    """eye or lip."""
    at_rest: float | None
    """Openness in the source rendered without retargeting; None where no face is found in it."""
    asked: list[float]
    achieved: list[float | None]
    figures: dict[str, float | None]
    copy_source: dict[str, float | None]
    pictures: list[bytes] = field(default_factory=list)
    """JPEGs of the source, then of one result for each asked openness."""


@dataclass(kw_only=True)
class Shoulders:
    """One source animated by another person's frames, with and without stitching."""

    clip: Clip
    source: Clip
    num_frames: int
    figures: dict[str, float | None]
    pictures: dict[str, bytes]
    """JPEGs by name, of the last frame."""


class _Still:
    """The first frame of a clip, ready to be rendered from key points."""

    def __init__(self, engine: InferenceEngine, selection: Selection, tools: Tools, clip: Clip) -> None:
        frame, points68 = selection.read(clip, [0])
        self._engine, self._tools = engine, tools
        self.networks = engine.portrait
        self.motion = source_motion(engine, frame, points68)
        self.x_s = self.motion.keypoints()
        self._volume = engine.extract_appearance(frame)
        self.picture = tools.small(frame)[0]
        self.landmarks = torch.from_numpy(points68).float() * 2 - 1
        self.size = (tools.compare_size_px, tools.compare_size_px)

    def render(self, x_d: torch.Tensor) -> np.ndarray:
        """The source at key points [N, K, 3]: uint8 [N, S, S, 3], one frame at a time to bound memory."""
        return np.concatenate([self._engine.render(self._volume, self.x_s, x_d[k : k + 1]) for k in range(len(x_d))])

    def difference(self, results: np.ndarray, rest: np.ndarray, weight: torch.Tensor) -> np.ndarray:
        """L1 of each result to the picture at rest under a soft mask: [N]."""
        first, second = (to_tensor(self._tools.small(frames)) for frames in (results, rest))
        return masked_l1(first, second.expand_as(first), weight)


def sweep_openness(
    engine: InferenceEngine,
    selection: Selection,
    tools: Tools,
    *,
    asked: dict[str, tuple[float, ...]],
    max_sources: int,
    report: Report,
) -> list[Sweep]:
    """Ask the first frames of clips for every openness of eyes and lips, and measure what comes.

    asked: region (eye, lip) -> openness, as `model.keypoints.open_ratios_68` measures it. x' = x_s + R(x_s; c_s, c_d).
    Frames whose landmarks are unknown, of which R cannot be told how far they are open, are left out.
    """
    clips = [selection.clips[k] for k in spread(0, len(selection.clips), max_sources)]
    steps = sum(len(values) + 1 for values in asked.values())
    sweeps, done = [], 0
    report("control of eyes and lips", 0, len(clips) * steps)
    for clip in clips:
        still = _Still(engine, selection, tools, clip)
        for region, values in asked.items():
            if still.landmarks.isfinite().all():
                sweeps.append(_sweep(still, tools, clip, region, values))
            done += len(values) + 1
            report("control of eyes and lips", done, len(clips) * steps)
    return sweeps


def _sweep(still: _Still, tools: Tools, clip: Clip, region: str, values: tuple[float, ...]) -> Sweep:
    wanted = torch.tensor(values, dtype=torch.float32)[:, None]
    x_s, motion = still.x_s.expand(len(values), -1, -1), still.motion.expand(len(values))
    with torch.no_grad():
        if region == "eye":
            offsets = retarget_eye(still.networks, x_s, motion.eye_open, wanted)
        else:
            offsets = retarget_lip(still.networks, x_s, motion.lip_open, wanted)
    rest, results = still.render(still.x_s), still.render(x_s + offsets)
    at_rest, *achieved = (_openness(tools, frame, region) for frame in (*rest, *results))
    outside = 1 - REGION_MASKS[region](still.landmarks, still.size)
    control, copied, spearman = obedience(values, achieved, at_rest)
    return Sweep(
        clip=clip,
        region=region,
        at_rest=at_rest,
        asked=list(values),
        achieved=achieved,
        figures={
            f"{region}_control": control,
            f"{region}_spearman": spearman,
            f"{region}_rest": float(still.difference(results, rest, outside).mean()),
        },
        copy_source={f"{region}_control": copied},
        pictures=[thumbnail(picture, SMALL_PX) for picture in (still.picture, *tools.small(results))],
    )


def _openness(tools: Tools, frame: np.ndarray, region: str) -> float | None:
    face = tools.find_face(frame)
    if face is None:
        return None
    eyes, lip = open_ratios_68(face.points68[None])
    return float(eyes.mean() if region == "eye" else lip)


def obedience(
    asked: tuple[float, ...], achieved: list[float | None], at_rest: float | None
) -> tuple[float | None, float | None, float | None]:
    """Mean error of the result, that of copying the source, and Spearman's rho, over the steps that show a face."""
    pairs = [(ask, got) for ask, got in zip(asked, achieved, strict=True) if got is not None]
    copied = None if at_rest is None else mean_of([abs(ask - at_rest) for ask, _ in pairs])
    return mean_of([abs(ask - got) for ask, got in pairs]), copied, rank_correlation(pairs)


def rank_correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Spearman's rho; 0 where the achieved openness never changes, None with fewer than three values."""
    if len(pairs) < 3:
        return None
    asked, achieved = zip(*pairs, strict=True)
    return 0.0 if len(set(achieved)) == 1 else float(spearmanr(asked, achieved).statistic)


def compare_shoulders(
    engine: InferenceEngine, selection: Selection, tools: Tools, *, max_pairs: int, seed: int, report: Report
) -> list[Shoulders]:
    """Animate sources with other people's frames, with and without S; empty where the split has one identity.

    x_d is that of stage II's training: s_d (x_c,s R_d + delta_d) + t_d. At rest means G(W(f_s; x_s, x_s)).
    """
    videos = selection.videos
    driving = [videos[k] for k in spread(0, len(videos), max_pairs)]
    pairs = pair_with_sources(driving, selection.clips, seed)
    compared = []
    report("shoulders", 0, len(pairs) * NUM_SHOULDER_FRAMES)
    for clip, source in pairs:
        compared.append(_compare_pair(engine, selection, tools, clip, source))
        report("shoulders", len(compared) * NUM_SHOULDER_FRAMES, len(pairs) * NUM_SHOULDER_FRAMES)
    return compared


def _compare_pair(engine: InferenceEngine, selection: Selection, tools: Tools, clip: Clip, source: Clip) -> Shoulders:
    still = _Still(engine, selection, tools, source)
    frames, _ = selection.read(clip, spread(clip.first_driving, clip.num_frames, NUM_SHOULDER_FRAMES))
    x_d = driven_keypoints(still.motion, engine.extract_motion(frames))
    with torch.no_grad():
        stitched = stitch(engine.portrait, still.x_s.expand(len(x_d), -1, -1), x_d)
    rest, plain, corrected = still.render(still.x_s), still.render(x_d), still.render(stitched)
    mask = shoulder_mask(still.landmarks, still.size)
    without, with_stitching = (float(np.mean(still.difference(r, rest, mask))) for r in (plain, corrected))
    shown = {"driving": frames, "source at rest": rest, "no stitching": plain, "stitched": corrected}
    shown = {name: tools.small(part[-1:])[0] for name, part in shown.items()}
    for name in ("no stitching", "stitched"):
        shown[f"{name} − rest, × {DIFFERENCE_GAIN}"] = difference(shown[name], shown["source at rest"])
    return Shoulders(
        clip=clip,
        source=source,
        num_frames=len(frames),
        figures={
            "shoulders_plain": without if np.isfinite(without) else None,
            "shoulders_stitched": with_stitching if np.isfinite(with_stitching) else None,
        },
        pictures={name: thumbnail(picture) for name, picture in shown.items()},
    )
