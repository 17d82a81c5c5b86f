"""A face detector that two pictures are too much for. Apart from the tests, so that workers import nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.faces import Detections
from model.faces.yunet import YuNetDetector

ABORTS_PX, KILLS_PX = 97, 99
DETECTOR = f"{__name__}:PoisonedDetector"


class PoisonedDetector(YuNetDetector):
    """Aborts its process on a picture of `ABORTS_PX` height; takes the whole worker down on one of `KILLS_PX`."""

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        for image in images:
            if image.shape[0] == ABORTS_PX:
                os.abort()
            if image.shape[0] == KILLS_PX:
                os.kill(os.getppid(), signal.SIGKILL)  # the actor, whose child process this is
                time.sleep(60)
        return super().detect(images)


def write_poison(folder: Path) -> None:
    """A picture of each kind: aborts.png and kills.png."""
    import cv2
    import skimage.data

    portrait = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)[:300, 100:400]
    for name, height in (("aborts", ABORTS_PX), ("kills", KILLS_PX)):
        cv2.imwrite(str(folder / f"{name}.png"), cv2.resize(portrait, (300, height)))
