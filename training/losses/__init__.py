"""Losses of both training stages. Each says its reduction; all are float32 also under autocast."""

from training.losses.adversarial import (
    GeneratorLosses,
    discriminator_losses,
    feature_matching_loss,
    fooling_loss,
    generator_losses,
    real_fake_loss,
)
from training.losses.balancer import GradientBalancer
from training.losses.identity import IdentityLoss
from training.losses.keypoints import (
    GUIDANCE_LANDMARKS,
    RELEASED_SLOTS,
    deformation_prior_loss,
    equivariance_loss,
    flow_openness_loss,
    guidance_points,
    guided_openness,
    head_pose_loss,
    keypoint_prior_loss,
    landmark_flow_loss,
    match_slots,
    openness_loss,
    require_slots,
    wing,
    wing_guidance_loss,
)
from training.losses.perceptual import CascadedPerceptualLoss
from training.losses.regions import CASCADE, cascade, crop_regions, crop_size, eye_mask, lip_mask, shoulder_mask

__all__ = [
    "CASCADE",
    "GUIDANCE_LANDMARKS",
    "RELEASED_SLOTS",
    "CascadedPerceptualLoss",
    "GeneratorLosses",
    "GradientBalancer",
    "IdentityLoss",
    "cascade",
    "crop_regions",
    "crop_size",
    "deformation_prior_loss",
    "discriminator_losses",
    "equivariance_loss",
    "eye_mask",
    "feature_matching_loss",
    "flow_openness_loss",
    "fooling_loss",
    "generator_losses",
    "guidance_points",
    "guided_openness",
    "head_pose_loss",
    "keypoint_prior_loss",
    "landmark_flow_loss",
    "lip_mask",
    "match_slots",
    "openness_loss",
    "real_fake_loss",
    "require_slots",
    "shoulder_mask",
    "wing",
    "wing_guidance_loss",
]
