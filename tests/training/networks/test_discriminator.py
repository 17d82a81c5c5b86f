"""Patch discriminators: shapes, spectral norm, float32 logits, size limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.losses import CASCADE
from training.networks.discriminator import CascadedDiscriminator, PatchDiscriminator, SpectralConv, split_judgement


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return PatchDiscriminator(base_channels=8, max_channels=16, num_blocks=3)


def test_logits_and_features_halve_block_by_block(discriminator):
    judgement = discriminator(torch.rand(2, 3, 64, 48))
    assert [tuple(feature.shape) for feature in judgement.features] == [(2, 8, 32, 24), (2, 16, 16, 12), (2, 16, 8, 6)]
    assert judgement.logits.shape == (2, 1, 8, 6)


def test_weights_have_spectral_norm_one(discriminator):
    for _ in range(60):
        discriminator(torch.rand(1, 3, 16, 16))  # each pass is one power iteration
    convolutions = [part for part in discriminator.modules() if isinstance(part, SpectralConv)]
    assert len(convolutions) == 4
    for convolution in convolutions:
        matrix = convolution.eval().weight.detach().flatten(1).double().numpy()
        original = convolution.parametrizations.weight.original.detach().flatten(1).double().numpy()
        assert np.linalg.svd(matrix, compute_uv=False)[0] == pytest.approx(1, rel=1e-3)
        np.testing.assert_allclose(
            matrix * np.linalg.svd(original, compute_uv=False)[0], original, rtol=1e-3, atol=1e-6
        )


def test_evaluation_repeats_bit_for_bit(discriminator):
    image = torch.rand(1, 3, 32, 32)
    discriminator.eval()
    assert torch.equal(discriminator(image).logits, discriminator(image).logits)


def test_a_patch_is_judged_by_what_is_near_it():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=4, num_blocks=1).eval()  # no instance norm, which looks everywhere
    image = torch.rand(1, 3, 32, 32)
    changed = image.clone()
    changed[..., :8, :8] = 0
    difference = (discriminator(image).logits - discriminator(changed).logits).abs()[0, 0] > 0
    assert difference[:4, :4].all()
    assert not difference[5:].any()
    assert not difference[:, 5:].any()


def test_pictures_judged_together_or_alone_are_the_same(discriminator):
    images = torch.rand(3, 3, 32, 32)
    discriminator.eval()
    first, rest = split_judgement(discriminator(images), 1)
    torch.testing.assert_close(first.logits, discriminator(images[:1]).logits)
    for mine, alone in zip(rest.features, discriminator(images[1:]).features, strict=True):
        torch.testing.assert_close(mine, alone)


def test_logits_are_float32_under_autocast_and_weights_are_not_rounded_before_the_norm(discriminator):
    image = torch.rand(1, 3, 32, 32)
    discriminator.eval()
    exact = discriminator(image).logits
    with torch.autocast("cpu", torch.bfloat16):
        judgement = discriminator(image)
    assert judgement.logits.dtype == torch.float32
    assert judgement.features[-1].dtype == torch.bfloat16
    torch.testing.assert_close(judgement.logits, exact, atol=0.05, rtol=0.05)
    judgement.logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in discriminator.parameters())


def test_smallest_picture_works_and_a_smaller_one_is_explained(discriminator):
    assert discriminator(torch.rand(1, 3, 16, 16)).logits.shape == (1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"at least 16 px; got \(1, 3, 8, 16\)"):
        discriminator(torch.rand(1, 3, 8, 16))


def test_cascade_shares_nothing_and_resumes(discriminator):
    cascade = CascadedDiscriminator(CASCADE, base_channels=4, num_blocks=2)
    assert cascade.regions == ("global", "face", "lip")
    pointers = [{parameter.data_ptr() for parameter in cascade.of(region).parameters()} for region in cascade.regions]
    assert not pointers[0] & pointers[1]
    assert not pointers[0] & pointers[2]
    assert not pointers[1] & pointers[2]
    views = {region: torch.rand(1, 3, 16, 16) for region in cascade.regions}
    cascade(views)  # moves the norms' vectors
    resumed = CascadedDiscriminator(CASCADE, base_channels=4, num_blocks=2)
    resumed.load_state_dict(cascade.state_dict())
    for region in cascade.regions:
        assert torch.equal(cascade(views)[region].logits, resumed(views)[region].logits)
