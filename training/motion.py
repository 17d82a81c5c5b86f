"""python -m training motion: M alone learns from the labels of the shards, before a picture is made.

M decides what stage I can show: W and G learn to move a mouth only as far as M's key points tell that it moves. Alone,
on key points and angles, a step costs a small part of one of stage I, so M can see many more pictures. The published M
can load ImageNet weights; this is a start that needs none. `training base --init` goes on from such a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from model.keypoints import Motion
from model.networks import LivePortrait
from training.base_losses import Conventions, MotionLosses, motion_terms, weighted_sum
from training.base_model import PairMotion, compile_blocks, pair_motion, use_channels_last
from training.data import PreparedBatch, PreparedFrames
from training.distributed import Process
from training.landmarks import dotted
from training.losses import GUIDANCE_LANDMARKS, guided_openness, require_slots
from training.recipe import Recipe
from training.stage import Draws, Stage, make_adam


@dataclass(frozen=True, kw_only=True)
class MotionRecipe(Recipe):
    """Every option of the training of M alone."""

    losses: MotionLosses = field(default_factory=MotionLosses)


class MotionStage(Stage):
    """Trains M on both frames of every pair."""

    name = "motion"
    best_metric = "keypoint_error"
    learns_motion = True

    def __init__(self, recipe: MotionRecipe, process: Process) -> None:
        require_slots(recipe.model.num_keypoints)  # already for its validation
        self.recipe, self.process = recipe, process
        network = LivePortrait.untrained(recipe.seed, recipe.model).motion.to(process.device).train()
        network.requires_grad_(True)
        self.conventions = Conventions().to(process.device)
        self.modules = {"motion": network, "conventions": self.conventions}
        recipe.compute.refuse("recompute", stage=self.name)
        if recipe.compute.channels_last:
            use_channels_last(network)
        self.keep_average({"motion": network})
        if recipe.compute.compile:
            compile_blocks(network)
        self.optimizers = {"networks": make_adam(network, recipe.optimizer.learning_rate, recipe.optimizer.betas)}
        self.replicas = (process.replicate(network),)

    def add_gradients(self, batch: PreparedBatch, images: int, draws: Draws) -> dict[str, Tensor]:
        transform = draws.transforms(len(batch))
        seen = pair_motion(
            self.replicas[0],
            batch.source.image,
            batch.driving.image,
            transform.warp_image(batch.driving.image),
            self.recipe.compute,
        )
        terms = motion_terms(self.recipe.losses, seen, batch, transform, self.conventions)
        total = weighted_sum(self.recipe.losses, terms)
        if terms.keys() <= {"head_pose", "deformation_prior"}:
            # Which do not reach all heads of M, but DistributedDataParallel wants a gradient of each.
            total = total + 0 * seen.keypoints_driving.sum()
        total.backward()
        return {"loss": total, **terms}

    def validate(self, batch: PreparedBatch, first: int = 0) -> dict[str, Tensor]:
        seen = self._see(batch)
        return errors(seen.driving, seen.keypoints_driving, batch.driving, self.conventions)

    def pictures(self, batch: PreparedBatch) -> dict[str, Tensor]:
        seen, frames = self._see(batch), batch.driving
        slots = list(self.conventions.slots_tuple)
        others = [k for k in range(seen.keypoints_driving.shape[1]) if k not in slots]
        return {
            "source": batch.source.target,
            "landmarks": dotted(frames.target, frames.landmarks[:, GUIDANCE_LANDMARKS]),
            "their key points": dotted(frames.target, seen.keypoints_driving[:, slots, :2]),
            "the other key points": dotted(frames.target, seen.keypoints_driving[:, others, :2]),
        }

    def _see(self, batch: PreparedBatch) -> PairMotion:
        """By the averaged weights, as stage I uses M: the driving key points from the source's canonical ones."""
        network = self.averaged("motion")
        return pair_motion(network, batch.source.image, batch.driving.image, compute=self.recipe.compute)


def errors(motion: Motion, keypoints: Tensor, frames: PreparedFrames, conventions: Conventions) -> dict[str, Tensor]:
    """Mean absolute errors by sample [B]: keypoint_error of the ten guided key points in [-1, 1], pose_error_deg, and
    mouth_error and eye_error of the openness that they show (`losses.guided_openness`).

    keypoints: x_d, float [B, K, 3].
    """
    found = keypoints[:, list(conventions.slots_tuple), :2]
    wanted = frames.landmarks[:, GUIDANCE_LANDMARKS]
    (mouth, eyes), (true_mouth, true_eyes) = guided_openness(found), guided_openness(wanted)
    return {
        "keypoint_error": (found - wanted).abs().mean(dim=(1, 2)),
        "pose_error_deg": conventions.pose_error_deg(motion, frames.pose),
        "mouth_error": (mouth - true_mouth).abs(),
        "eye_error": (eyes - true_eyes).abs(),
    }
