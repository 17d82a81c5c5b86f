"""Augmentation: labels move with the pixels, pairs alike, stills apart, and all of it by the sample's index alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from training.data import AugmentationConfig, Batch, Frames, PreparedBatch, augment, prepare
from training.data.augmentation import FLIPPED_POINTS, colour_map

SIDE_PX = 128
NOTHING = AugmentationConfig(
    flip=0, brightness=0, contrast=0, saturation=0, hue_deg=0, still_rotation_deg=0, still_scale=0, still_shift=0
)


def gaussian_dots(points: Tensor, side: int) -> Tensor:
    """uint8 [3, side, side]: a soft dot at each of three points float [3, 2] in pixels, one a channel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
    return (255 * torch.exp(-distance / (2 * 3.0**2))).round().to(torch.uint8)


def find_dots(images: Tensor) -> Tensor:
    """[B, 3, 2] in [-1, 1]: centres of mass of the channels of [B, 3, S, S]."""
    side = images.shape[-1]
    centers = (2 * torch.arange(side) + 1) / side - 1
    weight = images.double() * (images > 0.05)
    total = weight.sum((2, 3))
    return torch.stack([(weight.sum(2) * centers).sum(-1) / total, (weight.sum(3) * centers).sum(-1) / total], -1)


@pytest.fixture
def batch() -> Batch:
    """Eight pairs, the last four stills; landmarks 36, 45 and 8 lie on dots, one a channel."""
    generator = torch.Generator().manual_seed(0)

    def frames(points: Tensor) -> Frames:
        num = len(points)
        landmarks = torch.rand(num, 68, 2, generator=generator) * SIDE_PX
        landmarks[:, [36, 45, 8]] = points
        return Frames(
            images=torch.stack([gaussian_dots(three, SIDE_PX) for three in points]),
            landmarks=landmarks,
            pose=torch.randn(num, 3, generator=generator) * 10,
            clip_ids=["a"] * num,
            frames=[0] * num,
            identities=["p"] * num,
        )

    source, driving = (frames(40 + 48 * torch.rand(8, 3, 2, generator=generator)) for _ in range(2))
    for item in dataclasses.fields(Frames):  # a still is one picture
        if isinstance(value := getattr(source, item.name), Tensor):
            getattr(driving, item.name)[4:] = value[4:]
    return Batch(
        source=source,
        driving=driving,
        is_still=torch.arange(8) >= 4,
        indices=torch.arange(100, 108),
        still_rows=[4, 5, 6, 7],
        position=108,
    )


def assert_dots_are_at_landmarks(prepared: PreparedBatch, channels: list[Tensor], within: float = 0.012) -> None:
    for frames, order in zip((prepared.source, prepared.driving), channels, strict=True):
        for image in (frames.image, frames.target):
            found = torch.gather(find_dots(image), 1, order[..., None].expand(-1, -1, 2))
            assert (found - frames.landmarks[:, [36, 45, 8]]).abs().max() < within


AS_DRAWN = torch.tensor([0, 1, 2]).expand(8, 3)
MIRRORED = torch.tensor([1, 0, 2]).expand(8, 3)  # the dot of 36 is now 45's


def test_prepared_pictures_are_the_same_at_every_size(batch: Batch):
    batch.source.landmarks[0, 0] = torch.tensor([0.0, SIDE_PX - 1.0])
    for image_size in (64, 32, 24):
        prepared = prepare(batch, image_size=image_size)
        assert prepared.source.image.shape == (8, 3, image_size, image_size)
        assert prepared.driving.target.shape == (8, 3, 2 * image_size, 2 * image_size)
        assert prepared.source.image.dtype == prepared.source.landmarks.dtype == torch.float32
        assert_dots_are_at_landmarks(prepared, [AS_DRAWN, AS_DRAWN])
    full = prepare(batch, image_size=64)
    assert torch.equal(full.source.target, batch.source.images.float() / 255)
    assert torch.equal(full.source.pose, batch.source.pose)
    assert full.source.landmarks[0, 0].tolist() == [-1 + 1 / 128, 1 - 1 / 128], "centres of pixels in two corners"
    half = torch.nn.functional.avg_pool2d(full.source.target, 2)
    assert torch.equal(prepare(batch, image_size=32).source.target, half)


