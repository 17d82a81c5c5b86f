"""Running the networks fast on pictures: motions and volumes out of frames, frames out of volumes and key points."""

from model.inference.engine import InferenceEngine

__all__ = ["InferenceEngine"]
