"""Recipes of training: every option of a run, read from TOML presets, the command line, or both.

Each stage has its own recipe class, derived from `Recipe` with the sections that only it needs, and its own folder of
presets. A resumed run is guarded against silently becoming another one by comparing what changes what is learned.
Everything that counts time counts images, so a recipe means the same on any number of GPUs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from manifests import recipes
from manifests.recipes import require_finite, require_no_negative, require_positive
from model.config import ModelConfig
from training.data import AugmentationConfig, DataConfig

RECIPE_VERSION = 1
PRESETS = Path(__file__).parent / "recipes"
OF_THE_DATA = ("crop_scale", "crop_vy_ratio")
"""Fields of the model that come from the data set, which a recipe does not name."""
FREE = (
    *("num_images", "reports", "checkpoints", "compute"),
    *("data.prefetch_batches", "data.worker_start", "data.on_damage", "data.index_folder"),
    *("losses.vgg19", "losses.recogniser", "losses.weights_dir"),  # what these files hold is compared: `Stage.judges`
    *(f"model.{name}" for name in OF_THE_DATA),
)
"""Sections and fields that a resumed run may change: how long, how fast, how often it tells, and where files lie, but
not what it learns."""
UNSEEN_BY_VALIDATION = ("optimizer", "augmentation", "batch_size", "told_share", "edited_every", "data.num_workers")
"""Sections and fields that change what is learned, but neither the pairs of validation nor what its figures mean."""

AnyRecipe = TypeVar("AnyRecipe", bound="Recipe")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerOptions:
    """Adam of the networks and of the discriminators, clipping, and the averaged weights."""

    learning_rate: float = 2e-4
    """Of the networks."""
    discriminator_learning_rate: float = 2e-4
    """Of the discriminators, which stage I alone has."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates."""
    max_gradient_norm: float = 10.0
    """Gradients of each network are scaled down to this norm, those of all discriminators together likewise; 0 never
    scales. Where that is most of the time, Adam, which divides by the usual length anyway, learns all the same; what is
    averted is one batch that counts as hundreds."""
    warmup_images: int = 0
    """The learning rate rises from zero over this many images."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the learning rate after the warm-up, down to `final_share` at the end of the run."""
    final_share: float = 0.0
    """Share of the learning rate that is left at the end."""
    ema_half_life_images: int = 10_000
    """Half-life of the exponential moving average of the weights; 0 keeps no average."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "discriminator_learning_rate")
        require_no_negative(self)
        if self.final_share > 1:
            raise ValueError(f"final_share is {self.final_share}, expected 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}, expected at least 0 and less than 1")

    def factor(self, images: int, num_images: int) -> float:
        """Share of the learning rate after `images` of `num_images`."""
        import math

        if images < self.warmup_images:
            return (images + 1) / (self.warmup_images + 1)
        if self.decay == "constant":
            return 1.0
        done = min(1.0, (images - self.warmup_images) / max(1, num_images - self.warmup_images))
        left = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.final_share + (1 - self.final_share) * left


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeOptions:
    """How the arithmetic is done."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; key-point algebra, pose and sampling grids stay float32."""
    channels_last: bool = False
    """Memory format that tensor cores prefer, in 2D and 3D."""
    recompute: tuple[str, ...] = ()
    """Blocks of G (up_1, up_0, G_middle_0 ...) whose activations the backward pass computes again; up_1 saves most."""
    micro_batch_size: int = 0
    """Most pairs that a rank takes through the networks at once, in equal parts; 0: all that it has of a batch. Fewer
    need less memory: their gradients are added up until the batch is complete. Batch norm then has the statistics of
    fewer."""
    compile: bool = False
    """torch.compile for the networks' blocks; with several ranks not for those of F and W, whose batch norm is
    synchronised, which breaks graphs. Takes a minute or two before the first step."""
    tf32: bool = True
    """Tensor cores for float32 convolutions on CUDA, with 10 bits of mantissa; products of matrices keep all 23."""

    def __post_init__(self) -> None:
        require_no_negative(self)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around what runs in `precision`."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def pairs_at_once(self, pairs: int, multiple_of: int = 1) -> int:
        """Size of the equal parts in which a rank takes its `pairs` of a step: the largest within `micro_batch_size`.

        multiple_of: of what a part must be a multiple, if need be beyond `micro_batch_size`.
        """
        sizes = part_sizes(pairs, multiple_of)
        if not sizes or not self.micro_batch_size:
            return pairs
        return max((size for size in sizes if size <= self.micro_batch_size), default=sizes[0])

    def refuse(self, *names: str, stage: str) -> None:
        """ValueError where an option is asked for that the stage does not take."""
        for name in names:
            if value := getattr(self, name):
                raise ValueError(f"compute.{name} is {value}, which the stage {stage} does not take: leave it out")


