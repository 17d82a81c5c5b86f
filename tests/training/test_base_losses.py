"""The terms of stage I: each is of the frames that it is named after, and what weights mean by their outputs."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch

import training.networks.recogniser
from model.faces.weights import WeightsError
from model.keypoints import Motion
from training.base import BaseRecipe, BaseStage
from training.base_losses import BaseCriterion, BaseLosses, Conventions, MotionLosses, motion_terms
from training.base_model import PairMotion
from training.data import PreparedBatch, PreparedFrames, RandomTransform
from training.distributed import Process
from training.losses import (
    CASCADE,
    GUIDANCE_LANDMARKS,
    RELEASED_SLOTS,
    cascade,
    crop_regions,
    generator_losses,
    openness_loss,
    wing_guidance_loss,
)
from training.networks.discriminator import CascadedDiscriminator
from training.recipe import load_recipe

ON = dict.fromkeys(("equivariance", "keypoint_prior", "head_pose", "deformation_prior", "guidance", "openness"), 1.0)


@pytest.fixture
def face_landmarks(make_face68) -> torch.Tensor:
    """[1, 68, 2] in [-1, 1]."""
    return torch.from_numpy(make_face68((0.0, 0.1), 1.0)).float()[None]


def motion_of(pose_deg: tuple[float, float, float], exp: float) -> Motion:
    """Of one frame; its expression is the same number everywhere."""
    pitch, yaw, roll = (torch.tensor([[angle]]) for angle in pose_deg)
    points = torch.zeros(1, 21, 3)
    return Motion(
        pitch=pitch, yaw=yaw, roll=roll, t=torch.zeros(1, 3), scale=torch.ones(1, 1), exp=points + exp, kp=points
    )


def frames_of(landmarks: torch.Tensor, pose_deg: tuple[float, float, float]) -> PreparedFrames:
    pictures = torch.zeros(2, 1, 3, 2, 2)
    return PreparedFrames(image=pictures[0], target=pictures[1], landmarks=landmarks, pose=torch.tensor([pose_deg]))


def test_motion_terms_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x_s, x_t = torch.rand(2, 1, 21, 3, generator=generator) - 0.5
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))[:21]
    x_d = torch.cat([grid, torch.full((21, 1), 0.83)], dim=1)[None]  # far apart, and half too deep
    landmarks = torch.rand(2, 1, 68, 2, generator=generator) - 0.5
    seen = PairMotion(
        source=motion_of((1.0, 2.0, 3.0), 5.0),
        driving=motion_of((10.0, 20.0, 30.0), -0.25),
        keypoints_source=x_s,
        keypoints_driving=x_d,
        keypoints_transformed=x_t,
    )
    batch = PreparedBatch(
        source=frames_of(landmarks[0], (-1.0, 2.0, 4.0)),
        driving=frames_of(landmarks[1], (-10.0, 23.0, 30.0)),
        is_still=torch.zeros(1, dtype=torch.bool),
    )
    transform = RandomTransform(
        matrix=2 * torch.eye(2)[None],
        shift=torch.tensor([[0.1, -0.2]]),
        control=torch.zeros(1, 2),
        weights=torch.zeros(1, 1, 2),
    )
    conventions = Conventions()
    conventions.pose_signs[0] = -1.0
    terms = motion_terms(MotionLosses(**ON), seen, batch, transform, conventions)
    x_back = 2 * x_t[..., :2] + torch.tensor([0.1, -0.2])
    expected = {
        "equivariance": (x_d[..., :2] - x_back).abs().mean(),
        "keypoint_prior": torch.tensor(0.5),
        "head_pose": torch.tensor(((0 + 0 + 1) + (0 + 3 + 0)) / 2),
        "deformation_prior": torch.tensor(0.25),
    }
    for name, loss in (("guidance", wing_guidance_loss), ("openness", openness_loss)):
        expected[name] = (loss(x_s, landmarks[0]) + loss(x_d, landmarks[1])) / 2
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)
    alone = MotionLosses(**dict.fromkeys(ON, 0.0) | {"head_pose": 1.0})
    assert motion_terms(alone, seen, batch, transform, conventions).keys() == {"head_pose"}


def test_picture_terms_by_hand(face_landmarks: torch.Tensor) -> None:
    weights = BaseLosses(**dict.fromkeys(("pixel", "pixel_face", "pixel_eyes"), 1.0), random_vgg19_width=0.1)
    criterion = BaseCriterion(weights, device=torch.device("cpu"), allow_random_features=True, autocast_features=False)
    fake, real = (cascade(picture, face_landmarks) for picture in torch.rand(2, 1, 3, 64, 64))
    fake["global"].requires_grad_()
    terms = criterion.picture_terms(fake, real, face_landmarks)
    eyes = [crop_regions(views["global"], face_landmarks, regions=("eyes",))["eyes"] for views in (fake, real)]
    regions = criterion.perceptual(fake, real)
    expected = {
        "pixel": (fake["global"] - real["global"]).abs().mean(),
        "pixel_face": sum((fake[region] - real[region]).abs().mean() for region in ("face", "lip")),
        "pixel_eyes": (eyes[0] - eyes[1]).abs().mean(),
        "perceptual": regions["global"] + regions["face"] + regions["lip"],
        "identity": criterion.identity(fake["global"], real["global"], face_landmarks),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)
    for name in ("perceptual", "identity"):
        (gradient,) = torch.autograd.grad(terms[name], fake["global"])
        assert gradient.any(), f"{name} teaches the picture that was made"


def test_a_run_notes_which_networks_its_losses_ask(quick_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the recogniser can be had no more; not the precision in which they run."""
    weights = BaseLosses(random_vgg19_width=0.1)
    options = {"device": torch.device("cpu"), "allow_random_features": True}
    judges = BaseCriterion(weights, autocast_features=False, **options).judges
    assert judges["losses.vgg19"].startswith("random features ")
    assert judges["losses.recogniser"].startswith("weights ")
    assert BaseCriterion(weights, autocast_features=True, **options).judges == judges
    recipe = load_recipe(BaseRecipe, "base", str(quick_recipe))
    assert BaseStage(recipe, Process()).judges == {}

    def cannot_fetch(*_: object) -> None:
        raise WeightsError("no network")

    monkeypatch.setattr(training.networks.recogniser, "resolve_weight", cannot_fetch)
    recipe = dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, identity=1.0))
    judges = BaseStage(recipe, Process(), allow_random_features=True).judges
    assert judges["losses.recogniser"].startswith("random features ")