def test_a_reduction_by_no_whole_number_does_not_alias(batch: Batch):
    batch.source.images = torch.zeros(8, 3, SIDE_PX, SIDE_PX, dtype=torch.uint8)
    batch.source.images[..., ::2] = 255
    inner = prepare(batch, image_size=24).source.target[..., 2:-2]
    assert (inner - 0.5).abs().max() < 0.1


def test_nothing_asked_changes_nothing(batch: Batch):
    plain, varied = prepare(batch, image_size=64), augment(batch, config=NOTHING, image_size=64, seed=3)
    torch.testing.assert_close(varied.source.target[:4], plain.source.target[:4], rtol=0, atol=0)
    torch.testing.assert_close(varied.source.target, plain.source.target, rtol=0, atol=1e-5)
    torch.testing.assert_close(varied.driving.landmarks, plain.driving.landmarks)


def test_a_flip_mirrors_pixels_points_and_angles(batch: Batch):
    plain = prepare(batch, image_size=64)
    flipped = augment(batch, config=dataclasses.replace(NOTHING, flip=1.0), image_size=64, seed=3)
    torch.testing.assert_close(flipped.source.target, plain.source.target.flip(-1), rtol=0, atol=1e-5)
    assert_dots_are_at_landmarks(flipped, [MIRRORED, MIRRORED])
    for one, other in ((flipped.source, plain.source), (flipped.driving, plain.driving)):
        assert torch.equal(one.pose, other.pose * torch.tensor([1.0, -1.0, -1.0]))


def test_mirrored_point_numbers_are_an_involution_that_keeps_the_middle():
    assert torch.equal(FLIPPED_POINTS[FLIPPED_POINTS], torch.arange(68))
    middle = [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    assert [k for k in range(68) if FLIPPED_POINTS[k] == k] == middle
    pairs = {0: 16, 17: 26, 31: 35, 36: 45, 37: 44, 39: 42, 40: 47, 48: 54, 50: 52, 59: 55, 60: 64, 67: 65}
    assert {k: FLIPPED_POINTS[k].item() for k in pairs} == pairs


def test_mirrored_landmarks_of_a_symmetric_face_are_the_same_face(make_face68):
    face = torch.from_numpy(make_face68((0.0, 0.0), 1.0))
    mirrored = face[FLIPPED_POINTS] * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(mirrored[:27], face[:27])  # jaw and brows, symmetric by construction


def test_both_frames_of_a_pair_are_flipped_or_neither(batch: Batch):
    batch.indices = torch.arange(8) * 977
    varied = augment(batch, config=dataclasses.replace(NOTHING, flip=0.5), image_size=64, seed=1)
    plain = prepare(batch, image_size=64)
    is_flipped = [
        [(a[k] - b[k]).abs().max() > 1e-3 for k in range(8)]
        for a, b in ((varied.source.target, plain.source.target), (varied.driving.target, plain.driving.target))
    ]
    assert is_flipped[0] == is_flipped[1]
    assert 1 <= sum(is_flipped[0]) <= 7


def test_stills_become_two_pictures_whose_labels_follow(batch: Batch):
    config = dataclasses.replace(NOTHING, flip=1.0, still_rotation_deg=15, still_scale=0.1, still_shift=0.05)
    moved = augment(batch, config=config, image_size=64, seed=9)
    assert_dots_are_at_landmarks(moved, [MIRRORED, MIRRORED])
    plain = augment(batch, config=dataclasses.replace(NOTHING, flip=1.0), image_size=64, seed=9)
    assert torch.equal(moved.source.target[:4], plain.source.target[:4])  # videos stay
    assert (moved.source.landmarks[4:] - moved.driving.landmarks[4:]).abs().amax((1, 2)).min() > 0.02
    for one, other in ((moved.source, plain.source), (moved.driving, plain.driving)):
        assert torch.equal(one.pose[:, :2], other.pose[:, :2])
        # roll is clockwise in the picture: the angle by which the landmarks turned
        before, after = (f.landmarks[4:, 45] - f.landmarks[4:, 36] for f in (other, one))
        turned = torch.rad2deg(torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0]))
        turned = (turned + 180) % 360 - 180
        torch.testing.assert_close(one.pose[4:, 2] - other.pose[4:, 2], turned, rtol=0, atol=1e-2)
        assert turned.abs().max() > 1


