"""Losses on key points against the formulas evaluated by loops in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.keypoints import Motion, open_ratios_68
from model.keypoints.regions import EYE_KEYPOINTS, LIP_KEYPOINTS
from training.data.transform import RandomTransform
from training.losses import (
    GUIDANCE_LANDMARKS,
    RELEASED_SLOTS,
    deformation_prior_loss,
    equivariance_loss,
    flow_openness_loss,
    guided_openness,
    head_pose_loss,
    keypoint_prior_loss,
    landmark_flow_loss,
    match_slots,
    openness_loss,
    wing,
    wing_guidance_loss,
)


def make_motion(pose_deg: torch.Tensor, exp: torch.Tensor) -> Motion:
    num = len(pose_deg)
    pitch, yaw, roll = pose_deg.split(1, dim=1)
    return Motion(
        pitch=pitch,
        yaw=yaw,
        roll=roll,
        exp=exp,
        t=torch.zeros(num, 3),
        scale=torch.ones(num, 1),
        kp=torch.zeros_like(exp),
    )


@pytest.fixture
def keypoints():
    return torch.rand(3, 21, 3, generator=torch.Generator().manual_seed(1)) - 0.5


def test_equivariance_is_the_mean_distance_after_the_way_back(keypoints):
    def way_back(points):
        return points * 2 + 0.1

    other = torch.rand(3, 21, 3) - 0.5
    total = 0.0
    for sample in range(3):
        for k in range(21):
            for axis in range(2):
                returned = 2 * float(other[sample, k, axis]) + 0.1
                total += abs(float(keypoints[sample, k, axis]) - returned)
    assert float(equivariance_loss(keypoints, other, way_back)) == pytest.approx(total / (3 * 21 * 2), rel=1e-5)


def test_equivariance_is_zero_where_key_points_follow_and_teaches_both_sides(keypoints):
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    followed = torch.cat([keypoints[..., :2] @ turn.T, keypoints[..., 2:]], dim=-1)
    assert float(equivariance_loss(keypoints, followed, lambda points: points @ turn)) < 1e-7
    mine, other = keypoints.clone().requires_grad_(), torch.zeros(3, 21, 3, requires_grad=True)
    equivariance_loss(mine, other, lambda points: points @ turn).backward()
    assert mine.grad[..., :2].abs().min() > 0
    assert other.grad[..., :2].abs().min() > 0
    assert mine.grad[..., 2].abs().max() == 0


def test_equivariance_agrees_with_how_pictures_are_warped():
    """Blobs found in the warped picture belong, by the transform's own way back, to where they were drawn."""
    transform = RandomTransform.sample(2, generator=torch.Generator().manual_seed(0))
    drawn = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    centers = (2 * torch.arange(256) + 1) / 256 - 1
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    places = torch.stack([x, y], dim=-1)
    distance = (places - drawn[:, :, None, None, :2]).square().sum(dim=-1)
    warped = transform.warp_image(torch.exp(-distance / (2 * 0.03**2)))  # one blob a channel
    found = (warped[..., None] * places).sum(dim=(2, 3)) / warped.sum(dim=(2, 3))[..., None]
    found = torch.cat([found, drawn[..., 2:]], dim=-1)
    assert equivariance_loss(drawn, found, transform.warp_points).item() < 0.002
    assert equivariance_loss(drawn, found, lambda points: points).item() > 0.02


def test_prior_sums_ordered_pairs_and_holds_the_depth(keypoints):
    points = keypoints.double().numpy()
    losses = []
    for sample in points:
        crowding = 0.0
        for i in range(21):
            for j in range(21):
                if i != j:
                    crowding += max(0.0, 0.1 - ((sample[i] - sample[j]) ** 2).sum())
        losses.append(crowding + abs(sample[:, 2].mean() - 0.33))
    assert float(keypoint_prior_loss(keypoints)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_prior_of_spread_points_at_the_right_depth_is_zero():
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))[:21]
    spread = torch.cat([grid, torch.full((21, 1), 0.33)], dim=1)[None]
    assert float(keypoint_prior_loss(spread)) < 1e-6
    assert float(keypoint_prior_loss(spread + torch.tensor([0.0, 0.0, 0.2]))) == pytest.approx(0.2, abs=1e-5)


