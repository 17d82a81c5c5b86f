"""What a folder of weights holds: `python -m model inspect DIR`. Reads every file, builds no network in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoint import BASE_FILES, RETARGETING_FILE, NetworkDifference, load_checkpoint, read_config
from model.config import ModelConfig
from model.networks import LivePortrait

LABELS = {
    "appearance": "F appearance",
    "motion": "M motion",
    "warping": "W warping",
    "generator": "G generator",
    "stitching": "S stitching",
    "retarget_eye": "R eyes",
    "retarget_lip": "R lip",
}


@dataclass(frozen=True, kw_only=True)
class NetworkReport:
    """One network: what it should be, and what the files hold of it."""

    name: str
    num_parameters: int
    """Trainable numbers of the network itself."""
    num_flops: int
    """Floating-point operations of the convolutions and matrix products for one frame; a multiplication and an addition
    count as two."""
    file: Path | None
    """The file that holds it; None if there is none."""
    difference: NetworkDifference | None
    """Keys and shapes that differ, values that are not finite; None if there is no file."""
    hint: str = ""
    """What may be the cause."""

    @property
    def status(self) -> str:
        if self.file is None:
            return "missing"
        if self.difference and self.difference.fits:
            return "damaged"
        return "differs" if self.difference else "complete"


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """All seven networks of a path."""

    path: Path
    networks: tuple[NetworkReport, ...]

    @property
    def complete(self) -> bool:
        """Whether `LivePortrait.from_pretrained` loads this path."""
        return all(network.status == "complete" for network in self.networks)


def count_flops(config: ModelConfig) -> dict[str, int]:
    """`NetworkReport.num_flops` of each network, counted on shapes alone (no arithmetic is done)."""
    with torch.device("meta"):
        portrait = LivePortrait(config).eval()
        size, num = config.image_size, config.num_keypoints
        image, keypoints = torch.empty(1, 3, size, size), torch.empty(1, num, 3)
        volume_size = (config.volume_channels, config.volume_depth, config.feature_size, config.feature_size)
        flat = torch.empty(1, 3 * num)
        runs = {
            "appearance": lambda: portrait.appearance(image),
            "motion": lambda: portrait.motion(image),
            "warping": lambda: portrait.warping(
                torch.empty(1, *volume_size), kp_driving=keypoints, kp_source=keypoints
            ),
            "generator": lambda: portrait.generator(
                torch.empty(1, config.feature_channels, config.feature_size, config.feature_size)
            ),
            "stitching": lambda: portrait.stitching(torch.cat([flat, flat], dim=1)),
            "retarget_eye": lambda: portrait.retarget_eye(torch.cat([flat, torch.empty(1, 3)], dim=1)),
            "retarget_lip": lambda: portrait.retarget_lip(torch.cat([flat, torch.empty(1, 2)], dim=1)),
        }
        flops = {}
        for name, run in runs.items():
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                run()
            flops[name] = counter.get_total_flops()
    return flops


def inspect_weights(path: str | Path) -> WeightsReport:
    """Compare a folder (or file) of weights with the networks, key by key.

    FileNotFoundError or CheckpointError (a ValueError) if the path holds nothing that can be read.
    """
    config = read_config(path)
    checkpoint = load_checkpoint(path)
    flops = count_flops(config)
    with torch.device("meta"):
        portrait = LivePortrait(config)
    differences = {
        name: checkpoint.difference(name, portrait) for name in portrait.NETWORKS if name in checkpoint.networks
    }
    reports = [
        NetworkReport(
            name=name,
            num_parameters=sum(parameter.numel() for parameter in network.parameters()),
            num_flops=flops[name],
            file=checkpoint.files.get(name),
            difference=differences.get(name),
            hint=checkpoint.config_hint(differences[name]) if name in differences else "",
        )
        for name, network in portrait.networks().items()
    ]
    return WeightsReport(path=Path(path), networks=tuple(reports))


def format_report(report: WeightsReport) -> str:
    """A table with one line for each network, then the differences, then the verdict."""
    lines = [f"{'network':<13}{'parameters':>12}{'GFLOP/frame':>13}  {'status':<10}file"]
    for network in report.networks:
        file = network.file.name if network.file else BASE_FILES.get(network.name, RETARGETING_FILE)
        lines.append(
            f"{LABELS[network.name]:<13}{network.num_parameters:>12,}{network.num_flops / 1e9:>13,.2f}  "
            f"{network.status:<10}{file}"
        )
    total_parameters = sum(network.num_parameters for network in report.networks)
    total_flops = sum(network.num_flops for network in report.networks)
    lines.append(f"{'all':<13}{total_parameters:>12,}{total_flops / 1e9:>13,.2f}")
    for n in report.networks:
        if n.status == "damaged":
            lines.append(f"{n.file}: {n.difference}")
        elif n.difference:
            lines.append(f"{LABELS[n.name]}: {n.difference}{n.hint}")
    if report.complete:
        verdict = "complete, ready to animate"
    elif any(n.status == "damaged" for n in report.networks):
        verdict = "damaged: animation needs all seven networks"
    else:
        verdict = "incomplete: animation needs all seven networks"
    return "\n".join([*lines, f"{report.path}: {verdict}"])
