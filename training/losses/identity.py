"""L_faceid: cosine distance of the identities of predicted and target faces, aligned by landmarks within the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.faces.alignment import ARCFACE_POINTS, ARCFACE_SIZE_PX
from model.networks.blocks import without_autocast
from training.networks.recogniser import FaceRecogniser

OVERSAMPLING = 2


def points5_from_landmarks(landmarks: Tensor) -> Tensor:
    """Eye centres, nose tip and corners of the mouth of iBUG points [B, 68, 2]: [B, 5, 2]."""
    eyes = [landmarks[:, 36:42].mean(dim=1), landmarks[:, 42:48].mean(dim=1)]
    return torch.stack([*eyes, landmarks[:, 30], landmarks[:, 48], landmarks[:, 54]], dim=1)


def face_grid(landmarks: Tensor, template: Tensor, picture_size: Sequence[int]) -> Tensor:
    """Where in pictures of a height and width the samples of aligned faces lie, for `sample_faces`.

    The same least-squares similarity as `model.faces.alignment.arcface_crop`. landmarks: float [B, 68, 2] in [-1, 1]
    (see `losses.regions`), constant, without NaN. template: float32 [5, 2], the points' places in the aligned face,
    pixels from its corner; on the device of the landmarks.
    """
    with without_autocast(landmarks.device):
        # Filled, not made of a list of numbers, which would wait for the device.
        side = torch.stack([template.new_full((), size) for size in reversed(picture_size)])
        # Work in pixels from the picture's corner, so that a similarity is one also in pictures that are not square.
        points = (points5_from_landmarks(landmarks.detach().float()) + 1) / 2 * side
        matrix, shift = _similarity(template.expand_as(points), points)
        samples = ARCFACE_SIZE_PX * OVERSAMPLING
        steps = (torch.arange(samples, dtype=torch.float32, device=landmarks.device) + 0.5) / OVERSAMPLING
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).view(1, -1, 2)
        return ((grid @ matrix.mT + shift[:, None]) / side * 2 - 1).view(-1, samples, samples, 2)


def sample_faces(image: Tensor, grid: Tensor) -> Tensor:
    """Aligned faces of pictures [B, C, H, W] by `face_grid`: float32 [B, C, 112, 112]; gradients reach the pictures.

    Every output pixel averages 2 x 2 samples, because a training picture is usually reduced.
    """
    with without_autocast(image.device):
        fine = functional.grid_sample(image.float(), grid, align_corners=False)
        return functional.avg_pool2d(fine, OVERSAMPLING)


def _similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix [B, 2, 2] and shift [B, 2] that bring points `source` [B, N, 2] to `target`: the least squared error is
    that of the way back, at `source`.

    The crop's transform is fitted from picture to template and inverted, as `arcface_crop` does; the other direction
    would weigh errors differently.
    """
    # Fit target -> source: p' = a p + b as complex numbers, a = <p, p'> / <p, p>.
    from_mean, to_mean = target.mean(dim=1), source.mean(dim=1)
    p, q = target - from_mean[:, None], source - to_mean[:, None]
    square = p.square().sum(dim=(1, 2)).clamp(min=1e-6)
    real = (p * q).sum(dim=(1, 2)) / square
    imaginary = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(dim=1) / square
    # Invert: p = (p' - b) / a.
    modulus = (real.square() + imaginary.square()).clamp(min=1e-12)
    real, imaginary = real / modulus, -imaginary / modulus
    matrix = torch.stack([torch.stack([real, -imaginary], dim=1), torch.stack([imaginary, real], dim=1)], dim=1)
    shift = from_mean - (matrix @ to_mean[..., None])[..., 0]
    return matrix, shift


class IdentityLoss(nn.Module):
    """Mean over the batch of 1 - cosine(identity of prediction, identity of target); NaN landmarks add zero."""

    def __init__(self, recogniser: FaceRecogniser) -> None:
        super().__init__()
        self.recogniser = recogniser
        self.register_buffer("template", torch.as_tensor(ARCFACE_POINTS + 0.5, dtype=torch.float32), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor, landmarks: Tensor) -> Tensor:
        """prediction, target: float [B, 3, H, W] in [0, 1], both aligned by the target's landmarks [B, 68, 2]."""
        known = ~landmarks.isnan().flatten(1).any(dim=1)
        # Any face will do where there is none: its term is dropped below, and must not be NaN on the way.
        landmarks = torch.where(known[:, None, None], landmarks, _placeholder(landmarks))
        grid = face_grid(landmarks, self.template, target.shape[-2:])
        identity = self.recogniser(sample_faces(prediction, grid))
        with torch.no_grad():
            target_identity = self.recogniser(sample_faces(target, grid))
        distance = 1 - (identity * target_identity).sum(dim=1)
        return torch.where(known, distance, 0.0).mean()


def _placeholder(landmarks: Tensor) -> Tensor:
    """Landmarks in general position, [68, 2]."""
    angle = torch.arange(68, device=landmarks.device, dtype=landmarks.dtype)
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=1) / 2
