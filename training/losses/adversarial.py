"""L_G,cascade: three discriminators, each on its own region of real and generated pictures, and feature matching.

A training step calls `discriminator_losses` and `generator_losses`, which leaves the discriminators as they are, before
any optimiser steps: both judge by the discriminators of the step before. Losses are float32; features are compared in
the type that the discriminators gave them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from training.losses.perceptual import mean_difference
from training.networks.discriminator import split_judgement

GanKind = Literal["hinge", "non-saturating"]


class GeneratorLosses(NamedTuple):
    """Losses of the generator by region."""

    adversarial: dict[str, Tensor]
    feature_matching: dict[str, Tensor]


def real_fake_loss(real_logits: Tensor, fake_logits: Tensor, kind: GanKind = "hinge") -> Tensor:
    """The discriminator's loss, mean over batch and patches of each side, the two sides added.

    hinge: max(0, 1 - real) + max(0, 1 + fake) (arXiv 1705.02894). non-saturating: softplus(-real) + softplus(fake)
    (arXiv 1406.2661, the cross entropy of both).
    """
    _check_kind(kind)
    real, fake = real_logits.float(), fake_logits.float()
    if kind == "hinge":
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def fooling_loss(fake_logits: Tensor, kind: GanKind = "hinge") -> Tensor:
    """The generator's loss, mean over batch and patches. hinge: -fake; non-saturating: softplus(-fake)."""
    _check_kind(kind)
    fake = fake_logits.float()
    return -fake.mean() if kind == "hinge" else functional.softplus(-fake).mean()


def feature_matching_loss(fake_features: Sequence[Tensor], real_features: Sequence[Tensor]) -> Tensor:
    """Sum over layers of mean |fake - real| over batch, channels, pixels (pix2pixHD, equation 4); real is constant."""
    distances = [mean_difference(fake, real.detach()) for fake, real in zip(fake_features, real_features, strict=True)]
    return torch.stack(distances).sum()


def discriminator_losses(
    discriminators: nn.Module,
    real: Mapping[str, Tensor],
    fake: Mapping[str, Tensor],
    *,
    kind: GanKind = "hinge",
) -> dict[str, Tensor]:
    """Region -> loss of its discriminator on its own region of real and of generated pictures; no gradient to either.

    discriminators: CascadedDiscriminator, bare or in DistributedDataParallel. real, fake: region -> [B, 3, H, W] in
    [0, 1], as `regions.cascade` gives. Real and fake are one forward pass, which DistributedDataParallel wants.
    """
    both = {region: torch.cat([real[region].detach(), fake[region].detach()]) for region in _same_regions(real, fake)}
    losses = {}
    for region, judgement in discriminators(both).items():
        of_real, of_fake = split_judgement(judgement, len(real[region]))
        losses[region] = real_fake_loss(of_real.logits, of_fake.logits, kind)
    return losses


def generator_losses(
    discriminators: nn.Module,
    real: Mapping[str, Tensor],
    fake: Mapping[str, Tensor],
    *,
    kind: GanKind = "hinge",
) -> GeneratorLosses:
    """Adversarial and feature-matching losses of the generated pictures by region; gradients reach `fake` only.

    discriminators: the bare CascadedDiscriminator (`.module` of DistributedDataParallel). It is frozen and in
    evaluation mode for the pass, so that neither its gradients nor its spectral norms change.
    """
    _same_regions(real, fake)
    with frozen(discriminators), parametrize.cached():  # both passes are by the same normalised weights
        with torch.no_grad():
            of_real = discriminators(real)
        of_fake = discriminators(fake)
    return GeneratorLosses(
        {region: fooling_loss(judgement.logits, kind) for region, judgement in of_fake.items()},
        {region: feature_matching_loss(of_fake[region].features, of_real[region].features) for region in of_fake},
    )


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters without gradients and evaluation mode within; both as before after it."""
    training = [part for part in module.modules() if part.training]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


def _same_regions(real: Mapping[str, Tensor], fake: Mapping[str, Tensor]) -> list[str]:
    if real.keys() != fake.keys():
        raise ValueError(f"real pictures have the regions {[*real]}, generated ones {[*fake]}: they must be the same")
    return [*real]


def _check_kind(kind: str) -> None:
    if kind not in ("hinge", "non-saturating"):
        raise ValueError(f"the GAN loss must be hinge or non-saturating; got {kind!r}")