@pytest.mark.parametrize("gan", ["hinge", "non-saturating"])
def test_adversarial_terms_are_sums_over_regions_of_the_fake_pictures(face_landmarks: torch.Tensor, gan: str) -> None:
    weights = BaseLosses(perceptual=0.0, identity=0.0, gan=gan)
    criterion = BaseCriterion(weights, device=torch.device("cpu"), allow_random_features=True, autocast_features=False)
    discriminators = CascadedDiscriminator(CASCADE, base_channels=4, max_channels=8, num_blocks=2)
    fake, real = (cascade(picture, face_landmarks) for picture in torch.rand(2, 1, 3, 64, 64))
    terms = criterion.adversarial_terms(discriminators, fake, real)
    judged = generator_losses(discriminators, real, fake, kind=gan)
    for name in ("adversarial", "feature_matching"):
        of_regions = getattr(judged, name)
        torch.testing.assert_close(terms[name], of_regions["global"] + of_regions["face"] + of_regions["lip"])


def test_conventions_of_given_weights() -> None:
    """Weights that count pitch the other way: that sign changes, the others stay."""
    torch.manual_seed(0)
    labels = 15 * torch.randn(40, 3)
    angles = labels * torch.tensor([-0.8, 1.0, 1.0]) + torch.randn(40, 3)
    angles[:, 2] = torch.randn(40)  # roll says nothing
    labels[3, 1] = labels[5, 2] = torch.nan
    landmarks = torch.rand(40, 68, 2) - 0.5
    keypoints = 3 + torch.rand(40, 21, 3)
    guided = (36, 39, 37, 42, 45, 43, 48, 54, 51, 57)
    slots = tuple(range(20, 10, -1))
    keypoints[:, slots, :2] = landmarks[:, guided]
    conventions = Conventions()
    notes = conventions.measure(angles, labels, keypoints, landmarks, signs=True)
    assert conventions.pose_signs.tolist() == [-1, 1, 1]
    assert conventions.slots_tuple == slots
    assert "pitch: correlation -1.00 with the labels, sign changed" in notes[0]
    assert "yaw: correlation +0.99" in notes[1] or "yaw: correlation +1.00" in notes[1]
    assert "too weak to tell" in notes[2]
    restored = Conventions()
    assert restored.slots_tuple == RELEASED_SLOTS
    restored.load_state_dict(conventions.state_dict())
    assert (restored.slots_tuple, restored.pose_signs.tolist()) == (slots, [-1, 1, 1])
    kept = Conventions()
    kept.measure(angles, labels, keypoints, landmarks, signs=False)
    assert kept.pose_signs.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("offset", "as_released"), [(0.1, False), (0.3, True)])
