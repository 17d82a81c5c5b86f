"""The LivePortrait networks: appearance F, motion M, warping W, generator G, stitching S, retargeting R_eyes, R_lip.

State-dict keys and shapes are those of the released checkpoints, so module names here follow them.
"""

from model.networks.appearance import AppearanceExtractor
from model.networks.generator import SpadeGenerator
from model.networks.live_portrait import LivePortrait
from model.networks.motion import MotionExtractor
from model.networks.retargeting import KeypointMlp
from model.networks.warping import WarpingNetwork, WarpOutput

__all__ = [
    "AppearanceExtractor",
    "KeypointMlp",
    "LivePortrait",
    "MotionExtractor",
    "SpadeGenerator",
    "WarpOutput",
    "WarpingNetwork",
]