def part_sizes(pairs: int, multiple_of: int = 1) -> list[int]:
    """Sizes, ascending, of the equal parts into which `pairs` can fall, all multiples of `multiple_of`."""
    return [size for size in range(multiple_of, pairs + 1, multiple_of) if pairs % size == 0]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """What a run tells, and how often. All intervals are in images."""

    log_every_images: int = 1_000
    """Console line, TensorBoard and metrics.jsonl."""
    pictures_every_images: int = 50_000
    """Sample grid of held-out pairs (of stage I: source, driving, result and occlusion); 0 makes none."""
    validate_every_images: int = 100_000
    """Figures on held-out pairs; 0 makes none."""
    num_pictures: int = 8
    """Rows of the grid."""
    num_validation: int = 256
    """Pairs, over all ranks, that count in validation."""

    def __post_init__(self) -> None:
        require_positive(self, "log_every_images", "num_pictures", "num_validation")
        require_no_negative(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointOptions:
    """What is kept to resume from."""

    every_images: int = 50_000
    """Interval between checkpoints; one is also written at each best validation, at the end, on SIGTERM and Ctrl-C."""
    keep_last: int = 3
    """Older ones are removed, except the best by validation."""

    def __post_init__(self) -> None:
        require_positive(self, "every_images", "keep_last")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The sections that all stages share."""

    seed: int = 0
    """Of the initial weights, the order of the data, and every random draw."""
    num_images: int = 10_000_000
    """Length of the run: pairs seen in all, over all ranks."""
    batch_size: int = 8
    """Pairs a step over all ranks; must be a multiple of their number."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    reports: ReportOptions = field(default_factory=ReportOptions)
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)

    def __post_init__(self) -> None:
        require_positive(self, "num_images", "batch_size")
        require_finite(self)

    @property
    def hash(self) -> str:
        """8 hex digits over everything that changes what is learned."""
        values = {name: value for name, value in flatten(dataclasses.asdict(self)).items() if not self._is_free(name)}
        content = [RECIPE_VERSION, type(self).__name__, values]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]

    def differences(self, other: dict[str, Any]) -> list[str]:
        """What changes what is learned from the flattened values of another recipe: `section.field: theirs -> ours`."""
        ours = flatten(dataclasses.asdict(self))
        return [
            f"{name}: {other.get(name, 'absent')} -> {ours.get(name, 'absent')}" for name in self._other_fields(other)
        ]

    def validates_like(self, other: dict[str, Any]) -> bool:
        """Whether figures of validation can be compared with those by another recipe, given as flattened values."""
        ours = flatten(dataclasses.asdict(self))
        pairs = ("reports.num_validation", *(f"model.{name}" for name in OF_THE_DATA))
        return all(other.get(name, ours[name]) == ours[name] for name in pairs) and all(
            _is_within(name, UNSEEN_BY_VALIDATION) for name in self._other_fields(other)
        )

    def _other_fields(self, other: dict[str, Any]) -> list[str]:
        ours = flatten(dataclasses.asdict(self))
        names = sorted(name for name in ours | other if not self._is_free(name))
        return [name for name in names if json.dumps(ours.get(name)) != json.dumps(other.get(name))]

    def _is_free(self, name: str) -> bool:
        # Of a stream each worker reads a part of its own; by `pread` any worker reads any batch.
        workers = () if self.data.reader == "webdataset" else ("data.num_workers",)
        return _is_within(name, (*FREE, *workers))


def _is_within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a field is one of these fields, or in one of these sections."""
    return name in places or name.split(".")[0] in places


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def load_recipe(cls: type[AnyRecipe], stage: str, name_or_path: str) -> AnyRecipe:
    """The preset of a stage of that name, or the recipe in that TOML file. ValueError says what is wrong with it."""
    return recipes.load_recipe(cls, PRESETS / stage, name_or_path, RECIPE_VERSION)


def recipe_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML, with its version and hash."""
    return recipes.to_toml(recipe, RECIPE_VERSION, recipe.hash)
