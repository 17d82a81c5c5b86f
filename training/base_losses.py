"""The terms of stage I and their weights: L_E, L_L, L_H, L_delta, L_P,cascade, L_G,cascade, L_faceid, L_guide."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from manifests.recipes import require_no_negative, require_positive
from model.keypoints import Motion
from training.base_model import PairMotion
from training.data import PreparedBatch, RandomTransform
from training.losses import (
    RELEASED_SLOTS,
    CascadedPerceptualLoss,
    IdentityLoss,
    crop_regions,
    deformation_prior_loss,
    equivariance_loss,
    generator_losses,
    guidance_points,
    head_pose_loss,
    keypoint_prior_loss,
    match_slots,
    openness_loss,
    wing_guidance_loss,
)
from training.networks.recogniser import FaceRecogniser, load_recogniser
from training.networks.vgg import Vgg19Features, load_vgg19
from training.networks.weight_files import fingerprint

_log = logging.getLogger(__name__)
Terms = dict[str, Tensor]
ANGLES = ("pitch", "yaw", "roll")
MAX_SLOT_DISTANCE = 0.15
"""From landmarks to the key points that follow them in trained weights, mean, where the picture's side is 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionLosses:
    """Weights of the terms on key points and angles, each with the reduction that it multiplies; 0: left out."""

    equivariance: float = 20.0
    """Mean over key points and both axes, in units where the picture's side is 2; face-vid2vid's 20 is for the sum."""
    keypoint_prior: float = 10.0
    """Sum over ordered pairs, plus the mean depth's distance from 0.33; of x_d."""
    head_pose: float = 0.5
    """Degrees, sum of the three angles, mean of the source and the driving frame; face-vid2vid has 20."""
    deformation_prior: float = 20.0
    """Mean over key points and axes of the driving frame; face-vid2vid's 5 for the sum would be 315 here."""
    guidance: float = 5.0
    """Wing of ten key points against landmarks, mean over points of the sum over x and y; our choice."""
    openness: float = 0.0
    """Error of the openness of mouth plus eyes that these points show; not in the paper, for quick small models."""

    pose_signs: Literal["auto", "labels"] = "auto"
    """labels: as they are. auto: with --init, angles that the given weights count the other way change their sign;
    a run tells which those are, with other weights it is measured."""

    def __post_init__(self) -> None:
        require_no_negative(self)
        terms = (f.name for f in fields(self) if f.type == "float" and f.name != "random_vgg19_width")
        if not any(getattr(self, name) for name in terms):
            raise ValueError("all weights of losses are 0: nothing would be learned")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseLosses(MotionLosses):
    """Weights of the loss terms, each with the reduction that it multiplies. 0 leaves a term out.

    The paper publishes none. The start is face-vid2vid's, with three exceptions, because here M alone gives what there
    a detector of key points and an estimator of pose give, each with an optimiser of its own. The equivariance's 20 is
    for the mean of the 2 x 21 numbers that face-vid2vid sums, so that the term counts 42 times less. Head pose and
    deformation at 20 and 5 (the latter for the sum of 3 x 21 numbers: 315 of the mean) give M's backbone gradients of
    norm 940 and 97, against 51 of the guidance, 8 of the prior and 1.3 of the equivariance (the small M, trained); at
    0.5 and 20 they are 23 and 6. That M learned pose to 1.3 degrees at a weight of 0.05.
    """

    perceptual: float = 10.0
    """VGG19, global + face + lip: sum of mean differences over four scales and five layers each."""
    adversarial: float = 1.0
    """Mean over patches, sum of the three discriminators."""
    feature_matching: float = 10.0
    """Sum over layers of mean differences, sum of the three discriminators."""
    identity: float = 10.0
    """1 - cosine of recogniser features; our choice, nothing is published."""
    pixel: float = 0.0
    """Plain mean absolute difference; the paper has none. It replaces what is missing where there is no VGG19."""
    pixel_face: float = 0.0
    """The same within the face and the lip crop, sum of both."""
    pixel_eyes: float = 0.0
    """The same within the crop of both eyes."""
    landmark_flow: float = 0.0
    """Error of W's flow at the landmarks, mean in [-1, 1]; not in the paper, for quick small models."""
    flow_openness: float = 0.0
    """Error of the openness of eyes plus lips that W's flow finds at the landmarks; likewise."""

    balancer: bool = False
    """Make the weights of the terms on the picture shares of the gradient at the picture (EnCodec's balancer)."""
    gan: Literal["hinge", "non-saturating"] = "hinge"
    """Kind of the adversarial loss."""
    discriminator_warmup_images: int = 50_000
    """The discriminators learn alone for so long before the networks hear of them. No checkpoint counts as the best
    before `optimizer.ema_half_life_images` more: what had no adversarial loss may be nearer to the target, but soft."""
    vgg19: str = ""
    """Path or URL of torchvision's vgg19 state dict (.pth or .safetensors)."""
    random_vgg19_width: float = 1.0
    """Width of the random features that stand in for VGG19 where that is allowed; less is cheaper."""
    recogniser: str = ""
    """Path or URL of a face recogniser's ONNX file; empty: SFace, fetched and verified as for curation."""
    weights_dir: str = ""
    """Folder with the analysers' weight files, where they are not to be fetched."""

    def __post_init__(self) -> None:
        MotionLosses.__post_init__(self)
        require_positive(self, "random_vgg19_width")

    @property
    def has_discriminators(self) -> bool:
        """Whether there is an adversarial game at all."""
        return self.adversarial > 0 or self.feature_matching > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorOptions:
    """Sizes of the three discriminators."""

    base_channels: int = 64
    """Of the first block; doubled by each further one."""
    max_channels: int = 512
    """Bound on the channels."""
    num_blocks: int = 4
    """Halvings; the smallest region must have 2^(num_blocks + 1) px."""

    def __post_init__(self) -> None:
        require_positive(self, "base_channels", "max_channels", "num_blocks")


