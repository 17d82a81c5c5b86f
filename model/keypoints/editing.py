"""Editing the face of a still: head pose, eyes, lips, smile and other expressions by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from model.keypoints.motion import Motion, rotation_matrix, transform_keypoints
from model.keypoints.regions import require_released_keypoints
from model.keypoints.retargeting import CorrectionNetworks, retarget_eye, retarget_lip, stitch

# How an expression moves the offsets: (key point, axis, change per unit), for the released order of key points.
Changes = tuple[tuple[int, int, float], ...]
SMILE: Changes = (
    (20, 1, -0.01),
    (14, 1, -0.02),
    (17, 1, 0.0065),
    (17, 2, 0.003),
    (13, 1, -0.00275),
    (16, 1, -0.00275),
    (3, 1, -0.0035),
    (7, 1, -0.0035),
)
WINK: Changes = ((11, 1, 0.001), (13, 1, -0.0003), (17, 0, 0.0003), (17, 1, 0.0003), (3, 1, -0.0003))
EYEBROWS_UP: Changes = ((1, 1, 0.001), (2, 1, -0.001))
EYEBROWS_DOWN: Changes = ((1, 0, -0.001), (2, 0, 0.001), (1, 1, 0.0003), (2, 1, -0.0003))
PUPILS_RIGHT: Changes = ((11, 0, 0.0007), (15, 0, 0.001))
PUPILS_LEFT: Changes = ((11, 0, 0.001), (15, 0, 0.0007))
# Lids follow the pupils: half of the vertical movement, hence 0.0005 and not 0.001.
PUPILS_UP: Changes = ((11, 1, -0.0005), (15, 1, -0.0005), (13, 1, -0.00015), (16, 1, -0.00015))
POUT: Changes = ((19, 0, 1.0),)
PURSE: Changes = ((14, 1, 0.001), (3, 1, -0.0005), (7, 1, -0.0005), (17, 2, -0.0005))
GRIN: Changes = ((20, 2, -0.001), (20, 1, -0.001), (14, 1, -0.001))
PART_LIPS: Changes = ((19, 1, 0.001), (19, 2, 0.0001), (17, 1, -0.0001))
MOVE_X: Changes = ((5, 0, -1.0),)
MOVE_Y: Changes = ((5, 1, 1.0),)


@dataclass(frozen=True, kw_only=True)
class FaceEdit:
    """Changes to a face; the defaults change nothing. Usual ranges in brackets."""

    yaw: float = 0.0
    """Degrees added to M's yaw [-25, 25]."""
    pitch: float = 0.0
    """Degrees added to M's pitch [-15, 15]."""
    roll: float = 0.0
    """Degrees added to M's roll [-15, 15]."""
    eyes: float | None = None
    """Wanted openness of both eyes [0, 0.8]; None leaves them."""
    lip: float | None = None
    """Wanted openness of the lips [0, 0.8]; None leaves them."""
    smile: float = 0.0
    """[-0.3, 1.3]."""
    wink: float = 0.0
    """[0, 39]."""
    eyebrow: float = 0.0
    """Raised if positive [-30, 30]."""
    pupil_x: float = 0.0
    """Towards the image's right if positive [-30, 30]."""
    pupil_y: float = 0.0
    """Up if positive [-63, 63]."""
    pout: float = 0.0
    """[-0.09, 0.09]."""
    purse: float = 0.0
    """[-20, 15]."""
    grin: float = 0.0
    """[0, 15]."""
    lip_part: float = 0.0
    """Lips drawn apart or together by expression alone [-90, 120]."""
    move_x: float = 0.0
    """Movement to the side, as published: what is taken from x of key point 5 before the scale [-0.19, 0.19]."""
    move_y: float = 0.0
    """Movement up or down, as published: what is added to y of key point 5 before the scale [-0.19, 0.19]."""
    zoom: float = 1.0
    """Factor on the scale [0.9, 1.2]."""

    def check(self) -> None:
        """ValueError for numbers that make no sense."""
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{item.name} is {value}: expected a finite number")
        if self.zoom <= 0:
            raise ValueError(f"zoom is {self.zoom:g}: expected a positive factor, usually 0.9 to 1.2")

    def expression_changes(self) -> list[tuple[Changes, float]]:
        """The changes of the expression and their amounts, without those of nothing."""
        changes = [
            (SMILE, self.smile),
            (WINK, self.wink),
            (EYEBROWS_UP if self.eyebrow > 0 else EYEBROWS_DOWN, self.eyebrow),
            (PUPILS_RIGHT if self.pupil_x > 0 else PUPILS_LEFT, self.pupil_x),
            (PUPILS_UP, self.pupil_y),
            (POUT, self.pout),
            (PURSE, self.purse),
            (GRIN, self.grin),
            (PART_LIPS, self.lip_part),
            (MOVE_X, self.move_x),
            (MOVE_Y, self.move_y),
        ]
        return [(change, amount) for change, amount in changes if amount]


@torch.no_grad()
def edit_keypoints(
    source: Motion, edit: FaceEdit, *, networks: CorrectionNetworks, stitching: bool = True
) -> tuple[Tensor, Tensor]:
    """x_s and x_d, each [N, K, 3], of an edited face.

    ValueError if `eyes` or `lip` is asked for but the source motion has no openness (no landmarks), or if a number
    makes no sense, or if the expression changes and there are not the 21 released key points.
    """
    edit.check()
    if changes := edit.expression_changes():
        require_released_keypoints(
            source.kp.shape[1],
            "editing the expression",
            "change yaw, pitch, roll, eyes, lip and zoom alone",
        )
    x_s = source.keypoints()
    rotation = rotation_matrix(source.pitch + edit.pitch, source.yaw + edit.yaw, source.roll + edit.roll)
    exp = source.exp.clone()
    for change, amount in changes:
        for keypoint, axis, per_unit in change:
            exp[:, keypoint, axis] += amount * per_unit
    x_d = transform_keypoints(source.kp, rotation, exp, edit.zoom * source.scale, source.t)
    for part, wanted, openness, retarget in (
        ("eyes", edit.eyes, source.eye_open, retarget_eye),
        ("lip", edit.lip, source.lip_open, retarget_lip),
    ):
        if wanted is None:
            continue
        if openness is None:
            raise ValueError(f"editing {part} needs the source's landmarks, and none are known for this picture")
        x_d = x_d + retarget(networks, x_s, openness, torch.full_like(openness[:, :1], wanted))
    return x_s, stitch(networks, x_s, x_d) if stitching else x_d
