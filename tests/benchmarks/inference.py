"""Milliseconds a frame for M, W, G and the whole: the plain modules against the optimised path, alternating in one run.

    python -m tests.benchmarks.inference                            # a few minutes
    python -m tests.benchmarks.inference --quick                    # two rounds
    python -m tests.benchmarks.inference --threads 1 --cpu-time     # on a machine with other work to do
    python -m tests.benchmarks.inference --batch-sizes 1 4 16 --dtypes float16 --compile    # on a GPU

The floor is the plain modules' FLOPs over the best matrix-multiply rate measured in the same run and dtype; the
optimised path needs fewer FLOPs, so it may pass below. M is float32 in every path, as in the engine. Random weights:
neither time nor FLOPs depend on them.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.inference import InferenceEngine
from model.networks import LivePortrait

Parts = dict[str, Callable[[], object]]


def spread_weights(portrait: LivePortrait, seed: int = 0) -> None:
    """Random weights that keep every activation in range, so that the pictures compared are not flat."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in portrait.state_dict().items():
        if name.endswith(("weight_u", "weight_v")) or value.ndim <= 1:
            continue
        value.copy_(torch.randn(value.shape, generator=generator) * (1.5 / value[0].numel()) ** 0.5)
    for module in portrait.modules():
        if hasattr(module, "power_iteration"):
            for _ in range(20):
                module.power_iteration()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    candidates: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Best seconds of each; they take turns, so that a busy machine slows all of them alike."""
    best = dict.fromkeys(candidates, float("inf"))
    for number in range(rounds + 1):  # the first round warms up
        for name, run in candidates.items():
            synchronize(device)
            start = clock()
            run()
            synchronize(device)
            if number:
                best[name] = min(best[name], clock() - start)
    return best


def matmul_rate(dtype: torch.dtype, device: torch.device, clock: Callable[[], float]) -> float:
    """FLOP/s of the fastest of three large matrix products: plain, as a 1x1 and as a 3x3 convolution.

    On CPUs the last two come from another library than the first, which can be several times slower.
    """
    size, side = (8192, 256) if device.type == "cuda" else (2048, 64)
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    maps = torch.randn(1, 512, side, side, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    kernels = {k: torch.randn(512, 512, k, k, dtype=dtype, device=device) for k in (1, 3)}
    candidates = {
        "plain": lambda: left @ right,
        "1x1": lambda: functional.conv2d(maps, kernels[1]),
        "3x3": lambda: functional.conv2d(maps, kernels[3], padding=1),
    }
    seconds = measure(candidates, 5, device, clock)
    return max(count_flops(run) / seconds[name] for name, run in candidates.items())


def make_inputs(config: ModelConfig, batch: int, device: torch.device) -> dict[str, Tensor]:
    """A still source and driving frames."""
    generator = torch.Generator().manual_seed(1)
    side = config.feature_size
    x_s = torch.rand(1, config.num_keypoints, 3, generator=generator) * 1.6 - 0.8
    x_d = x_s + 0.05 * torch.randn(batch, config.num_keypoints, 3, generator=generator)
    image = torch.rand(batch, 3, config.image_size, config.image_size, generator=generator)
    volume = torch.randn(1, config.volume_channels, config.volume_depth, side, side, generator=generator)
    feature = torch.randn(batch, config.feature_channels, side, side, generator=generator)
    inputs = {"image": image, "volume": volume, "feature": feature, "x_s": x_s, "x_d": x_d}
    return {name: value.to(device) for name, value in inputs.items()}


def make_parts(engine: InferenceEngine, inputs: dict[str, Tensor]) -> Parts:
    """M, W, G and the whole of one batch. A plain W gets the still source repeated, as it must."""
    x_d = inputs["x_d"]
    repeat = 1 if engine.optimize else len(x_d)
    volume, x_s = (inputs[name].expand(repeat, *inputs[name].shape[1:]) for name in ("volume", "x_s"))

    def run(network: nn.Module, *args: Tensor, **kwargs: Tensor) -> object:
        with torch.inference_mode(), engine._autocast():
            return network(*args, **kwargs)

    @torch.inference_mode()
    def motion() -> object:
        return engine._motion(inputs["image"])

    def whole() -> Tensor:
        motion()
        return engine.decode(inputs["volume"], inputs["x_s"], x_d)

    return {
        "M": motion,
        "W": lambda: run(engine._warping, volume, kp_driving=x_d, kp_source=x_s),
        "G": lambda: run(engine._generator, inputs["feature"]),
        "M+W+G": whole,
    }


def count_flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def compare(expected: Parts, got: Parts) -> str:
    """Largest difference of W and G, each on the same input, relative to the largest value; PSNR of pictures."""
    feature, other_feature = expected["W"]().feature, got["W"]().feature.float()
    image, other_image = expected["G"](), got["G"]().float()
    w_error = ((other_feature - feature).abs().max() / feature.abs().max()).item()
    g_error = ((other_image - image).abs().max() / image.abs().max()).item()
    whole, other_whole = expected["M+W+G"](), got["M+W+G"]().float()
    psnr = [-10 * torch.log10((a - b).square().mean()).item() for a, b in ((other_image, image), (other_whole, whole))]
    return f"W {w_error:.1e}, G {g_error:.1e} of the largest value; PSNR of G {psnr[0]:.1f} dB, of W+G {psnr[1]:.1f} dB"


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    features = {"AVX512": torch.cpu._is_avx512_supported(), "AVX512-BF16": torch.cpu._is_avx512_bf16_supported()}
    features["AMX"] = torch.cpu._is_amx_tile_supported()
    have = ", ".join(f"{'' if present else 'no '}{name}" for name, present in features.items())
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {have}"


def print_table(
    times: dict[str, dict[str, float]], flops: dict[str, dict[str, int]], rates: dict[str, float], batch: int
) -> None:
    """One line for every part and path; everything is for one frame."""
    print(f"{'part':<7}{'path':<20}{'ms':>9}{'GFLOP':>9}{'TFLOP/s':>9}{'floor ms':>10}{'vs floor':>9}{'vs plain':>9}")
    for part, candidates in times.items():
        reference = candidates["plain float32"]
        for path, seconds in candidates.items():
            kind, dtype = path.split()
            frame_flops = flops[kind][part] / batch
            floor_s = flops["plain"][part] / batch / rates["float32" if part == "M" else dtype]
            frame_s = seconds / batch
            print(
                f"{part:<7}{path:<20}{frame_s * 1e3:>9.1f}{frame_flops / 1e9:>9.1f}{frame_flops / frame_s / 1e12:>9.2f}"
                f"{floor_s * 1e3:>10.1f}{frame_s / floor_s:>9.2f}{reference / seconds:>8.2f}x"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds instead of six")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", default=None, help="besides float32; default bfloat16, float16 on CUDA")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default all cores")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU-seconds of this process, not the clock's")
    parser.add_argument("--compile", action="store_true", help="compile the optimised path (CUDA)")
    args = parser.parse_args()
    device = torch.device(args.device)
    clock = time.process_time if args.cpu_time else time.perf_counter
    if args.threads:
        torch.set_num_threads(args.threads)
    half = args.dtypes or ["float16" if device.type == "cuda" else "bfloat16"]

    portrait = LivePortrait.untrained()
    with torch.no_grad():
        spread_weights(portrait)
    print(f"{describe(device)}; torch {torch.__version__}; load {os.getloadavg()[0]:.1f} before the start")
    engines = {"plain float32": InferenceEngine(portrait, device=device, dtype="float32", optimize=False)}
    for dtype in dict.fromkeys(["float32", *half]):
        if dtype != "float32":
            engines[f"plain {dtype}"] = InferenceEngine(portrait, device=device, dtype=dtype, optimize=False)
        engines[f"fast {dtype}"] = InferenceEngine(portrait, device=device, dtype=dtype, compile=args.compile)
    rates = {dtype: matmul_rate(getattr(torch, dtype), device, clock) for dtype in dict.fromkeys(["float32", *half])}
    print("matrix multiply: " + ", ".join(f"{rate / 1e12:.2f} TFLOP/s {dtype}" for dtype, rate in rates.items()))

    for batch in args.batch_sizes:
        inputs = make_inputs(portrait.config, batch, device)
        parts = {path: make_parts(engine, inputs) for path, engine in engines.items()}
        flops = {
            kind: {part: count_flops(run) for part, run in parts[f"{kind} float32"].items()}
            for kind in ("plain", "fast")
        }
        for path in list(engines)[1:]:
            print(f"{path}: {compare(parts['plain float32'], parts[path])}")
        rounds = 2 if args.quick else 6
        times = {
            part: measure({path: parts[path][part] for path in engines}, rounds, device, clock)
            for part in parts["plain float32"]
        }
        print(f"\nbatch {batch}; best of {rounds}, a frame, {'CPU' if args.cpu_time else 'wall-clock'} time")
        print_table(times, flops, rates, batch)


if __name__ == "__main__":
    main()