def test_head_pose_is_in_degrees_and_leaves_out_unknown_labels():
    pose = torch.tensor([[1.0, 2.0, 3.0], [10.0, -20.0, 30.0]], requires_grad=True)
    labels = torch.tensor([[2.0, 2.0, 0.0], [math.nan, -10.0, math.nan]])
    loss = head_pose_loss(make_motion(pose, torch.zeros(2, 21, 3)), labels)
    assert loss.item() == pytest.approx(((1 + 0 + 3) + 10) / 2)
    loss.backward()
    np.testing.assert_allclose(pose.grad, [[-0.5, 0, 0.5], [0, -0.5, 0]])


def test_head_pose_without_any_label_is_zero_and_finite():
    pose = torch.ones(2, 3, requires_grad=True)
    loss = head_pose_loss(make_motion(pose, torch.zeros(2, 21, 3)), torch.full((2, 3), math.nan))
    loss.backward()
    assert loss.item() == 0
    assert pose.grad.abs().max() == 0


def test_head_pose_says_which_labels_it_wants():
    with pytest.raises(ValueError, match=r"labels \[B, 3\]; got \(2, 2\)"):
        head_pose_loss(make_motion(torch.zeros(2, 3), torch.zeros(2, 21, 3)), torch.zeros(2, 2))


def test_deformation_prior_is_the_mean_offset():
    exp = torch.zeros(2, 21, 3)
    exp[0, 4, 1], exp[1, 20, 2] = -3.0, 1.5
    assert float(deformation_prior_loss(make_motion(torch.zeros(2, 3), exp))) == pytest.approx(4.5 / (2 * 21 * 3))


def test_wing_is_logarithmic_then_linear_without_a_step():
    assert float(wing(torch.tensor(0.05))) == pytest.approx(math.log(1 + 5), rel=1e-5)
    assert float(wing(torch.tensor(-3.0))) == pytest.approx(3 - (1 - math.log(101)), rel=1e-5)
    below, above = wing(torch.tensor([1 - 1e-6, 1 + 1e-6]))
    assert float(above - below) == pytest.approx(0, abs=1e-5)
    # The published constants in pixels: omega 10, epsilon 2.
    assert float(wing(torch.tensor(4.0), 10, 2)) == pytest.approx(10 * math.log(3), rel=1e-5)


@pytest.mark.parametrize("slots", [RELEASED_SLOTS, tuple(range(10))])
def test_guidance_ties_ten_landmarks_to_their_slots(keypoints, slots):
    landmarks = torch.rand(3, 68, 2, generator=torch.Generator().manual_seed(2)) * 4 - 2  # both branches of Wing
    total = 0.0
    for sample in range(3):
        for landmark, slot in zip((36, 39, 37, 42, 45, 43, 48, 54, 51, 57), slots, strict=True):
            for axis in range(2):
                error = abs(float(keypoints[sample, slot, axis]) - float(landmarks[sample, landmark, axis]))
                total += math.log(1 + error / 0.01) if error < 1 else error - (1 - math.log(101))
    loss = wing_guidance_loss(keypoints, landmarks, slots=slots)
    assert float(loss) == pytest.approx(total / (3 * 10), rel=1e-4)


def test_guidance_moves_only_its_slots_and_no_unknown_point(keypoints):
    keypoints.requires_grad_()
    landmarks = torch.zeros(3, 68, 2)
    landmarks[1, 37] = math.nan
    wing_guidance_loss(keypoints, landmarks).backward()
    assert keypoints.grad.isfinite().all()
    moved = keypoints.grad[..., :2].abs().sum(dim=-1) > 0
    lid = RELEASED_SLOTS[2]
    assert sorted(moved[0].nonzero().flatten().tolist()) == sorted(RELEASED_SLOTS)
    assert sorted(moved[1].nonzero().flatten().tolist()) == sorted(set(RELEASED_SLOTS) - {lid})
    assert keypoints.grad[..., 2].abs().max() == 0


