"""The random transform of the equivariance loss: an affine map plus a thin-plate spline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

NUM_CONTROL = 5
"""Control points of the spline along each axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomTransform:
    """T of the equivariance loss `abs(x_d[:2] - T(x_{T(d)}[:2]))`, one for each sample of a batch.

    T maps a place in the warped picture to the place in the original picture that is shown there:
    `warp_image(d)(p) = d(T(p))`. So a key point found at p in the warped picture belongs to `warp_points(p)` in d.
    T(p) = A p + b + sum_k w_k U(norm2(p - c_k)), U(r) = r^2 log r (thin-plate spline, Bookstein 1989), c_k a regular
    grid over [-1, 1]^2. Coordinates: x right, y down, -1 and 1 at the outer edges (align_corners=False). In float32.
    """

    matrix: Tensor
    """float32 [B, 2, 2]: A."""
    shift: Tensor
    """float32 [B, 2]: b."""
    control: Tensor
    """float32 [K, 2]: c."""
    weights: Tensor
    """float32 [B, K, 2]: w."""

    @classmethod
    def sample(
        cls,
        batch_size: int,
        *,
        generator: torch.Generator,
        affine_sigma: float = 0.05,
        spline_sigma: float = 0.005,
    ) -> RandomTransform:
        """Draw transforms on the generator's device: A = 1 + N(0, affine_sigma), b and w around 0.

        affine_sigma: spread of A and b. spline_sigma: spread of w.
        """
        device = generator.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch_size, *shape, generator=generator, device=device)

        axis = torch.linspace(-1, 1, NUM_CONTROL, device=device)
        return cls(
            matrix=torch.eye(2, device=device) + affine_sigma * normal(2, 2),
            shift=affine_sigma * normal(2),
            control=torch.cartesian_prod(axis, axis),
            weights=spline_sigma * normal(NUM_CONTROL**2, 2),
        )

    @classmethod
    def sample_rows(cls, num: int, *, part: int, num_parts: int, generator: torch.Generator) -> RandomTransform:
        """The `num` transforms of one of the equal parts of a batch, out of those that would be drawn for all of it."""
        drawn = cls.sample(num * num_parts, generator=generator)
        rows = slice(part * num, (part + 1) * num)
        return cls(
            matrix=drawn.matrix[rows], shift=drawn.shift[rows], control=drawn.control, weights=drawn.weights[rows]
        )

    def warp_points(self, points: Tensor) -> Tensor:
        """Places in the warped picture to places in the original. points: [B, K, 2]; returns float32 [B, K, 2].

        Differentiable in the points: gradients of the loss reach the key points of the warped picture.
        """
        with torch.autocast(points.device.type, enabled=False):
            points = points.float()
            squared = (points[:, :, None] - self.control).square().sum(-1)
            bend = torch.xlogy(0.5 * squared, squared.clamp_min(1e-12))  # r^2 log r without a root
            return points @ self.matrix.mT + self.shift[:, None] + bend @ self.weights

    def warp_image(self, image: Tensor) -> Tensor:
        """The picture as T shows it. image: [B, 3, H, W]; returns float32 of that shape, borders reflected."""
        height, width = image.shape[-2:]
        with torch.autocast(image.device.type, enabled=False):
            y, x = ((2 * torch.arange(n, device=image.device) + 1) / n - 1 for n in (height, width))
            places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(1, -1, 2)
            grid = self.warp_points(places.expand(len(image), -1, -1)).reshape(-1, height, width, 2)
            return nnf.grid_sample(image.float(), grid, padding_mode="reflection", align_corners=False)