def test_key_points_that_follow_no_landmark_keep_the_released_order(offset: float, as_released: bool) -> None:
    torch.manual_seed(0)
    landmarks = torch.rand(40, 68, 2) - 0.5
    slots = tuple(range(20, 10, -1))
    keypoints = 3 + torch.rand(40, 21, 3)
    keypoints[:, slots, :2] = landmarks[:, GUIDANCE_LANDMARKS] + torch.tensor([offset, 0.0])
    landmarks[5] = torch.nan
    conventions = Conventions()
    *_, note = conventions.measure(torch.randn(40, 3), torch.randn(40, 3), keypoints, landmarks, signs=True)
    assert conventions.slots_tuple == (RELEASED_SLOTS if as_released else slots)
    assert ("as released: none are near them (the nearest 0.30 away" in note) == as_released


@pytest.mark.parametrize("pose_signs", ["auto", "labels"])
def test_conventions_are_learned_from_both_frames_of_every_pair(quick_recipe: Path, monkeypatch, pose_signs) -> None:
    make_batch = runpy.run_path(str(Path(__file__).with_name("step_gradients.py")))["make_batch"]
    recipe = load_recipe(BaseRecipe, "base", str(quick_recipe))
    recipe = dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, pose_signs=pose_signs))
    stage, given = BaseStage(recipe, Process()), []
    monkeypatch.setattr(stage.conventions, "measure", lambda *tensors, signs: given.append((tensors, signs)) or [])
    batch = make_batch(2, 32)
    stage.learn_conventions([batch])
    assert stage.model.training
    (angles, labels, points, landmarks), signs = given[0]
    assert signs == (pose_signs == "auto")
    with torch.no_grad():
        made = stage.model.eval()(batch.source.image, batch.driving.image)
    expected = [torch.cat([motion.pitch, motion.yaw, motion.roll], dim=1) for motion in (made.source, made.driving)]
    assert torch.equal(angles, torch.cat(expected))
    assert torch.equal(labels, torch.cat([batch.source.pose, batch.driving.pose]))
    assert torch.equal(points, torch.cat([made.keypoints_source, made.keypoints_driving]))
    assert torch.equal(landmarks, torch.cat([batch.source.landmarks, batch.driving.landmarks]))


def test_one_of_the_two_terms_is_an_adversarial_game() -> None:
    for adversarial, matching in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        losses = BaseLosses(adversarial=adversarial, feature_matching=matching)
        assert losses.has_discriminators == (adversarial + matching > 0)
