"""The transform of the equivariance loss: pictures and points agree, and its strength is the published one."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data import RandomTransform


def dots(points: Tensor, side: int) -> Tensor:
    """float32 [B, K, side, side]: a soft dot at each of [B, K, 2] in [-1, 1]."""
    centers = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    distance = (x - points[..., 0, None, None]) ** 2 + (y - points[..., 1, None, None]) ** 2
    return torch.exp(-distance / (2 * 0.03**2))


def find(images: Tensor) -> Tensor:
    centers = (2 * torch.arange(images.shape[-1]) + 1) / images.shape[-1] - 1
    total = images.sum((2, 3))
    return torch.stack([(images.sum(2) * centers).sum(-1) / total, (images.sum(3) * centers).sum(-1) / total], -1)


def draw(batch: int, seed: int = 0, **options) -> RandomTransform:
    return RandomTransform.sample(batch, generator=torch.Generator().manual_seed(seed), **options)


def test_a_dot_seen_in_the_warped_picture_lies_where_the_points_say():
    transform = draw(8, spline_sigma=0.01)
    seen = torch.rand(8, 5, 2, generator=torch.Generator().manual_seed(1)) - 0.5
    original = transform.warp_points(seen)
    assert original.abs().max() < 0.8  # else the border's reflection shows a dot twice
    found = find(transform.warp_image(dots(original, 256)))
    assert (original - seen).abs().max() > 0.1  # else nothing is tested
    assert (found - seen).abs().max() < 0.004  # half a pixel of 256; dots are stretched a little
    assert (find(dots(original, 256)) - original).abs().max() < 1e-3


def test_without_strength_it_is_the_identity():
    transform = draw(2, affine_sigma=0.0, spline_sigma=0.0)
    image = torch.rand(2, 3, 40, 56)
    torch.testing.assert_close(transform.warp_image(image), image, rtol=0, atol=1e-5)
    points = torch.rand(2, 21, 2) * 2 - 1
    torch.testing.assert_close(transform.warp_points(points), points)


def test_its_parts_have_the_strength_that_was_asked():
    transform = draw(4000)
    assert abs((transform.matrix - torch.eye(2)).std() - 0.05) < 0.001
    assert abs(transform.shift.std() - 0.05) < 0.002
    assert abs(transform.weights.std() - 0.005) < 0.0001
    assert transform.control.shape == (25, 2)
    assert transform.weights.shape == (4000, 25, 2)
    assert transform.control.min(0).values.tolist() == [-1, -1]


def test_the_spline_by_hand():
    transform = RandomTransform(
        matrix=torch.tensor([[[1.0, 0.5], [0.0, 2.0]]]),
        shift=torch.tensor([[0.1, -0.2]]),
        control=torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
        weights=torch.tensor([[[1.0, 0.0], [0.0, 10.0]]]),
    )
    # p = (3, 4): r = 5 from the first control point, sqrt(20) from the second.
    bend = 25 * torch.tensor(5.0).log(), 20 * torch.tensor(20.0).sqrt().log()
    expected = torch.tensor([[3 + 0.5 * 4 + 0.1 + bend[0], 2 * 4 - 0.2 + 10 * bend[1]]])
    torch.testing.assert_close(transform.warp_points(torch.tensor([[[3.0, 4.0]]]))[0], expected)


def test_gradients_reach_points_even_on_control_points_and_autocast_stays_outside():
    transform = draw(2)
    points = transform.control[None].repeat(2, 1, 1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        moved = transform.warp_points(points)
        assert moved.dtype == torch.float32
        assert transform.warp_image(torch.rand(2, 3, 16, 16).bfloat16()).dtype == torch.float32
    moved.sum().backward()
    assert points.grad.isfinite().all()
    assert points.grad.abs().min() > 0.1


def test_the_same_generator_state_gives_the_same_transform():
    assert torch.equal(draw(3, seed=4).weights, draw(3, seed=4).weights)
    assert not torch.equal(draw(3, seed=4).weights, draw(3, seed=5).weights)
