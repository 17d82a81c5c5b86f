"""From the shards of a data set to batches on the device."""

from training.data.augmentation import AugmentationConfig, augment, prepare
from training.data.batch import Batch, Frames, PreparedBatch, PreparedFrames
from training.data.loader import BatchLoader, DataConfig, make_loader
from training.data.transform import RandomTransform

__all__ = [
    "AugmentationConfig",
    "Batch",
    "BatchLoader",
    "DataConfig",
    "Frames",
    "PreparedBatch",
    "PreparedFrames",
    "RandomTransform",
    "augment",
    "make_loader",
    "prepare",
]
