"""Cuts in made pictures: exact to the frame, and none where a camera only moves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from curation.cuts import CutFinder
from curation.recipe import ScanOptions

WIDTH, HEIGHT = 192, 128


def pan(picture: np.ndarray, num_frames: int, step_px: float = 1.0) -> list[np.ndarray]:
    """A camera that moves sideways over a picture."""
    frames = []
    for k in range(num_frames):
        matrix = np.array([[1.0, 0.0, -step_px * k], [0.0, 1.0, 0.0]])
        frames.append(cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR))
    return frames


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()]
    return [cv2.resize(picture, (384, 256), interpolation=cv2.INTER_AREA) for picture in pictures]


def find(frames: list[np.ndarray], **options) -> list[int]:
    finder = CutFinder(ScanOptions(**options), fps=25.0)
    for frame in frames:
        finder.add(frame)
    finder.finish()
    return finder.cuts


@pytest.mark.parametrize("lengths", [(30, 30, 30), (41, 23, 57), (20, 17, 16)])
def test_hard_cuts_are_exact(scenes, lengths):
    frames = [f for scene, length in zip(scenes, lengths, strict=True) for f in pan(scene, length)]
    assert find(frames) == [lengths[0], lengths[0] + lengths[1]]


def test_camera_movement_is_no_cut(scenes):
    assert find(pan(scenes[0], 60, step_px=3.0)) == []
    growing = [cv2.resize(scenes[0], None, fx=1 + k / 60, fy=1 + k / 60)[:HEIGHT, :WIDTH] for k in range(60)]
    assert find(growing) == []


def test_fade_in_light_is_no_cut(scenes):
    frames = pan(scenes[1], 60)
    assert find([(frame * (0.5 + 0.5 * k / 59)).astype(np.uint8) for k, frame in enumerate(frames)]) == []


@pytest.mark.parametrize("level", [0, 255])
def test_flash_between_two_shots_belongs_to_neither(scenes, level):
    """One black or white frame: it starts a shot of its own, so no clip shows any of it."""
    flash = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
    cuts = find([*pan(scenes[0], 40), flash, *pan(scenes[1], 40)])
    assert {40, 41} <= set(cuts)
    assert set(cuts) <= {39, 40, 41, 42}


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_cut_on_the_first_or_last_frames(scenes, length):
    """Where videos are cut from longer ones, a frame of the next shot is often left at an end."""
    assert find([*pan(scenes[0], length), *pan(scenes[1], 50)]) == [length]
    assert find([*pan(scenes[1], 50), *pan(scenes[0], length)]) == [50]
    assert find(pan(scenes[0], length)) == []
    assert find([*pan(scenes[0], length), *pan(scenes[1], 2)]) in ([length], []), "too few frames to say"


def test_every_short_shot_is_a_shot(scenes):
    frames = [*pan(scenes[0], 40), *pan(scenes[1], 10), *pan(scenes[2], 40)]
    assert find(frames) == [40, 50]
    assert find(frames, min_shot_s=0.6)[0] == 40


def test_settled_never_takes_back_a_cut(scenes):
    """What a follower does with frames before `settled` must stay right."""
    frames = [f for scene in scenes for f in pan(scene, 25)]
    finder = CutFinder(ScanOptions(), fps=25.0)
    known: list[list[int]] = []
    for frame in frames:
        finder.add(frame)
        known.append([c for c in finder.cuts if c < finder.settled])
    for position, cuts in enumerate(known):
        settled = position + 1 - (len(frames) - finder.settled)
        assert cuts == [c for c in finder.cuts if c < settled]
    assert finder.cuts == [25, 50]


@pytest.mark.parametrize("fps", [0.0, 5.0, 120.0])
def test_any_frame_rate(scenes, fps):
    finder = CutFinder(ScanOptions(), fps)
    for frame in [*pan(scenes[0], 90), *pan(scenes[1], 90)]:
        finder.add(frame)
    assert finder.cuts == [90]


def test_size_of_the_pictures_does_not_matter(scenes):
    frames = [*pan(scenes[0], 30), *pan(scenes[1], 30)]
    assert find([cv2.resize(f, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST) for f in frames]) == find(frames)


def test_scores_are_those_of_the_detector(scenes):
    """Only faster: cuts must not move."""
    frames = [cv2.resize(frame, (96, 64)) for frame in pan(scenes[0], 5, 3.0) + pan(scenes[1], 5)]
    theirs, ours = AdaptiveDetector(), CutFinder(ScanOptions(), fps=25.0)
    scores = []
    for k, frame in enumerate(frames):
        theirs.process_frame(FrameTimecode(k, 25.0), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        scores.append(theirs._frame_score)
        ours.add(frame)
    assert scores[5] > 20
    assert ours._detector.scores == scores
