"""Stage I: F, M, W and G against three discriminators, on pairs of frames of one person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from model.networks import LivePortrait
from training.base_losses import (
    BaseCriterion,
    BaseLosses,
    Conventions,
    DiscriminatorOptions,
    motion_terms,
    weighted_sum,
)
from training.base_model import BASE_NETWORKS, BaseModel, Reenacted, apply_compute_options, use_channels_last
from training.data import PreparedBatch, RandomTransform
from training.distributed import Process, ranks_that_share, synchronise_batch_norm
from training.edits import edit_landmarks, keypoint_offsets
from training.losses import (
    CASCADE,
    GradientBalancer,
    cascade,
    discriminator_losses,
    flow_openness_loss,
    guidance_points,
    landmark_flow_loss,
    require_slots,
)
from training.networks.discriminator import CascadedDiscriminator
from training.picture_sizes import require_picture_sizes
from training.recipe import Recipe
from training.stage import Draws, Stage, make_adam

PICTURE_TERMS = ("pixel", "pixel_face", "pixel_eyes", "perceptual", "identity", "adversarial", "feature_matching")


@dataclass(frozen=True, kw_only=True)
class BaseRecipe(Recipe):
    """Everything about a run of stage I."""

    losses: BaseLosses = field(default_factory=BaseLosses)
    discriminators: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    told_share: float = 0.0
    """Share of the pairs in which W hears of the ten guided key points from the landmarks instead of from M. So W and G
    learn what these mean before M is sure of them. The paper does without; for quick small models."""

    edited_every: int = 0
    """Every so many sources (0: none) W sees once more, with eyes and lips opened or closed by hand. No picture shows
    that, but `losses.landmark_flow` and `losses.flow_openness` count it, too. For small data sets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.told_share <= 1:
            raise ValueError(f"told_share is {self.told_share}: expected 0 to 1")
        if self.edited_every < 0:
            raise ValueError(f"edited_every is {self.edited_every}: expected a number of sources, or 0 for none")


