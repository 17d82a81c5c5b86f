"""F, M, W and G of stage I as one module: one forward pass a step, which is what data-parallel wrappers want."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.keypoints import Motion
from model.networks import LivePortrait
from model.networks.blocks import ConvNorm2d, DownBlock3d, ResBlock3d, UpBlock3d
from model.networks.generator import SpadeBlock, SpadeGenerator
from model.networks.motion import ConvNextBlock
from model.networks.warping import WarpOutput
from training.distributed import CpuSyncBatchNorm
from training.recipe import ComputeOptions

BASE_NETWORKS = ("appearance", "motion", "warping", "generator")
COMPILED_BLOCKS = (ConvNextBlock, SpadeBlock, ConvNorm2d, ResBlock3d, DownBlock3d, UpBlock3d)
FULL_PRECISION = ComputeOptions()


@dataclass(frozen=True, kw_only=True)
class PairMotion:
    """What M sees in pairs."""

    source: Motion
    driving: Motion
    keypoints_source: Tensor
    """x_s: float32 [B, K, 3]."""
    keypoints_driving: Tensor
    """x_d: float32 [B, K, 3], from the canonical key points of the *source*."""
    keypoints_transformed: Tensor | None
    """x of the transformed driving frame, likewise; None where none was given."""


@dataclass(frozen=True, kw_only=True)
class Reenacted(PairMotion):
    """What the base model makes of pairs."""

    image: Tensor
    """float32 [B, 3, 2S, 2S] in (0, 1): the source's person in the driving frame's pose and expression."""
    warped: WarpOutput
    """Flow and occlusion; after those of the pairs the ones of the edited sources, where there are any."""


class BaseModel(nn.Module):
    """x_s = s_s (x_c,s R_s + delta_s) + t_s;  x_d = s_d (x_c,s R_d + delta_d) + t_d;  G(W(F(source), x_s, x_d))."""

    def __init__(self, portrait: LivePortrait | SimpleNamespace) -> None:
        """portrait: what has the four networks and their config."""
        super().__init__()
        self.config: ModelConfig = portrait.config
        self.appearance = portrait.appearance
        self.motion = portrait.motion
        self.warping = portrait.warping
        self.generator = portrait.generator

    def networks(self) -> dict[str, nn.Module]:
        """F, M, W, G by their names."""
        return {name: getattr(self, name) for name in BASE_NETWORKS}

    def forward(
        self,
        source: Tensor,
        driving: Tensor,
        transformed: Tensor | None = None,
        compute: ComputeOptions = FULL_PRECISION,
        told: tuple[Tensor, Tensor] | None = None,
        edits: tuple[int, Tensor] | None = None,
    ) -> Reenacted:
        """source, driving, transformed (driving under a random transform): float [B, 3, S, S] in [0, 1].

        told: places float [B, K, 2] of key points of both frames that W gets instead of what M says, NaN where M's own
        are to be taken. What is returned of key points is M's.
        edits: n, and offsets float [ceil(B / n), K, 3] with which W, but not G, sees every n-th source once more
        (`training.edits`).
        compute: whose precision the networks run in. Key-point algebra and grids are float32 either way.
        """
        moved = pair_motion(self.motion, source, driving, transformed, compute)
        x_s, x_d = moved.keypoints_source, moved.keypoints_driving
        if told is not None:
            x_s, x_d = _put_in_place(x_s, told[0]), _put_in_place(x_d, told[1])
        with compute.autocast(source.device):
            volume = self.appearance(source)
            if edits is not None:
                # In one pass with the pairs, so that W's batch statistics are of both.
                every, offsets = edits
                volume, x_d = torch.cat([volume, volume[::every]]), torch.cat([x_d, x_s[::every] + offsets])
                x_s = torch.cat([x_s, x_s[::every]])
            warped = self.warping(volume, kp_driving=x_d, kp_source=x_s)
            image = self.generator(warped.feature[: len(source)])
        return Reenacted(**vars(moved), image=image.float(), warped=warped)


def _put_in_place(keypoints: Tensor, places: Tensor) -> Tensor:
    """Key points [B, K, 3] with x and y of `places` [B, K, 2] where these are known."""
    in_plane = torch.where(places.isnan(), keypoints[..., :2], places)
    return torch.cat([in_plane, keypoints[..., 2:]], dim=-1)


def pair_motion(
    motion: nn.Module,
    source: Tensor,
    driving: Tensor,
    transformed: Tensor | None = None,
    compute: ComputeOptions = FULL_PRECISION,
) -> PairMotion:
    """What M (`motion`) sees in pairs; see `BaseModel.forward`."""
    frames = [frame for frame in (source, driving, transformed) if frame is not None]
    with compute.autocast(source.device):
        # M has no batch statistics, so all frames may go through it together.
        heads = motion(torch.cat(frames))
    with torch.autocast(source.device.type, enabled=False):
        motions = [
            Motion.from_heads(dict(zip(heads, parts, strict=True)))
            for parts in zip(*(head.chunk(len(frames)) for head in heads.values()), strict=True)
        ]
        keypoints = [motion.replace(kp=motions[0].kp).keypoints() for motion in motions]
    return PairMotion(
        source=motions[0],
        driving=motions[1],
        keypoints_source=keypoints[0],
        keypoints_driving=keypoints[1],
        keypoints_transformed=keypoints[2] if transformed is not None else None,
    )


def apply_compute_options(model: BaseModel | LivePortrait, options: ComputeOptions) -> None:
    """Compilation and recomputation, in place; keys of the state dict stay as they are.

    The memory format comes before, by `use_channels_last`: copies of the model take it over, but must stay plain.
    """
    if options.compile:
        compile_blocks(model)
    recompute_blocks(model.generator, options.recompute)


def use_channels_last(module: nn.Module) -> None:
    """Convolution weights in the memory format of tensor cores, 2D and 3D, in place."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


def compile_blocks(model: nn.Module) -> None:
    """torch.compile for each block by itself, in place: blocks of one shape share what is compiled.

    Where batch norm is synchronised, blocks with it stay as they are: it waits for other ranks, which breaks graphs.
    """
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)  # shapes of a kind of block
    for block in model.modules():
        is_synchronised = any(isinstance(part, nn.SyncBatchNorm | CpuSyncBatchNorm) for part in block.modules())
        if isinstance(block, COMPILED_BLOCKS) and not is_synchronised:
            block.forward = torch.compile(block.forward, dynamic=False)


def recompute_blocks(generator: SpadeGenerator, names: tuple[str, ...]) -> None:
    """Let blocks of G keep only their inputs for the backward pass. ValueError lists the blocks there are."""
    blocks = {name: block for name, block in generator.named_children() if name not in ("fc", "conv_img")}
    for name in names:
        if name not in blocks:
            raise ValueError(f"compute.recompute: G has no block {name!r}; it has {', '.join(blocks)}")
        # Nothing in a block is random, or changes: a second pass is the first.
        blocks[name].forward = partial(checkpoint, blocks[name].forward, use_reentrant=False, preserve_rng_state=False)
