"""Adversarial losses against their formulas; every discriminator judges its own region and learns from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.losses import (
    CASCADE,
    cascade,
    crop_regions,
    discriminator_losses,
    feature_matching_loss,
    fooling_loss,
    generator_losses,
    real_fake_loss,
)
from training.losses.adversarial import frozen
from training.networks.discriminator import CascadedDiscriminator


@pytest.fixture
def discriminators():
    torch.manual_seed(0)
    return CascadedDiscriminator(CASCADE, base_channels=8, max_channels=16, num_blocks=3)


@pytest.fixture
def pictures(face_landmarks):
    """Views of two real pictures and two generated ones, 128 px."""
    generator = torch.Generator().manual_seed(4)
    landmarks = face_landmarks.expand(2, -1, -1)
    images = torch.rand(2, 2, 3, 128, 128, generator=generator)
    return [cascade(image, landmarks) for image in images]


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_hinge_and_non_saturating_losses_are_their_formulas():
    real, fake = np.array([2.0, 0.5, -1.0]), np.array([-3.0, 0.0, 0.25])
    tensors = torch.tensor(real), torch.tensor(fake)
    hinge = np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()
    assert real_fake_loss(*tensors, "hinge").item() == pytest.approx(hinge)
    saturating = np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean()
    assert real_fake_loss(*tensors, "non-saturating").item() == pytest.approx(saturating)
    assert fooling_loss(tensors[1], "hinge").item() == pytest.approx(-fake.mean())
    assert fooling_loss(tensors[1], "non-saturating").item() == pytest.approx(np.log1p(np.exp(-fake)).mean())
    for loss, logits in ((fooling_loss, tensors[1:]), (real_fake_loss, tensors)):
        with pytest.raises(ValueError, match="hinge or non-saturating; got 'wgan'"):
            loss(*logits, "wgan")


def test_feature_matching_sums_layers_of_mean_differences():
    layers = [(2, 4, 8, 8), (2, 6, 4, 4)]
    fake, real = ([torch.rand(shape, requires_grad=True) for shape in layers] for _ in range(2))
    expected = sum(np.abs(a.detach().numpy() - b.detach().numpy()).mean() for a, b in zip(fake, real, strict=True))
    loss = feature_matching_loss(fake, real)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(layer.grad is not None for layer in fake)
    assert all(layer.grad is None for layer in real)


def test_each_discriminator_sees_its_own_region_of_real_and_fake(discriminators, face_landmarks):
    real, fake = torch.rand(2, 2, 3, 128, 128)
    landmarks = face_landmarks.expand(2, -1, -1)
    seen = {}
    for region in CASCADE:
        discriminators.of(region).register_forward_pre_hook(
            lambda _, inputs, region=region: seen.setdefault(region, []).append(inputs[0].detach())
        )
    views = cascade(real, landmarks), cascade(fake, landmarks)
    discriminator_losses(discriminators, *views)
    for region in CASCADE:
        expected = [image if region == "global" else crop_regions(image, landmarks)[region] for image in (real, fake)]
        assert len(seen[region]) == 1
        assert torch.equal(seen[region][0], torch.cat(expected))
    seen.clear()
    generator_losses(discriminators, *views)
    for region in CASCADE:
        assert all(torch.equal(picture, view[region]) for picture, view in zip(seen[region], views, strict=True))


@pytest.mark.parametrize("side", ["real", "fake"])
@pytest.mark.parametrize("changed", CASCADE)
def test_a_change_of_one_region_changes_one_loss(discriminators, pictures, changed, side):
    real, fake = pictures
    discriminators.eval()
    before = discriminator_losses(discriminators, real, fake)
    views = dict(real if side == "real" else fake)
    views[changed] = views[changed].flip(0, 2) * 0.5
    after = discriminator_losses(discriminators, *((views, fake) if side == "real" else (real, views)))
    assert [region for region in CASCADE if before[region] != after[region]] == [changed]


def test_each_loss_teaches_its_own_discriminator_alone(discriminators, pictures):
    for region in CASCADE:
        discriminators.zero_grad()
        discriminator_losses(discriminators, *pictures)[region].backward()
        for other in CASCADE:
            gradients = [parameter.grad for parameter in discriminators.of(other).parameters()]
            assert all((gradient is not None) == (other == region) for gradient in gradients)


@pytest.mark.parametrize("kind", ["hinge", "non-saturating"])
def test_stepping_changes_all_three_and_they_learn_to_tell(discriminators, kind, face_landmarks):
    generator = torch.Generator().manual_seed(5)
    landmarks = face_landmarks.expand(4, -1, -1)
    real = cascade(torch.rand(4, 3, 128, 128, generator=generator), landmarks)
    fake = {region: view.mean(dim=(2, 3), keepdim=True) + 0.2 * (view - 0.5) for region, view in real.items()}
    before = {region: snapshot(discriminators.of(region)) for region in CASCADE}
    optimizer = torch.optim.Adam(discriminators.parameters(), 4e-3, betas=(0.5, 0.999))
    history = []
    for _ in range(16):
        losses = discriminator_losses(discriminators, real, fake, kind=kind)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({region: loss.item() for region, loss in losses.items()})
    for region in CASCADE:
        parameters = dict(discriminators.of(region).named_parameters())
        assert all(not torch.equal(parameter, before[region][name]) for name, parameter in parameters.items())
        assert history[-1][region] < 0.9 * history[0][region]


def test_discriminator_side_leaves_the_generator_alone(discriminators, pictures):
    real, fake = pictures
    image = fake["global"].clone().requires_grad_()
    sum(discriminator_losses(discriminators, real, fake | {"global": image}).values()).backward()
    assert image.grad is None


def test_generator_side_leaves_the_discriminators_bit_identical(discriminators, pictures):
    real, fake = pictures
    leaves = {region: view.clone().requires_grad_() for region, view in fake.items()}
    targets = {region: view.clone().requires_grad_() for region, view in real.items()}
    discriminators.train()
    before = snapshot(discriminators)
    losses = generator_losses(discriminators, targets, leaves)
    sum([*losses.adversarial.values(), *losses.feature_matching.values()]).backward()
    assert all(torch.equal(value, before[name]) for name, value in discriminators.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminators.parameters())
    assert all(part.training for part in discriminators.modules())
    for region in CASCADE:
        assert leaves[region].grad.isfinite().all()
        assert leaves[region].grad.abs().max() > 0
        assert targets[region].grad is None


def test_generator_losses_are_those_of_the_judgements(discriminators, pictures):
    real, fake = pictures
    losses = generator_losses(discriminators, real, fake, kind="non-saturating")
    discriminators.eval()
    with torch.no_grad():
        of_real, of_fake = discriminators(real), discriminators(fake)
    for region in CASCADE:
        logits = of_fake[region].logits.double().numpy()
        assert losses.adversarial[region].item() == pytest.approx(np.log1p(np.exp(-logits)).mean(), rel=1e-5)
        expected = sum(
            (a - b).abs().mean().item() for a, b in zip(of_fake[region].features, of_real[region].features, strict=True)
        )
        assert losses.feature_matching[region].item() == pytest.approx(expected, rel=1e-5)


def test_a_perfect_picture_matches_all_features(discriminators, pictures):
    real, _ = pictures
    losses = generator_losses(discriminators, real, {region: view.clone() for region, view in real.items()})
    assert all(loss.item() == 0 for loss in losses.feature_matching.values())


def test_halves_of_a_batch_average_to_the_whole(discriminators, pictures):
    """What data-parallel ranks rely on."""
    real, fake = pictures
    discriminators.eval()
    whole = discriminator_losses(discriminators, real, fake)
    halves = [
        discriminator_losses(discriminators, *({r: v[i : i + 1] for r, v in views.items()} for views in (real, fake)))
        for i in range(2)
    ]
    for region in CASCADE:
        assert (halves[0][region] + halves[1][region]).item() / 2 == pytest.approx(whole[region].item(), rel=1e-5)


def test_frozen_keeps_what_was_frozen_before(discriminators):
    head = discriminators.of("lip").head
    head.bias.requires_grad_(False)
    discriminators.of("face").eval()
    with frozen(discriminators):
        assert not any(parameter.requires_grad for parameter in discriminators.parameters())
    assert not head.bias.requires_grad
    assert discriminators.of("global").head.bias.requires_grad
    assert not discriminators.of("face").training
    assert discriminators.of("lip").training


def test_losses_are_float32_and_finite_under_autocast(discriminators, pictures):
    real, fake = pictures
    leaves = {region: view.clone().requires_grad_() for region, view in fake.items()}
    exact = discriminator_losses(discriminators.eval(), real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        teaching = discriminator_losses(discriminators, real, fake)
        learning = generator_losses(discriminators, real, leaves)
    losses = [*teaching.values(), *learning.adversarial.values(), *learning.feature_matching.values()]
    assert all(loss.dtype == torch.float32 for loss in losses)
    sum(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in discriminators.parameters())
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
    for region in CASCADE:
        assert teaching[region].item() == pytest.approx(exact[region].item(), rel=0.02)


def test_missing_regions_are_named(discriminators, pictures):
    real, fake = pictures
    with pytest.raises(ValueError, match="must be the same"):
        discriminator_losses(discriminators, real, {"global": fake["global"]})
    with pytest.raises(ValueError, match="are for the regions"):
        discriminators({"global": real["global"]})
