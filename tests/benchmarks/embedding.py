"""What a face's embedding costs on the CPU: SFace with its weights unfolded, and with PReLU rewritten too, in turns.

    python -m tests.benchmarks.embedding [--rounds 5]

CPU-milliseconds a face on one thread, median of the rounds, and the largest difference of the embeddings.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnx
import onnxruntime

from model.faces.onnx_session import fold_constants, rewrite_prelu, session_options
from model.faces.weights import resolve_weight

_FACES_A_ROUND = 30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sessions = {name: open_sface(is_rewritten=name == "rewritten") for name in ("unfolded", "rewritten")}
    faces = np.random.default_rng(0).uniform(0, 255, (_FACES_A_ROUND, 1, 3, 112, 112)).astype(np.float32)
    for session in sessions.values():
        session.run(None, {"data": faces[0]})  # the first run allocates
    spent_ms: dict[str, list[float]] = {name: [] for name in sessions}
    found: dict[str, np.ndarray] = {}
    for _ in range(options.rounds):
        for name, session in sessions.items():
            start = time.process_time()
            found[name] = np.concatenate([session.run(None, {"data": face})[0] for face in faces])
            spent_ms[name].append(1000 * (time.process_time() - start) / len(faces))
    before, after = (statistics.median(values) for values in spent_ms.values())
    one, other = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in found.values())
    print(f"{before:.1f} -> {after:.1f} ms a face, {before / after:.2f} times as fast")
    print(f"unit embeddings differ by {abs(one - other).max():.1e} at most")


def open_sface(*, is_rewritten: bool) -> onnxruntime.InferenceSession:
    """A session on one thread."""
    model = onnx.load(resolve_weight("sface", None).path)
    fold_constants(model)
    if is_rewritten:
        rewrite_prelu(model)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )


if __name__ == "__main__":
    main()
