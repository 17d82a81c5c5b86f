"""Networks and face analysers from what a user names on a command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from model.inference import InferenceEngine

UNTRAINED_NOTICE = "UNTRAINED NETWORKS: random weights, the pictures show only that the machinery works"


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Which weights, and where they run."""

    weights: Path | None = None
    """Folder of released files, or one .safetensors file."""
    untrained: bool = False
    """Run with random weights (always the same ones), to try the machinery without any weights."""
    tiny: bool = False
    """With --untrained: a much smaller network that makes 128-pixel faces in a moment."""
    device: str = "auto"
    """cpu, cuda, or auto for cuda where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the networks."""


def load_engine(options: NetworkOptions) -> InferenceEngine:
    """The networks, ready to run. ValueError or FileNotFoundError with one line that says what to do."""
    if options.tiny and not options.untrained:
        raise ValueError("--tiny goes with --untrained")
    if options.weights is None and not options.untrained:
        raise ValueError(
            "no weights: give --weights the folder with the released files (download them from the "
            "KwaiVGI/LivePortrait model repository) or a checkpoint of your own training; "
            "--untrained runs random weights to try the machinery"
        )
    if options.weights is not None and options.untrained:
        raise ValueError("--weights and --untrained contradict each other")
    if options.weights is not None and not options.weights.exists():
        raise ValueError(
            f"{options.weights}: no such weights; the released files are in the KwaiVGI/LivePortrait model repository"
        )
    from model.config import ModelConfig
    from model.cores import take_share_of_cores
    from model.inference import InferenceEngine
    from model.inference.engine import choose_device
    from model.networks import LivePortrait

    take_share_of_cores()
    device = choose_device(options.device)
    if options.untrained:
        portrait = LivePortrait.untrained(config=ModelConfig.tiny() if options.tiny else None)
    else:
        portrait = LivePortrait.from_pretrained(options.weights)
    return InferenceEngine(portrait, device=device, dtype=options.dtype)
