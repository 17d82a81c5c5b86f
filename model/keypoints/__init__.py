"""Key-point algebra: from motions of source and driving frames to the key points that W gets.

All of it takes and gives float32 tensors, some 140 numbers a frame, so whole videos of motions fit in memory where
frames do not.
"""

from model.keypoints.animation import AnimationOptions, KeypointAnimator
from model.keypoints.editing import FaceEdit, edit_keypoints
from model.keypoints.motion import Motion, bins_to_degrees, rotation_matrix, transform_keypoints
from model.keypoints.openness import open_ratios_68
from model.keypoints.retargeting import retarget_eye, retarget_lip, stitch
from model.keypoints.smoothing import kalman_smooth

__all__ = [
    "AnimationOptions",
    "FaceEdit",
    "KeypointAnimator",
    "Motion",
    "bins_to_degrees",
    "edit_keypoints",
    "kalman_smooth",
    "open_ratios_68",
    "retarget_eye",
    "retarget_lip",
    "rotation_matrix",
    "stitch",
    "transform_keypoints",
]
