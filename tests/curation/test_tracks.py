"""Tracks of invented faces: how they are joined, and where a fixed crop ends them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from curation.recipe import ScanOptions
from curation.tracks import Sample, Track, Tracker, divide, overlap

PERSON = np.array([1.0, 0.0], np.float32)
OTHER_PERSON = np.array([0.0, 1.0], np.float32)


@pytest.fixture
def make_sample(make_face68):
    """A sample of a face of 80 px around a place, five a second."""

    def make(k: int, center=(300.0, 300.0), height_px=80.0, others=(), embedding=None, **more) -> Sample:
        x, y = center
        box = np.array([x - height_px * 0.4, y - height_px / 2, x + height_px * 0.4, y + height_px / 2])
        return Sample(
            frame=5 * k, pts=5 * k, time_s=k / 5, box=box, score=0.9, landmarks=make_face68(center, height_px),
            presence=1.0, pose_deg=np.zeros(3), others=np.array(others, float).reshape(-1, 4), embedding=embedding,
            **more,
        )  # fmt: skip

    return make


def cut_up(samples, **options):
    track = Track(0, samples)
    segments, reasons = divide(
        track, ScanOptions(**options), width_px=1280, height_px=720, scale=2.3, vy_ratio=-0.125
    )  # fmt: skip
    return [(s.first, s.last) for s in segments], reasons, segments


def test_overlap_of_boxes():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [100, 100, 101, 101]], float)
    np.testing.assert_allclose(overlap(boxes, others), [[1.0, 50 / 150, 0.0], [0.0, 0.0, 0.0]])
    assert overlap(np.zeros((1, 4)), others).tolist() == [[0.0, 0.0, 0.0]]


def test_still_face_is_one_segment(make_sample):
    places, reasons, segments = cut_up([make_sample(k) for k in range(20)])
    assert places == [(0, 19)]
    assert reasons == [None] * 20
    crop = segments[0].crop
    assert crop.size_px > 2 * 0.55 * 80
    assert abs(crop.center_x_px - 300) < 2
    left, top, right, bottom = crop.box
    assert left < 260
    assert top < 260
    assert right > 340
    assert bottom > 340


def test_face_that_walks_is_divided_where_it_leaves_the_reach(make_sample):
    walk = [make_sample(k, center=(200.0 + 12 * k, 300.0)) for k in range(30)]
    places, _, segments = cut_up(walk)
    assert len(places) > 1
    assert places[0][0] == 0
    assert places[-1][1] == 29
    assert all(end + 1 == start for (_, end), (start, _) in itertools.pairwise(places))
    for segment in segments:
        size = segment.crop.size_px
        for sample in walk[segment.first : segment.last + 1]:
            assert abs(sample.square[0] - segment.crop.center_x_px) <= 0.2 * size + 1e-6
    assert len(cut_up(walk, reach=0.05)[0]) > len(places)
    assert cut_up(walk, reach=10.0)[0] == [(0, 29)]


def test_face_that_grows_is_divided(make_sample):
    growing = [make_sample(k, height_px=60.0 * 1.08**k) for k in range(25)]
    places, _, segments = cut_up(growing)
    assert len(places) > 1
    for segment in segments:
        sides = [s.square[2] for s in growing[segment.first : segment.last + 1]]
        assert max(sides) <= 1.6 * np.mean(sides)
        assert min(sides) >= np.mean(sides) / 1.6
    leap = [make_sample(k, height_px=80.0 if k < 9 else 140.0) for k in range(10)]
    assert cut_up(leap, reach=10.0)[0] == [(0, 8), (9, 9)]


def test_other_face_inside_the_crop_takes_its_samples_and_their_neighbours(make_sample):
    intruder = [[350.0, 280.0, 390.0, 330.0]]
    samples = [make_sample(k, others=intruder if k in (9, 10) else ()) for k in range(20)]
    places, reasons, _ = cut_up(samples)
    assert places == [(0, 7), (12, 19)]
    assert [k for k, reason in enumerate(reasons) if reason == "other_face_in_crop"] == [8, 9, 10, 11]
    samples[8].is_corrupt = True
    assert cut_up(samples)[1][8:10] == ["damaged_frames", "other_face_in_crop"]


@pytest.mark.parametrize(
    ("box", "is_intruder"),
    [
        ([350, 280, 390, 330], True),
        ([700, 280, 740, 330], False),  # elsewhere in the picture
        ([350, 280, 356, 288], False),  # 8 px high: a picture on the wall
    ],
)
def test_which_other_face_counts(make_sample, box, is_intruder):
    places, _, segments = cut_up([make_sample(k, others=[box]) for k in range(10)])
    if not is_intruder:
        left, _, right, _ = segments[0].crop.box
        assert box[2] > right or box[0] < left or box[3] - box[1] < 10, "the case is what it says"
    assert places == ([] if is_intruder else [(0, 9)])


@pytest.mark.parametrize(("share", "is_intruder"), [(0.2, False), (0.3, True)])
def test_another_face_counts_from_a_quarter_inside_on(make_sample, share, is_intruder):
    _, _, right, bottom = cut_up([make_sample(0)])[2][0].crop.box
    beside = [right - share * 40, 280, right + (1 - share) * 40, 330]
    below = [280, bottom - share * 50, 320, bottom + (1 - share) * 50]
    for box in (beside, below):
        places, _, _ = cut_up([make_sample(k, others=[box]) for k in range(10)])
        assert places == ([] if is_intruder else [(0, 9)])


def test_damaged_samples_and_gaps_end_a_segment(make_sample):
    samples = [make_sample(k, is_corrupt=k == 4) for k in range(10)]
    places, reasons, _ = cut_up(samples)
    assert places == [(0, 3), (5, 9)]
    assert reasons[4] == "damaged_frames"
    gap = [make_sample(k) for k in (0, 1, 2, 3, 7, 8, 9)]  # 0.8 s unseen
    assert cut_up(gap)[0] == [(0, 3), (4, 6)]
    assert cut_up(gap, max_gap_s=1.0)[0] == [(0, 6)]


def follow(samples_by_time, options=None):
    tracker = Tracker(options or ScanOptions(), same_person_similarity=0.4)
    for samples in samples_by_time:
        if not samples:
            continue
        matches = tracker.match(np.stack([s.box for s in samples]), samples[0].time_s)
        for sample, track in zip(samples, matches, strict=True):
            tracker.add(sample, track)
    tracker.start_shot(-1)
    return [[s.frame for s in track.samples] for track in tracker.finished], tracker


def test_two_faces_are_two_tracks_whatever_their_order(make_sample):
    times = []
    for k in range(6):
        pair = [make_sample(k, center=(300.0 + 5 * k, 300.0)), make_sample(k, center=(700.0 - 5 * k, 300.0))]
        times.append(pair[::-1] if k % 2 else pair)
    tracks, tracker = follow(times)
    assert tracks == [[0, 5, 10, 15, 20, 25]] * 2
    for track in tracker.finished:
        steps = np.diff([s.box[0] for s in track.samples])
        assert (np.abs(steps) < 10).all(), "no track jumps from one face to the other"


def test_face_that_jumps_or_is_gone_too_long_starts_a_new_track(make_sample):
    jump = [[make_sample(k, center=(300.0 if k < 3 else 500.0, 300.0))] for k in range(6)]
    assert follow(jump)[0] == [[0, 5, 10], [15, 20, 25]]
    gone = [[make_sample(k)] for k in (0, 1, 2, 7, 8)]
    assert follow(gone)[0] == [[0, 5, 10], [35, 40]]
    short = [[make_sample(k)] for k in (0, 1, 2, 5, 6)]  # 0.6 s
    assert follow(short)[0] == [[0, 5, 10, 25, 30]]


def test_sampled_frames_that_are_far_apart_are_no_gap(make_sample):
    once_a_second = [[make_sample(k)] for k in (0, 5, 10, 20)]
    assert follow(once_a_second, ScanOptions(sample_fps=1.0))[0] == [[0, 25, 50], [100]]


def test_a_face_continues_one_track_and_a_track_with_one_face(make_sample):
    near, far = make_sample(0, center=(300.0, 300.0)), make_sample(0, center=(315.0, 300.0))
    for order in ((near, far), (far, near)):
        tracker = Tracker(ScanOptions(), same_person_similarity=0.4)
        for sample in order:
            tracker.add(sample, None)
        (track,) = tracker.match(make_sample(1, center=(302.0, 300.0)).box[None], 0.2)
        assert track.samples == [near]
    for order in ((near, far), (far, near)):
        tracker = Tracker(ScanOptions(), same_person_similarity=0.4)
        tracker.add(make_sample(0, center=(302.0, 300.0)), None)
        found = tracker.match(np.stack([sample.box for sample in order]), 0.2)
        assert [sample for sample, track in zip(order, found, strict=True) if track is not None] == [near]


def test_another_person_in_the_same_place_starts_a_new_track(make_sample):
    """A cut that was not noticed, or someone who takes the seat."""
    times = [[make_sample(k, embedding=PERSON if k < 5 else OTHER_PERSON)] for k in range(10)]
    assert follow(times)[0] == [[0, 5, 10, 15, 20], [25, 30, 35, 40, 45]]


def test_what_lies_between_two_persons_is_in_no_segment(make_sample):
    identified = {0: PERSON, 3: PERSON, 6: OTHER_PERSON}
    _, tracker = follow([[make_sample(k, embedding=identified.get(k))] for k in range(8)])
    first, second = tracker.finished
    assert [sample.may_be_other for sample in first.samples] == [False] * 4 + [True] * 2
    assert not any(sample.may_be_other for sample in second.samples)
    places, reasons, _ = cut_up(first.samples)
    assert (places, reasons[4:]) == ([(0, 3)], ["person_changes"] * 2)


@pytest.mark.parametrize("end", ["cut", "out of sight"])
def test_another_person_on_the_last_samples_of_a_track_is_noticed(make_sample, end):
    """No embedding is due there: the last sample is identified when the track has ended, and no other one."""
    asked = []

    def sample(k: int, face: np.ndarray):
        if k % 5 == 0:
            return make_sample(k, embedding=face)
        return make_sample(k, identify=lambda: asked.append(k) or face[None])

    for face, doubtful in ((PERSON, []), (OTHER_PERSON, [11, 12, 13])):
        asked.clear()
        times = [[sample(k, PERSON if k < 12 else face)] for k in range(14)]
        if end == "out of sight":
            times.append([make_sample(30, center=(900.0, 300.0), embedding=PERSON)])
        _, tracker = follow(times)
        track = tracker.finished[0]
        assert [k for k, s in enumerate(track.samples) if s.may_be_other] == doubtful
        assert asked == [13]
        assert all(s.identify is None for s in track.samples), "pictures are not kept"
        assert len(track.embeddings) == 3


def test_a_face_that_was_away_is_identified_at_once(make_sample):
    tracker = Tracker(ScanOptions(), same_person_similarity=0.4)
    tracker.add(make_sample(0, embedding=PERSON), None)
    tracker.add(make_sample(1), tracker.match(make_sample(1).box[None], 0.2)[0])
    for k, is_wanted in ((2, False), (3, True), (4, True)):
        (track,) = tracker.match(make_sample(k).box[None], k / 5)
        assert tracker.wants_embedding(track, k / 5) == is_wanted


def test_a_person_is_compared_by_the_angle_to_the_mean_of_the_track(make_sample):
    angles = np.deg2rad([0, 50, -40])  # the last is 65 degrees from the mean, whose cosine is 0.42
    faces = [np.array([np.cos(angle), np.sin(angle)], np.float32) for angle in angles]
    assert follow([[make_sample(k, embedding=face)] for k, face in enumerate(faces)])[0] == [[0, 5, 10]]


def test_identity_is_asked_for_once_a_second(make_sample):
    tracker = Tracker(ScanOptions(embed_every_s=1.0), same_person_similarity=0.4)
    asked = []
    for k in range(16):
        sample = make_sample(k)
        (track,) = tracker.match(sample.box[None], sample.time_s)
        if tracker.wants_embedding(track, sample.time_s):
            asked.append(k)
            sample.embedding = PERSON
        tracker.add(sample, track)
    assert asked == [0, 5, 10, 15]


def test_tracks_end_at_a_cut(make_sample):
    tracker = Tracker(ScanOptions(), same_person_similarity=0.4)
    for k in range(6):
        if k == 3:
            tracker.start_shot(1)
        sample = make_sample(k)
        (track,) = tracker.match(sample.box[None], sample.time_s)
        tracker.add(sample, track)
    tracker.start_shot(-1)
    assert [(t.shot, [s.frame for s in t.samples]) for t in tracker.finished] == [(0, [0, 5, 10]), (1, [15, 20, 25])]
