"""L_faceid: cosine distance of the identities of predicted and target faces, aligned by landmarks within the graph."""

from __future__ import annotations

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


def align_faces(image: Tensor, landmarks: Tensor, size_px: int = ARCFACE_SIZE_PX) -> Tensor:
    """Faces in the position that ArcFace and SFace expect: float32 [B, C, size_px, size_px].

    image: float [B, C, H, W]; gradients reach it. landmarks: float [B, 68, 2] in [-1, 1] (see `losses.regions`),
    constant, without NaN. The same least-squares similarity as `model.faces.alignment.arcface_crop`; every output
    pixel averages 2 x 2 samples, because a training picture is usually reduced.
    """
    with without_autocast(image.device):
        picture_size = torch.tensor(image.shape[-1:-3:-1], dtype=torch.float32, device=image.device)
        # Work in pixels from the picture's corner, so that a similarity is one also in pictures that are not square.
        points = (points5_from_landmarks(landmarks.detach().float()) + 1) / 2 * picture_size
        template = torch.as_tensor(ARCFACE_POINTS, dtype=torch.float32, device=image.device) + 0.5
        template = template * (size_px / ARCFACE_SIZE_PX)
        matrix, shift = _similarity(template.expand_as(points), points)
        samples = size_px * OVERSAMPLING
        steps = (torch.arange(samples, dtype=torch.float32, device=image.device) + 0.5) / OVERSAMPLING
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).view(1, -1, 2)
        grid = ((grid @ matrix.mT + shift[:, None]) / picture_size * 2 - 1).view(-1, samples, samples, 2)
        fine = functional.grid_sample(image.float(), grid, align_corners=False)
        return functional.avg_pool2d(fine, OVERSAMPLING)


def _similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix [B, 2, 2] and shift [B, 2] that bring points [B, N, 2] to others with the least squared error *there*.

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

    def forward(self, prediction: Tensor, target: Tensor, landmarks: Tensor) -> Tensor:
        """prediction, target: float [B, 3, H, W] in [0, 1], both aligned by the target's landmarks [B, 68, 2]."""
        known = ~landmarks.isnan().flatten(1).any(dim=1)
        # Any face will do where there is none: its term is dropped below, and must not be NaN on the way.
        landmarks = torch.where(known[:, None, None], landmarks, _placeholder(landmarks))
        identity = self.recogniser(align_faces(prediction, landmarks))
        with torch.no_grad():
            target_identity = self.recogniser(align_faces(target, landmarks))
        distance = 1 - (identity * target_identity).sum(dim=1)
        return torch.where(known, distance, 0.0).mean()


def _placeholder(landmarks: Tensor) -> Tensor:
    """Landmarks in general position, [68, 2]."""
    angle = torch.arange(68, device=landmarks.device, dtype=landmarks.dtype)
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=1) / 2
