"""The landmark network: its centres of mass, its varied pictures, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from training.data import PreparedBatch, PreparedFrames
from training.distributed import Process
from training.landmarks import LandmarkOptions, LandmarksRecipe, LandmarkStage, dotted, errors, vary
from training.networks.landmarks import LandmarkConfig, LandmarkNetwork, centres_of_mass
from training.recipe import ComputeOptions, OptimizerOptions


def test_centre_of_mass_of_a_peak_is_its_pixel() -> None:
    maps = torch.zeros(1, 2, 4, 8)
    maps[0, 0, 1, 6] = 100.0  # row 1 of 4, column 6 of 8
    maps[0, 1, 2, 0] = maps[0, 1, 2, 1] = 100.0
    expected = torch.tensor([[[13 / 8 - 1, 3 / 4 - 1], [2 / 8 - 1, 5 / 4 - 1]]])
    torch.testing.assert_close(centres_of_mass(maps), expected)


def test_any_picture_size_gives_landmarks_with_gradients() -> None:
    network = LandmarkNetwork(LandmarkConfig(image_size=64, heatmap_size=16))
    for size in (32, 64, 200):
        picture = torch.rand(2, 3, size, size, requires_grad=True)
        found = network(picture)
        assert found.shape == (2, 68, 2)
        assert found.abs().max() < 1
        found.square().sum().backward()
        assert picture.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heatmap_size": 4}, "heatmap_size is 4: expected at least 8, the side of the last of 4 levels"),
        ({"channels": (12, 24)}, r"channels is \(12, 24\): expected one or more multiples of 8"),
        ({"channels": ()}, r"channels is \(\): expected one or more multiples of 8"),
        ({"image_size": 120}, "image_size must be a multiple of 16 for 4 levels, got 120"),
    ],
)
def test_sizes_that_make_no_network_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LandmarkConfig(**options)
    LandmarkNetwork(LandmarkConfig(heatmap_size=8))  # the least


@pytest.mark.parametrize("options", [{"scale": 1.0}, {"blur": 3.0}, {"rotation_deg": 200.0}, {"shift": -0.1}])
def test_variation_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*, expected"):
        LandmarkOptions(**options)


def test_varied_pictures_and_points_agree() -> None:
    """A blob at each point is found at the varied point."""
    torch.manual_seed(0)
    points = torch.rand(6, 1, 2) * 0.8 - 0.4
    y, x = torch.meshgrid(*[(2 * torch.arange(128) + 1) / 128 - 1] * 2, indexing="ij")
    images = torch.exp(-((x - points[..., :1]) ** 2 + (y - points[..., 1:]) ** 2) / 0.004)[:, None].expand(
        -1, 3, -1, -1
    )
    moved, expected = vary(images, points, LandmarkOptions(), torch.rand(6, 5), 0.5)
    weight = moved[:, 0] / moved[:, 0].sum(dim=(1, 2), keepdim=True)
    found = torch.stack([(weight * x).sum(dim=(1, 2)), (weight * y).sum(dim=(1, 2))], dim=1)
    torch.testing.assert_close(found, expected[:, 0], atol=2e-3, rtol=0)
    assert (expected - points).abs().max() > 0.05


def test_two_ranks_vary_as_one_would(make_face68) -> None:
    """The mean of the losses of two halves is the loss of the whole, with the same turns, shifts and blur."""
    face = torch.from_numpy(make_face68((0.0, 0.0), 1.0)).float()
    recipe = LandmarksRecipe(landmarks=LandmarkConfig(image_size=64, channels=(8,), heatmap_size=32))
    pictures, points = torch.rand(2, 4, 3, 64, 64), face + 0.1 * torch.rand(2, 4, 1, 2)

    def loss(process: Process, rows: slice) -> float:
        stage = LandmarkStage(recipe, Process())
        stage.process = process
        source, driving = (
            PreparedFrames(
                image=pictures[side, rows],
                target=pictures[side, rows],
                landmarks=points[side, rows],
                pose=torch.zeros(4, 3)[rows],
            )
            for side in range(2)
        )
        batch = PreparedBatch(source=source, driving=driving, is_still=torch.zeros(4, dtype=torch.bool)[rows])
        generator = torch.Generator().manual_seed(5)
        return stage.training_step(batch, 0, generator)["loss"].item()

    halves = [loss(Process(rank=rank, world_size=2), slice(2 * rank, 2 * rank + 2)) for rank in range(2)]
    assert sum(halves) / 2 == pytest.approx(loss(Process(), slice(0, 4)), rel=1e-5)
    assert halves[0] != pytest.approx(halves[1], rel=1e-3)


def test_errors_by_hand(make_face68) -> None:
    labels = torch.from_numpy(make_face68((0.0, 0.0), 1.0)).float()[None]
    found = labels.clone()
    found[0, 66, 1] += 0.032  # a tenth of the distance between the mouth's corners
    told = errors(found, labels)
    torch.testing.assert_close(told["position"], torch.tensor([0.032 / 136]))
    torch.testing.assert_close(told["lip"], torch.tensor([0.1]), atol=1e-4, rtol=0)
    assert told["eyes"] == 0


def test_dots_land_on_their_pixels() -> None:
    points = torch.full((1, 68, 2), 5.0)  # outside: not drawn
    points[0, 0] = torch.tensor([-1 + 2 * 2.5 / 8, -1 + 2 * 4.5 / 8])
    drawn = dotted(torch.zeros(1, 3, 8, 8), points)
    assert drawn.nonzero().tolist() == [[0, 1, 4, 2]]


def test_it_computes_as_asked() -> None:
    """In channels-last and bfloat16; what it does not take is refused."""
    landmarks = LandmarkConfig(image_size=64, channels=(8,), heatmap_size=32)

    def make(**options: Any) -> LandmarkStage:
        return LandmarkStage(LandmarksRecipe(landmarks=landmarks, compute=ComputeOptions(**options)), Process())

    stage, formats, kinds = make(channels_last=True, precision="bfloat16"), [], []
    for network in (stage.modules["landmarks"], stage.ema.modules["landmarks"]):
        formats.append(network.down[0][0][0].weight.is_contiguous(memory_format=torch.channels_last))
        network.head.register_forward_hook(lambda _, inputs, output: kinds.append(output.dtype))
    assert formats == [True, True]
    frames = PreparedFrames(
        image=torch.rand(2, 3, 64, 64),
        target=torch.rand(2, 3, 64, 64),
        landmarks=torch.zeros(2, 68, 2),
        pose=torch.zeros(2, 3),
    )
    batch = PreparedBatch(source=frames, driving=frames, is_still=torch.zeros(2, dtype=torch.bool))
    with torch.no_grad():
        assert stage.validate(batch)["position"].dtype == torch.float32
    assert kinds == [torch.bfloat16]
    for name, value in (("compile", True), ("recompute", ("up_1",))):
        with pytest.raises(ValueError, match=f"compute.{name} is .* which the stage landmarks does not take"):
            make(**{name: value})


def test_it_learns(make_face68) -> None:
    """Faces as bright dots on black, at random places: the error falls to less than half of an untrained network's."""
    face = torch.from_numpy(make_face68((0.0, 0.0), 1.0)).float()
    recipe = LandmarksRecipe(
        landmarks=LandmarkConfig(image_size=64, channels=(16, 16, 16), heatmap_size=32),
        optimizer=OptimizerOptions(learning_rate=3e-3, ema_half_life_images=0),
    )
    stage = LandmarkStage(recipe, Process())
    generator = torch.Generator().manual_seed(0)

    def frames() -> PreparedFrames:
        places = torch.rand(4, 1, 2, generator=generator) * 0.8 - 0.4
        landmarks = face + places
        target = dotted(torch.zeros(4, 3, 64, 64), landmarks)
        target = functional.avg_pool2d(target, 3, stride=1, padding=1).clamp(max=1)
        return PreparedFrames(image=target, target=target, landmarks=landmarks, pose=torch.zeros(4, 3))

    def batch() -> PreparedBatch:
        return PreparedBatch(source=frames(), driving=frames(), is_still=torch.zeros(4, dtype=torch.bool))

    held_out = batch()
    before = stage.validate(held_out)["position"].mean()
    for step in range(200):
        stage.training_step(batch(), 4 * step, generator)
    assert stage.validate(held_out)["position"].mean() < 0.5 * before
