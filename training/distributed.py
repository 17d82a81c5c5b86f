"""Processes under torchrun: who am I, what do all ranks agree on, and modules whose gradients are averaged.

One process without torchrun works the same, without a process group.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from manifests.console import amount
from model.cores import take_share_of_cores

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One rank of a run."""

    rank: int = 0
    """Number of this process among all of them."""
    world_size: int = 1
    """How many there are, over all nodes."""
    device: torch.device = CPU
    """Where this one computes."""

    @property
    def is_main(self) -> bool:
        """Whether this process tells, and writes what all share."""
        return self.rank == 0

    def replicate(self, module: nn.Module) -> nn.Module:
        """`module`, its gradients averaged over all ranks in the backward pass; itself where there is one rank.

        Call the result once before each backward. Buffers are not broadcast: they are equal because their updates are
        (batch norm must be synchronised, see `synchronise_batch_norm`).
        """
        if self.world_size == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        # 1x7x7 kernels of one channel have two equal layouts, of which the engine picks either: no loss of speed here.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            module, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set on any rank: how ranks agree to stop."""
        if self.world_size == 1:
            return flags
        tensor = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tuple(map(bool, tensor.tolist()))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Mean over ranks of each value; all ranks give the same names."""
        if self.world_size == 1:
            return dict(values)
        tensor = torch.tensor([*values.values()], dtype=torch.float64)
        dist.all_reduce(tensor)
        return dict(zip(values, (tensor / self.world_size).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, by rank, on all of them."""
        if self.world_size == 1:
            return [value]
        gathered = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def sum(self, values: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
        """Sums of (value, count) pairs over ranks; ranks may know different names."""
        if self.world_size == 1:
            return dict(values)
        gathered = self.gather(dict(values))
        names = {name: None for part in gathered for name in part}  # in the order of rank 0
        return {
            name: (sum(p.get(name, (0.0, 0))[0] for p in gathered), sum(p.get(name, (0.0, 0))[1] for p in gathered))
            for name in names
        }


def ranks_that_share(num: int) -> str:
    """In words, the numbers of ranks that can share `num` pairs evenly: `1, 2 or 4 ranks`."""
    *others, last = [str(number) for number in range(1, num + 1) if num % number == 0]
    return f"{', '.join(others)} or {last} ranks" if others else "1 rank"


@contextmanager
def start_process(device: str = "auto") -> Iterator[Process]:
    """This process as torchrun describes it in the environment; the process group lives within the context.

    device: cpu, cuda, or auto for cuda where there is one.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or auto; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but this torch finds no CUDA device; use --device cpu")
    place = CPU
    if device == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{os.environ.get('LOCAL_WORLD_SIZE', '?')} processes on this machine, but "
                f"{amount(torch.cuda.device_count(), 'CUDA device')}: give torchrun --nproc-per-node that number, or "
                "--device cpu"
            )
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    else:
        take_share_of_cores()
    process = Process(rank=rank, world_size=world_size, device=place)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_stop_with_torchrun, args=(os.getppid(),), daemon=True).start()
    if world_size == 1:
        yield process
        return
    # gloo carries what lives on the CPU: agreements, also where gradients go through NCCL.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    _keep(dist.group.WORLD)
    yield process
    # Not after an error: other ranks may be in the middle of a message, and torchrun ends them.
    dist.destroy_process_group()


def _stop_with_torchrun(parent: int) -> None:
    """Ask this process to stop, as a preemption does, when torchrun has been killed: nobody would see it train on."""
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_TORCHRUN_S)
    os.kill(os.getpid(), signal.SIGTERM)


_LOOK_FOR_TORCHRUN_S = 2.0
_kept_groups: list[dist.ProcessGroup] = []


def _keep(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Keep a group for as long as the process lives; see `leave`."""
    _kept_groups.append(group)
    return group


def leave(status: int) -> NoReturn:
    """End this process with `status`.

    The destructor of a gloo group joins its threads while it holds the interpreter's lock, which a thread that is just
    putting away the last message needs: a few of a hundred runs then waited for ever, or were aborted while the
    interpreter ended. So groups are kept, and a process that has any ends without destructors.
    """
    if _kept_groups:
        atexit._run_exitfuncs()  # workers of loaders, log files
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def synchronise_batch_norm(module: nn.Module, process: Process) -> nn.Module:
    """Replace batch norms by ones whose statistics are those of the batches of all ranks together, in place.

    torch.nn.SyncBatchNorm on CUDA; it refuses CPU tensors, so there `CpuSyncBatchNorm` takes its place. Keys of the
    state dict stay as they are.
    """
    if process.world_size == 1:
        return module
    if process.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # A group of its own: its messages and DistributedDataParallel's must not overtake each other.
    group = _keep(dist.new_group(backend="gloo"))
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, CpuSyncBatchNorm.like(child, group))
    return module


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all ranks; its gradient is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(context, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:  # type: ignore[override]
        context.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total, group=context.group)
        return total, None


class CpuSyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks (of equal size) for CPU tensors [N, C, ...]; made by `like`."""

    group: dist.ProcessGroup

    @classmethod
    def like(cls, norm: _BatchNorm, group: dist.ProcessGroup) -> CpuSyncBatchNorm:
        """The same parameters and buffers (shared, not copied), synchronised."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made._parameters.update(norm._parameters)
        made._buffers.update(norm._buffers)
        made.training = norm.training
        made.group = group
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * dist.get_world_size(self.group)
        # Two passes, mean before variance: the mean of squares minus the square of means loses digits.
        mean = _SumOverRanks.apply(x.sum(dim=axes), self.group) / count
        centred = x - mean.view(shape)
        variance = _SumOverRanks.apply(centred.square().sum(dim=axes), self.group) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)
