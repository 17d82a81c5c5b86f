"""What subnormal numbers in the heat maps cost on the CPU: W with `SMALLEST_HEAT` and without, alternating in one run.

    python -m tests.benchmarks.subnormals

At full size W's two forms without gradients, in float32; at the size of the recipe `small` a step of W, forward and
backward. CPUs differ: some take twice as long with subnormal numbers, some as long as without. Beside the milliseconds
the largest difference of the features, which is to be 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from model.config import ModelConfig
from model.inference import InferenceEngine
from model.networks import LivePortrait
from tests.benchmarks.inference import make_inputs, measure
from training.base import BaseRecipe
from training.recipe import load_recipe

NUM_ROUNDS = 5


def compare(title: str, run: Callable[[], Tensor]) -> None:
    """One line."""
    features = {}

    def with_limit(limit: float) -> Callable[[], object]:
        def limited() -> None:
            with (
                mock.patch("model.networks.dense_motion.SMALLEST_HEAT", limit),
                mock.patch("model.inference.warping.SMALLEST_HEAT", limit),
            ):
                features[limit] = run()

        return limited

    seconds = measure({str(limit): with_limit(limit) for limit in (0.0, 1e-30)}, NUM_ROUNDS, torch.device("cpu"))
    before, after = seconds.values()
    difference = (features[0.0] - features[1e-30]).abs().max().item()
    print(f"{title}: {1e3 * before:.0f} -> {1e3 * after:.0f} ms, {before / after:.2f}x, difference {difference:g}")


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    portrait, inputs = LivePortrait.untrained(), make_inputs(ModelConfig(), 1, torch.device("cpu"))
    keypoints = {"kp_driving": inputs["x_d"], "kp_source": inputs["x_s"]}
    for optimize in (True, False):
        engine = InferenceEngine(portrait, dtype="float32", optimize=optimize)

        @torch.inference_mode()
        def warp(engine: InferenceEngine = engine) -> Tensor:
            return engine._warping(inputs["volume"], **keypoints).feature

        compare(f"W of full size, {'optimised' if optimize else 'plain'}", warp)
    config = load_recipe(BaseRecipe, "base", "small").model
    small, inputs = LivePortrait.untrained(config=config).warping.train(), make_inputs(config, 8, torch.device("cpu"))
    volume, x_s = (inputs[name].expand(8, *inputs[name].shape[1:]) for name in ("volume", "x_s"))

    def learn() -> Tensor:
        feature = small(volume, kp_driving=inputs["x_d"], kp_source=x_s).feature
        feature.sum().backward()
        return feature.detach()

    compare("W of the recipe `small`, forward and backward", learn)


if __name__ == "__main__":
    main()