class Conventions(nn.Module):
    """What the weights mean by their outputs: signs of the pose angles, and which key points follow which landmark."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pose_signs", torch.ones(3))
        self.register_buffer("slots", torch.tensor(RELEASED_SLOTS))
        self.slots_tuple = RELEASED_SLOTS

    def _load_from_state_dict(self, *arguments, **options) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self.slots_tuple = tuple(self.slots.tolist())

    def take(self, state: dict[str, Tensor], *, signs: bool) -> list[str]:
        """Set both as a run had them whose weights training starts from; returns what they are, a line.

        signs: whether angles change their sign where they did in that run.
        """
        self.load_state_dict(state)
        if not signs:
            self.pose_signs.fill_(1.0)
        changed = [name for name, sign in zip(ANGLES, self.pose_signs.tolist(), strict=True) if sign < 0]
        angles = f"{' and '.join(changed)} with the sign changed" if changed else "angles as labelled"
        slots = ", ".join(map(str, self.slots_tuple))
        return [f"as in that run, {angles}, and guidance landmarks follow the key points {slots}"]

    def measure(
        self, angles: Tensor, labels: Tensor, keypoints: Tensor, landmarks: Tensor, *, signs: bool
    ) -> list[str]:
        """Set both from N frames seen by trained weights; returns what was found, a line each.

        Key points that follow no landmark yet keep the released order.
        angles, labels: [N, 3] pitch, yaw, roll in degrees; keypoints [N, K, 3]; landmarks [N, 68, 2] in [-1, 1].
        """
        notes = []
        for axis, name in enumerate(ANGLES):
            known = labels[:, axis].isfinite()
            correlation = torch.corrcoef(torch.stack([angles[known, axis], labels[known, axis]]))[0, 1].item()
            if signs and correlation < -0.5:
                self.pose_signs[axis] = -1.0
            how = "sign changed" if self.pose_signs[axis] < 0 else "as labelled"
            doubt = "" if abs(correlation) > 0.5 else "; too weak to tell a sign"
            notes.append(f"{name}: correlation {correlation:+.2f} with the labels, {how}{doubt}")
        slots = match_slots(keypoints, landmarks)
        distance = (keypoints[:, list(slots), :2] - guidance_points(landmarks)).norm(dim=-1).nanmean().item()
        # Key points that follow no landmark yet lie about by chance: nothing is lost by the order that tools expect.
        is_known = distance <= MAX_SLOT_DISTANCE
        self.slots.copy_(torch.tensor(slots if is_known else RELEASED_SLOTS))
        self.slots_tuple = tuple(self.slots.tolist())
        doubt = "" if is_known else f", as released: none are near them (the nearest {distance:.2f} away on average)"
        notes.append(f"guidance landmarks follow the key points {', '.join(map(str, self.slots_tuple))}{doubt}")
        return notes

    def pose_error_deg(self, motion: Motion, labels: Tensor) -> Tensor:
        """Mean absolute error of the three angles by sample [B]; labels: [B, 3] in degrees as in the shards, or NaN."""
        return (motion.angles - labels * self.pose_signs).abs().mean(dim=1)


def motion_terms(
    weights: MotionLosses, seen: PairMotion, batch: PreparedBatch, transform: RandomTransform, conventions: Conventions
) -> Terms:
    """Terms on key points and angles, unweighted, of those that have a weight."""
    terms = {}
    if weights.equivariance:
        terms["equivariance"] = equivariance_loss(
            seen.keypoints_driving, seen.keypoints_transformed, transform.warp_points
        )
    if weights.keypoint_prior:
        terms["keypoint_prior"] = keypoint_prior_loss(seen.keypoints_driving)
    if weights.head_pose:
        signs = conventions.pose_signs
        terms["head_pose"] = (
            head_pose_loss(seen.source, batch.source.pose * signs)
            + head_pose_loss(seen.driving, batch.driving.pose * signs)
        ) / 2
    if weights.deformation_prior:
        terms["deformation_prior"] = deformation_prior_loss(seen.driving)
    if weights.guidance:
        slots = conventions.slots
        terms["guidance"] = (
            wing_guidance_loss(seen.keypoints_source, batch.source.landmarks, slots=slots)
            + wing_guidance_loss(seen.keypoints_driving, batch.driving.landmarks, slots=slots)
        ) / 2
    if weights.openness:
        slots = conventions.slots
        terms["openness"] = (
            openness_loss(seen.keypoints_source, batch.source.landmarks, slots=slots)
            + openness_loss(seen.keypoints_driving, batch.driving.landmarks, slots=slots)
        ) / 2
    return terms


def weighted_sum(weights: MotionLosses, terms: Terms) -> Tensor:
    """Sum of the terms, each times its weight; 0 without any, as while discriminators that alone count warm up."""
    if not terms:
        return torch.zeros(())
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()


def _name_of(network: Vgg19Features | FaceRecogniser) -> str:
    return f"{'random features' if network.is_random else 'weights'} {fingerprint(network)}"


class BaseCriterion:
    """The terms of stage I on pictures, unweighted. Frozen feature networks live here, on the device.

    judges: what they are, as `Stage.judges` says.
    """

    def __init__(
        self, weights: BaseLosses, *, device: torch.device, allow_random_features: bool, autocast_features: bool
    ) -> None:
        self.weights = weights
        for term, name in (("perceptual", "vgg19"), ("identity", "recogniser")):
            if getattr(weights, name) and not getattr(weights, term):
                _log.warning("note: losses.%s is not used, because losses.%s is 0 in this recipe", name, term)
        self.perceptual = self.identity = None
        self.judges: dict[str, str] = {}
        if weights.perceptual:
            network = load_vgg19(
                weights.vgg19 or None, allow_random_features=allow_random_features, width=weights.random_vgg19_width
            )
            self.judges["losses.vgg19"] = _name_of(network)
            if autocast_features:
                # Autocast keeps its copies of weights that learn only; it would round these again in each of 24 passes.
                network.features.to(torch.bfloat16)
            self.perceptual = CascadedPerceptualLoss(network, autocast_features=autocast_features).to(device)
        if weights.identity:
            recogniser = load_recogniser(
                weights.recogniser or None,
                weights_dir=weights.weights_dir or None,
                allow_random_features=allow_random_features,
            )
            self.judges["losses.recogniser"] = _name_of(recogniser)
            self.identity = IdentityLoss(recogniser).to(device)

    def picture_terms(self, fake: Terms, real: Terms, landmarks: Tensor) -> Terms:
        """Terms on the picture without a discriminator. fake, real: global, face and lip views (`losses.cascade`)."""
        weights, terms = self.weights, {}
        if weights.pixel:
            terms["pixel"] = (fake["global"] - real["global"]).abs().mean()
        if weights.pixel_face:
            terms["pixel_face"] = sum((fake[region] - real[region]).abs().mean() for region in ("face", "lip"))
        if weights.pixel_eyes:
            eyes = [crop_regions(views["global"], landmarks, regions=("eyes",))["eyes"] for views in (fake, real)]
            terms["pixel_eyes"] = (eyes[0] - eyes[1]).abs().mean()
        if self.perceptual is not None:
            terms["perceptual"] = sum(self.perceptual(fake, real).values())
        if self.identity is not None:
            terms["identity"] = self.identity(fake["global"], real["global"], landmarks)
        return terms

    def adversarial_terms(self, discriminators: nn.Module, fake: Terms, real: Terms) -> Terms:
        """Terms by the discriminators, which stay as they are."""
        judged = generator_losses(discriminators, real, fake, kind=self.weights.gan)
        terms = {}
        if self.weights.adversarial:
            terms["adversarial"] = sum(judged.adversarial.values())
        if self.weights.feature_matching:
            terms["feature_matching"] = sum(judged.feature_matching.values())
        return terms