def test_released_slots_are_those_that_animation_moves():
    assert len(set(RELEASED_SLOTS)) == len(GUIDANCE_LANDMARKS) == 10
    eyes, mouth = set(RELEASED_SLOTS[:6]), set(RELEASED_SLOTS[6:])
    assert set(EYE_KEYPOINTS) < eyes
    assert mouth < set(LIP_KEYPOINTS)
    # 68-point indices of the lids and lips, which open and close, are tied to slots of the same part.
    slot_of = dict(zip(GUIDANCE_LANDMARKS, RELEASED_SLOTS, strict=True))
    assert {slot_of[37], slot_of[43]} <= set(EYE_KEYPOINTS)
    assert {slot_of[51], slot_of[57]} <= set(LIP_KEYPOINTS)


def test_matching_finds_a_hidden_order():
    generator = torch.Generator().manual_seed(3)
    landmarks = torch.rand(6, 68, 2, generator=generator) * 2 - 1
    hidden = torch.randperm(21, generator=generator)[:10].tolist()
    keypoints = torch.rand(6, 21, 3, generator=generator) * 2 - 1
    keypoints[:, hidden, :2] = landmarks[:, GUIDANCE_LANDMARKS] + 0.05
    landmarks[4] = math.nan
    assert match_slots(keypoints, landmarks) == tuple(hidden)
    with pytest.raises(ValueError, match="at least one frame"):
        match_slots(keypoints, torch.full((6, 68, 2), math.nan))


def test_low_precision_inputs_give_float32_losses(keypoints):
    low = keypoints.bfloat16().requires_grad_()
    motion = make_motion(torch.ones(3, 3), low)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [
            equivariance_loss(low, low * 1.5, lambda points: points @ torch.eye(2)),
            keypoint_prior_loss(low),
            deformation_prior_loss(motion),
            wing_guidance_loss(low, torch.zeros(3, 68, 2)),
        ]
    assert all(loss.dtype == torch.float32 for loss in losses)
    sum(losses).backward()
    assert low.grad.isfinite().all()
    # Not rounded on the way: what float32 gives for the same numbers.
    assert losses[1].item() == pytest.approx(keypoint_prior_loss(low.detach().float()).item(), rel=1e-6)


def ten_points() -> torch.Tensor:
    """A mouth 0.4 wide and open by half of that; the right eye's lid at 0.15, the left eye's at 0.25 of its width."""
    points = torch.zeros(1, 10, 2)
    for first, side in ((0, 0.03), (3, -0.05)):  # upright eyes: their lids lie to the side
        points[0, first + 1] = torch.tensor([0.0, 0.2])
        points[0, first + 2] = torch.tensor([side, 0.07])
    points[0, 6], points[0, 7] = torch.tensor([-0.2, 0.5]), torch.tensor([0.2, 0.5])
    points[0, 8], points[0, 9] = torch.tensor([0.0, 0.4]), torch.tensor([0.0, 0.6])
    return points


def test_guided_openness_is_that_of_lips_and_lids() -> None:
    mouth, eyes = guided_openness(ten_points())
    torch.testing.assert_close(mouth, torch.tensor([0.5]))
    torch.testing.assert_close(eyes, torch.tensor([(0.15 + 0.25) / 2]))