@pytest.mark.parametrize("prefix", ["", "still_"])
def test_zoom_and_shift_have_the_strength_that_was_asked(batch: Batch, prefix: str):
    rows = slice(4, None) if prefix else slice(4)
    plain = prepare(batch, image_size=8).source.landmarks[rows]
    batch.source.images.fill_(51)

    def moved(name: str, strength: float) -> Tensor:
        config = dataclasses.replace(NOTHING, **{prefix + name: strength})
        pictures = [augment(batch, config=config, image_size=8, seed=seed).source for seed in range(8)]
        assert all((frames.target - 0.2).abs().max() < 1e-5 for frames in pictures), "borders are reflected"
        return torch.stack([frames.landmarks[rows] for frames in pictures])

    zoom = moved("scale", 0.2) / plain
    torch.testing.assert_close(zoom, zoom[:, :, :1, :1].expand_as(zoom), rtol=1e-3, atol=1e-3)
    assert 0.8 <= zoom.min() < 0.88
    assert 1.12 < zoom.max() <= 1.2
    shift = moved("shift", 0.1) - plain
    torch.testing.assert_close(shift, shift[:, :, :1].expand_as(shift), rtol=1e-3, atol=1e-5)
    assert -0.2 <= shift.min() < -0.12  # a tenth of the side, which is 2
    assert 0.12 < shift.max() <= 0.2


