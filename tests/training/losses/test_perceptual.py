"""The perceptual loss against its formula, with VGG19 written out from its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from training.losses import CascadedPerceptualLoss, cascade
from training.losses.perceptual import halve, mean_difference, pyramid
from training.networks.vgg import Vgg19Features


@pytest.fixture(scope="module")
def network():
    return Vgg19Features.random_features(3, width=0.125)


def features_by_hand(image, weights):
    """relu1_1 ... relu5_1 as the VGG paper's table lists the layers."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, taps, index = (image - mean) / std, [], 0
    for block, num_convolutions in enumerate((2, 2, 4, 4, 1)):
        for convolution in range(num_convolutions):
            x = functional.conv2d(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], padding=1)
            x = x.clamp(min=0)
            index += 2
            if convolution == 0:
                taps.append(x)
        if block < 4:
            x = functional.max_pool2d(x, 2)
            index += 1
    return taps


def halve_by_hand(image):
    """(1 3 3 1) / 8 along rows and columns around every second gap, borders repeated."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, 0:-3:2] + 3 * padded[:, 1:-2:2] + 3 * padded[:, 2:-1:2] + padded[:, 3::2]) / 8
    return (rows[..., 0:-3:2] + 3 * rows[..., 1:-2:2] + 3 * rows[..., 2:-1:2] + rows[..., 3::2]) / 8


def test_loss_is_the_sum_over_scales_and_layers_of_mean_differences(network):
    prediction, target = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    levels = [prediction, target]
    for _ in range(3):  # 64, 32, 16
        mine, other = (features_by_hand(level, network.state_dict()) for level in levels)
        expected += sum((a - b).abs().mean() for a, b in zip(mine, other, strict=True))
        levels = [torch.from_numpy(np.stack([halve_by_hand(p) for p in level.numpy()])) for level in levels]
    loss = CascadedPerceptualLoss(network).compare(prediction, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_pyramid_is_anti_aliased_and_stops_where_vgg_sees_nothing():
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    assert (halve(stripes)[..., 1:-1] - 0.5).abs().max() < 1e-6  # every second pixel would be all black or all white
    sizes = {size: [level.shape[-1] for level in pyramid(torch.zeros(1, 3, size, size))] for size in (256, 64, 32, 16)}
    assert sizes == {256: [256, 128, 64, 32], 64: [64, 32, 16], 32: [32, 16], 16: [16]}


@pytest.mark.parametrize("size", [64, 128])
def test_regions_are_compared_each_with_its_own(network, face_landmarks, size):
    landmarks = face_landmarks * 0.7
    target = torch.rand(1, 3, size, size)
    prediction = target.clone()
    prediction[..., : size // 8, :] += 0.5  # above the face's square
    loss = CascadedPerceptualLoss(network)
    losses = loss(cascade(prediction, landmarks), cascade(target, landmarks))
    assert losses["global"] > 0.01
    assert losses["face"] == 0
    assert losses["lip"] == 0


def test_gradient_reaches_the_prediction_only_and_less_loss_is_less_difference(network, face_landmarks):
    target = torch.rand(1, 3, 64, 64, requires_grad=True)
    prediction = torch.rand(1, 3, 64, 64, requires_grad=True)
    loss = CascadedPerceptualLoss(network)
    first = sum(loss(cascade(prediction, face_landmarks), cascade(target, face_landmarks)).values())
    first.backward()
    assert prediction.grad.isfinite().all()
    assert (prediction.grad != 0).float().mean() > 0.99
    assert target.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())
    step = (prediction - 0.01 * prediction.grad.sign()).detach()
    second = sum(loss(cascade(step, face_landmarks), cascade(target, face_landmarks)).values())
    assert second < first


def test_autocast_leaves_the_value_unless_it_is_let_in(network):
    prediction, target = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prediction.requires_grad_()
    exact = CascadedPerceptualLoss(network).compare(prediction, target)
    with torch.autocast("cpu", torch.bfloat16):
        same = CascadedPerceptualLoss(network).compare(prediction, target)
        near = CascadedPerceptualLoss(network, autocast_features=True).compare(prediction, target)
    assert same.dtype == near.dtype == torch.float32
    assert torch.equal(same, exact)
    assert not torch.equal(near, exact)
    assert near.item() == pytest.approx(exact.item(), rel=0.02)
    near.backward()
    assert prediction.grad.isfinite().all()


def test_mean_difference_of_rounded_features_is_not_rounded():
    one, other = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    one.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mean = mean_difference(one, other)
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx((one - other).double().abs().mean().item(), rel=1e-5)
    mean.backward()
    assert torch.equal(one.grad, torch.sign(one - other) * torch.tensor(1 / one.numel()).bfloat16())


def test_wrong_inputs_are_named(network):
    loss = CascadedPerceptualLoss(network)
    with pytest.raises(ValueError, match=r"at least 16 px; got \(1, 3, 8, 8\)"):
        loss.compare(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="must have one shape"):
        loss.compare(torch.rand(2, 3, 16, 16), torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="must be the same"):
        loss({"face": torch.rand(1, 3, 16, 16)}, {"lip": torch.rand(1, 3, 16, 16)})