class BaseStage(Stage):
    """F, M, W, G and the discriminators in training. S, R_eyes and R_lip ride along untouched, for the export."""

    name = "base"
    best_metric = "l1_face"
    validates_on_videos = True
    learns_motion = True
    takes_recompute = True

    def __init__(
        self,
        recipe: BaseRecipe,
        process: Process,
        *,
        portrait: LivePortrait | None = None,
        allow_random_features: bool = False,
    ) -> None:
        """portrait: weights to start from; random ones by the recipe's seed otherwise."""
        if recipe.losses.guidance or recipe.losses.openness or recipe.told_share or recipe.edited_every:
            require_slots(recipe.model.num_keypoints)
        require_picture_sizes(recipe)
        self.recipe, self.process = recipe, process
        per_rank = recipe.batch_size // process.world_size
        if process.world_size > 1 and recipe.edited_every and per_rank % recipe.edited_every:
            even = recipe.batch_size // recipe.edited_every if recipe.batch_size % recipe.edited_every == 0 else 1
            raise ValueError(
                f"one of {recipe.edited_every} sources is edited, but each of {process.world_size} ranks takes "
                f"{per_rank} of the {recipe.batch_size} pairs of a step, which is no multiple of "
                f"{recipe.edited_every}: use {ranks_that_share(even)} with --batch-size {recipe.batch_size}, "
                f"or a --batch-size that is a multiple of {process.world_size * recipe.edited_every}, which is another "
                "recipe"
            )
        self.pairs_multiple = recipe.edited_every or 1
        self.criterion = BaseCriterion(
            recipe.losses,
            device=process.device,
            allow_random_features=allow_random_features,
            autocast_features=recipe.compute.precision == "bfloat16",
        )
        self.judges = self.criterion.judges
        if recipe.losses.has_discriminators:
            # Their game costs some l1: without them the figure is smaller, and the picture softer.
            self.best_from_images = recipe.losses.discriminator_warmup_images + recipe.optimizer.ema_half_life_images
        if recipe.compute.channels_last and self.criterion.perceptual is not None:
            use_channels_last(self.criterion.perceptual)  # so that its maps are laid out like G's picture
        portrait = portrait or LivePortrait.untrained(recipe.seed, recipe.model)
        portrait.to(process.device)
        self.model = BaseModel(portrait).train().requires_grad_(True)
        self.conventions = Conventions().to(process.device)
        self.modules = {
            **self.model.networks(),
            **{name: getattr(portrait, name) for name in ("stitching", "retarget_eye", "retarget_lip")},
            "conventions": self.conventions,
        }
        if recipe.compute.channels_last:
            use_channels_last(self.model)
        self.keep_average(self.model.networks())
        synchronise_batch_norm(self.model, process)
        apply_compute_options(self.model, recipe.compute)
        options = recipe.optimizer
        # Apart, because M's gradient is that of many terms: clipped with the others it would set their length.
        self.optimizers = {"networks": make_adam(self.model, options.learning_rate, options.betas, apart=True)}
        self.replicated = process.replicate(self.model)
        self._make_discriminators()
        self.replicas = tuple(module for module in (self.replicated, self.discriminators) if module is not None)
        self.balancer = None
        if recipe.losses.balancer:
            shares = {name: getattr(recipe.losses, name) for name in PICTURE_TERMS if getattr(recipe.losses, name)}
            self.balancer = GradientBalancer(shares).to(process.device)
            self.modules["balancer"] = self.balancer

    def _make_discriminators(self) -> None:
        self.discriminators = None
        if not self.recipe.losses.has_discriminators:
            return
        options = self.recipe.discriminators
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed + 1)
            bare = CascadedDiscriminator(
                CASCADE,
                base_channels=options.base_channels,
                max_channels=options.max_channels,
                num_blocks=options.num_blocks,
            )
        bare.to(self.process.device).train()
        if self.recipe.compute.channels_last:
            use_channels_last(bare)
        self.modules["discriminators"] = bare
        self.optimizers["discriminators"] = make_adam(
            bare, self.recipe.optimizer.discriminator_learning_rate, self.recipe.optimizer.betas
        )
        self.discriminators = self.process.replicate(bare)

    def add_gradients(self, batch: PreparedBatch, images: int, draws: Draws) -> dict[str, Tensor]:
        """Of the discriminators and of the networks that they judge, both as they were before the step."""
        transform = draws.transforms(len(batch))
        edited = self._edited(batch, draws)
        made = self.replicated(
            self._input(batch.source.image),
            self._input(batch.driving.image),
            self._input(transform.warp_image(batch.driving.image)),
            self.recipe.compute,
            self._places_to_tell(batch, draws),
            None if edited is None else (self.recipe.edited_every, self._offsets(batch, edited)),
        )
        landmarks = batch.driving.landmarks
        real, fake = cascade(batch.driving.target, landmarks), cascade(made.image, landmarks)
        told = {}
        if self.discriminators is not None:
            told |= self._judge(real, fake)
        terms = self._terms(made, batch, transform, real, fake, images) | self._flow_terms(made, batch, edited)
        total = weighted_sum(self.recipe.losses, terms)
        if not any(name in terms for name in PICTURE_TERMS):
            # As while discriminators that alone judge the picture warm up: DistributedDataParallel wants a gradient.
            total = total + 0 * made.image.sum()
        self._backward(terms, total, made.image)
        return {"loss": total, **terms, **told}

    def _edited(self, batch: PreparedBatch, draws: Draws) -> Tensor | None:
        """Landmarks of every n-th source with eyes and lips opened or closed."""
        if not self.recipe.edited_every:
            return None
        landmarks = batch.source.landmarks[:: self.recipe.edited_every]
        return edit_landmarks(landmarks, draws.uniform(len(landmarks), 2))

    def _offsets(self, batch: PreparedBatch, edited: Tensor) -> Tensor:
        landmarks = batch.source.landmarks[:: self.recipe.edited_every]
        return keypoint_offsets(landmarks, edited, self.conventions.slots, self.recipe.model.num_keypoints)

    def _flow_terms(self, made: Reenacted, batch: PreparedBatch, edited: Tensor | None) -> dict[str, Tensor]:
        source, driving = batch.source.landmarks, batch.driving.landmarks
        if edited is not None:
            source, driving = torch.cat([source, source[:: self.recipe.edited_every]]), torch.cat([driving, edited])
        losses = {"landmark_flow": landmark_flow_loss, "flow_openness": flow_openness_loss}
        return {
            name: loss(made.warped.deformation, source, driving)
            for name, loss in losses.items()
            if getattr(self.recipe.losses, name)
        }

    def _places_to_tell(self, batch: PreparedBatch, draws: Draws) -> tuple[Tensor, Tensor] | None:
        """For `BaseModel.forward`: landmarks at the guided key points in `told_share` of the pairs, NaN elsewhere."""
        if not self.recipe.told_share:
            return None
        num = len(batch)
        is_told = (draws.uniform(num) < self.recipe.told_share)[:, None, None]
        slots, count = self.conventions.slots, self.recipe.model.num_keypoints
        places = []
        for frames in (batch.source, batch.driving):
            place = frames.landmarks.new_full((num, count, 2), torch.nan)
            place[:, slots] = torch.where(is_told, guidance_points(frames.landmarks), torch.nan)
            places.append(place)
        return places[0], places[1]

    def _terms(
        self,
        made: Reenacted,
        batch: PreparedBatch,
        transform: RandomTransform,
        real: dict[str, Tensor],
        fake: dict[str, Tensor],
        images: int,
    ) -> dict[str, Tensor]:
        """The terms of the networks' loss but for those on W's flow, unweighted."""
        with self.recipe.compute.autocast(self.process.device):
            terms = self.criterion.picture_terms(fake, real, batch.driving.landmarks)
            if self.discriminators is not None and images >= self.recipe.losses.discriminator_warmup_images:
                terms |= self.criterion.adversarial_terms(self._bare_discriminators(), fake, real)
        return terms | motion_terms(self.recipe.losses, made, batch, transform, self.conventions)

    def _judge(self, real: dict[str, Tensor], fake: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the gradients of the discriminators."""
        with self.recipe.compute.autocast(self.process.device):
            losses = discriminator_losses(self.discriminators, real, fake, kind=self.recipe.losses.gan)
        torch.stack([*losses.values()]).sum().backward()
        return {f"discriminator/{region}": loss for region, loss in losses.items()}

    def _backward(self, terms: dict[str, Tensor], total: Tensor, image: Tensor) -> None:
        if self.balancer is None:
            total.backward()
            return
        on_picture = {name: term for name, term in terms.items() if name in PICTURE_TERMS}
        others = {name: term for name, term in terms.items() if name not in PICTURE_TERMS}
        # Where discriminators alone judge the picture, nothing does until they have warmed up.
        gradient = self.balancer.gradient(on_picture, image)[0] if on_picture else torch.zeros_like(image)
        if others:
            torch.autograd.backward([image, weighted_sum(self.recipe.losses, others)], [gradient, None])
        else:
            image.backward(gradient)

    def _bare_discriminators(self) -> nn.Module:
        wrapped = self.discriminators
        return wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped

    def _input(self, image: Tensor) -> Tensor:
        return image.contiguous(memory_format=torch.channels_last) if self.recipe.compute.channels_last else image

    def learn_conventions(self, batches: Iterable[PreparedBatch]) -> list[str]:
        """With trained weights: how they count angles, and which key points follow the landmarks. Lines to tell."""
        seen: list[list[Tensor]] = []
        self.model.eval()
        with torch.no_grad():
            for batch in batches:
                made = self.model(batch.source.image, batch.driving.image)
                for motion, points, frames in (
                    (made.source, made.keypoints_source, batch.source),
                    (made.driving, made.keypoints_driving, batch.driving),
                ):
                    seen.append([motion.angles, frames.pose, points, frames.landmarks])
        self.model.train()
        gathered = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        return self.conventions.measure(*gathered, signs=self.recipe.losses.pose_signs == "auto")

    def reenact(self, batch: PreparedBatch) -> Reenacted:
        """Pairs by the averaged weights (by the trained ones where no average is kept), in evaluation mode."""
        networks = {name: self.averaged(name) for name in BASE_NETWORKS}
        training = self.model.training
        self.model.eval()
        view = BaseModel(SimpleNamespace(config=self.model.config, **networks))
        try:
            source, driving = self._input(batch.source.image), self._input(batch.driving.image)
            return view(source, driving, compute=self.recipe.compute)
        finally:
            self.model.train(training)

    def validate(self, batch: PreparedBatch, first: int = 0) -> dict[str, Tensor]:
        """Mean absolute error of the whole picture and of the face, beside that of showing the source unchanged, and of
        the angles."""
        made, target = self.reenact(batch), batch.driving.target
        masks = face_boxes(batch.driving.landmarks, target.shape[-1])
        figures = {}
        for prefix, picture in (("", made.image), ("copy_", batch.source.target)):
            error = (picture - target).abs().mean(dim=1)
            figures[f"{prefix}l1"] = error.mean(dim=(1, 2))
            figures[f"{prefix}l1_face"] = (error * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2))
        figures["pose_error_deg"] = self.conventions.pose_error_deg(made.driving, batch.driving.pose)
        return figures

    def pictures(self, batch: PreparedBatch) -> dict[str, Tensor]:
        """Source, driving frame, result, and where W thinks the source shows enough."""
        made = self.reenact(batch)
        return {
            "source": batch.source.target,
            "driving": batch.driving.target,
            "result": made.image,
            "occlusion": functional.interpolate(made.warped.occlusion.float(), size=made.image.shape[-2:]),
        }


def face_boxes(landmarks: Tensor, size: int) -> Tensor:
    """1 within the bounding box of the landmarks [B, 68, 2] in [-1, 1], 0 elsewhere: [B, size, size]; NaN: empty."""
    centres = (2 * torch.arange(size, device=landmarks.device) + 1) / size - 1
    low, high = landmarks.amin(dim=1), landmarks.amax(dim=1)
    inside = (centres >= low[..., None]) & (centres <= high[..., None])  # [B, 2, size]
    return (inside[:, 0, None, :] & inside[:, 1, :, None]).float()