def test_colours_change_alike_in_a_pair_also_of_a_still(batch: Batch):
    grey = torch.randint(60, 190, (8, 3, 1, 1), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    for frames in (batch.source, batch.driving):
        frames.images = grey.expand(8, 3, SIDE_PX, SIDE_PX).clone()
    config = dataclasses.replace(NOTHING, brightness=0.2, contrast=0.2, saturation=0.3, hue_deg=20)
    varied = augment(batch, config=config, image_size=64, seed=4)
    source, driving = (f.target[:, :, 20, 20] for f in (varied.source, varied.driving))
    plain = batch.source.images[:, :, 0, 0] / 255
    torch.testing.assert_close(source, driving, rtol=0, atol=1e-6)
    assert (source - plain).abs().amax(1).min() > 0.005
    batch.source.images.fill_(255)
    assert augment(batch, config=config, image_size=64, seed=4).source.target.max() == 1


def test_colour_maps_by_hand():
    def apply(brightness, contrast, saturation, hue_deg, colour):
        values = [torch.tensor([v], dtype=torch.float64) for v in (brightness, contrast, saturation)]
        matrix, offset = colour_map(*values, torch.deg2rad(torch.tensor([hue_deg], dtype=torch.float64)))
        return (matrix[0] @ torch.tensor(colour, dtype=torch.float64) + offset[0]).tolist()

    assert apply(1.5, 1, 1, 0, [0.2, 0.4, 0.6]) == pytest.approx([0.3, 0.6, 0.9])
    assert apply(1, 2, 1, 0, [0.5, 0.6, 0.4]) == pytest.approx([0.5, 0.7, 0.3])
    assert apply(1, 1, 0, 0, [1.0, 0.0, 0.0]) == pytest.approx([0.299] * 3)
    assert apply(1, 1, 1, 120, [1.0, 0.0, 0.0]) == pytest.approx([0.0, 1.0, 0.0])
    assert apply(1, 1, 1, 77, [0.4, 0.4, 0.4]) == pytest.approx([0.4] * 3)
    assert apply(1, 1, 0, 120, [1.0, 0.0, 0.0]) == pytest.approx([0.587] * 3), "first the hue, then the saturation"
    assert apply(1.5, 2, 1, 0, [0.5, 0.6, 0.4]) == pytest.approx([0.75, 1.05, 0.45]), "first the contrast"


def test_brightness_and_contrast_have_the_strength_that_was_asked(batch: Batch):
    batch.source.images.fill_(128)

    def levels(**strengths: float) -> Tensor:
        config = dataclasses.replace(NOTHING, **strengths)
        pictures = [augment(batch, config=config, image_size=8, seed=seed).source for seed in range(4)]
        return torch.cat([frames.target[:, 0, 0, 0] for frames in pictures]) / (128 / 255)

    brightness = levels(brightness=0.2)
    assert 0.8 <= brightness.min() < 0.88
    assert 1.12 < brightness.max() <= 1.2
    torch.testing.assert_close(levels(contrast=0.2), torch.ones(32), rtol=0, atol=0.01)  # mid-grey stays


def test_a_sample_is_varied_by_its_index_whatever_batch_it_is_in(batch: Batch):
    whole = augment(batch, config=AugmentationConfig(), image_size=32, seed=5)
    again = augment(batch, config=AugmentationConfig(), image_size=32, seed=5)
    other = augment(batch, config=AugmentationConfig(), image_size=32, seed=6)
    assert torch.equal(whole.source.target, again.source.target)
    assert not torch.equal(whole.source.target, other.source.target)
    rows = [5, 1]

    def part(frames: Frames) -> Frames:
        values = {f.name: getattr(frames, f.name) for f in dataclasses.fields(Frames)}
        return Frames(**{k: v[rows] if isinstance(v, Tensor) else [v[r] for r in rows] for k, v in values.items()})

    two = Batch(
        source=part(batch.source),
        driving=part(batch.driving),
        is_still=batch.is_still[rows],
        indices=batch.indices[rows],
        still_rows=[0],
        position=0,
    )
    few = augment(two, config=AugmentationConfig(), image_size=32, seed=5)
    torch.testing.assert_close(few.source.target, whole.source.target[rows], rtol=0, atol=1e-6)
    torch.testing.assert_close(few.driving.landmarks, whole.driving.landmarks[rows], rtol=0, atol=1e-6)


def test_unknown_labels_stay_unknown_and_the_batch_is_not_changed(batch: Batch):
    batch.source.pose[6] = float("nan")
    kept = batch.source.pose.clone()
    varied = augment(batch, config=AugmentationConfig(), image_size=32, seed=5)
    assert varied.source.pose[6].isnan().all()
    assert varied.source.pose[:6].isfinite().all()
    torch.testing.assert_close(batch.source.pose, kept, equal_nan=True)


def test_impossible_strengths_are_refused():
    with pytest.raises(ValueError, match=r"flip is 1\.5, expected a probability"):
        AugmentationConfig(flip=1.5)
    with pytest.raises(ValueError, match=r"still_scale is 1\.0"):
        AugmentationConfig(still_scale=1.0)


def test_video_pairs_move_alike_and_their_labels_follow(batch: Batch):
    config = dataclasses.replace(NOTHING, flip=1.0, rotation_deg=15, scale=0.1, shift=0.05)
    moved = augment(batch, config=config, image_size=64, seed=9)
    assert_dots_are_at_landmarks(moved, [MIRRORED, MIRRORED])
    plain = augment(batch, config=dataclasses.replace(NOTHING, flip=1.0), image_size=64, seed=9)
    assert torch.equal(moved.source.target[4:], plain.source.target[4:])  # stills have ranges of their own
    turns = []
    for one, other in ((moved.source, plain.source), (moved.driving, plain.driving)):
        before, after = (f.landmarks[:4, 45] - f.landmarks[:4, 36] for f in (other, one))
        turned = torch.rad2deg(torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0]))
        turns.append((turned + 180) % 360 - 180)
        torch.testing.assert_close(one.pose[:4, 2] - other.pose[:4, 2], turns[-1], rtol=0, atol=1e-2)
    torch.testing.assert_close(*turns, rtol=0, atol=1e-2)
    assert turns[0].abs().max() > 1