def test_openness_loss_by_hand() -> None:
    landmarks = torch.zeros(2, 68, 2)
    landmarks[:, GUIDANCE_LANDMARKS] = ten_points()
    keypoints = torch.zeros(2, 21, 3)
    keypoints[:, list(RELEASED_SLOTS), :2] = ten_points() + 0.3  # moved as a whole: nothing is more open
    keypoints[1, RELEASED_SLOTS[9], 1] += 0.04  # a tenth of the mouth's width
    keypoints[0, RELEASED_SLOTS[2], 0] += 0.02  # a tenth of the right eye's
    keypoints.requires_grad_()
    loss = openness_loss(keypoints, landmarks)
    torch.testing.assert_close(loss, torch.tensor((0.1 + 0.1 / 2) / 2))
    landmarks[1, 36] = torch.nan
    loss = openness_loss(keypoints, landmarks)
    torch.testing.assert_close(loss, torch.tensor(0.1 / 2 / 2))
    loss.backward()
    assert keypoints.grad.isfinite().all()
    assert not keypoints.grad[1].any()


def test_flow_that_leads_from_driving_to_source_landmarks_costs_nothing() -> None:
    """A flow that shifts everything by (0.1, -0.05): exact at every place, as it is linear."""
    torch.manual_seed(0)
    height, width = 6, 8
    y, x = ((2 * torch.arange(n) + 1) / n - 1 for n in (height, width))
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    flow = torch.cat([places + torch.tensor([0.1, -0.05]), torch.rand(height, width, 1)], dim=-1)
    deformation = flow.expand(2, 3, height, width, 3).clone()
    deformation[:, 0] -= 0.3  # of the depth slices the mean counts
    deformation[:, 2] += 0.3
    deformation.requires_grad_()
    driving = torch.rand(2, 68, 2) - 0.5
    source = driving + torch.tensor([0.1, -0.05])
    source[:, :17] = 9.0  # the jaw does not count
    driving[0, 35], source[0, 35] = torch.tensor([1.5, 0.2]), torch.tensor([1 - 1 / width + 0.1, 0.2 - 0.05])  # outside
    torch.testing.assert_close(landmark_flow_loss(deformation, source, driving), torch.tensor(0.0), atol=1e-6, rtol=0)
    source[0, 30, 1] += 0.2
    source[1, 40, 0] = driving[1, 41, 1] = torch.nan
    loss = landmark_flow_loss(deformation, source, driving)
    torch.testing.assert_close(loss, torch.tensor(0.2 / (2 * 2 * 51)))
    loss.backward()
    assert deformation.grad.isfinite().all()
    assert deformation.grad[0].any()


def test_flow_openness_is_what_the_source_shows_where_the_flow_leads() -> None:
    """A flow that halves all distances changes no openness; one that halves heights alone halves it."""
    height, width = 32, 32
    y, x = ((2 * torch.arange(n) + 1) / n - 1 for n in (height, width))
    places = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.zeros(height, width)], dim=-1)
    driving = (torch.rand(2, 68, 2, generator=torch.Generator().manual_seed(2)) - 0.5) * 1.5
    both = (places * torch.tensor([0.5, 0.5, 1.0])).expand(2, 3, height, width, 3)
    torch.testing.assert_close(flow_openness_loss(both, driving, driving), torch.tensor(0.0), atol=1e-4, rtol=0)

    driving[:, [36, 39, 42, 45, 48, 54], 1] = 0.1  # corners lie level, lids and lips above each other
    driving[:, [37, 38, 40, 41], 0], driving[:, [43, 44, 46, 47], 0], driving[:, [62, 66], 0] = 0.2, -0.2, 0.0
    squeezed = (places * torch.tensor([1.0, 0.5, 1.0])).expand(2, 3, height, width, 3).clone().requires_grad_()
    eyes, lip = open_ratios_68(driving)
    torch.testing.assert_close(
        flow_openness_loss(squeezed, driving, driving), (eyes.mean() + lip.mean()) / 2, atol=1e-4, rtol=1e-4
    )
    unknown = driving.clone()
    unknown[1, 60] = torch.nan
    for source_there, driving_there in ((unknown, driving), (driving, unknown)):
        squeezed.grad = None
        loss = flow_openness_loss(squeezed, source_there, driving_there)
        torch.testing.assert_close(loss, (eyes[0].mean() + lip[0].mean()) / 4, atol=1e-4, rtol=1e-4)
        loss.backward()
        assert squeezed.grad[0].any()
        assert not squeezed.grad[1].any()
