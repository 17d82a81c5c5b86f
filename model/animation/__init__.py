"""Animation: a still or a video takes over the motion of another video, a still, a template, or of sliders."""

from model.animation.animating import AnimateOptions, AnimateResult, animate
from model.animation.retouching import EditableStill, retarget
from model.animation.templates import MotionTemplate, load_template, save_template

__all__ = [
    "AnimateOptions",
    "AnimateResult",
    "EditableStill",
    "MotionTemplate",
    "animate",
    "load_template",
    "retarget",
    "save_template",
]
