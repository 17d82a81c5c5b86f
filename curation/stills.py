"""Reading still pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def read_still(path: str) -> np.ndarray:
    """A picture as it should be shown: uint8 [H, W, 3], RGB; EXIF orientation applied, transparency over white.

    Raises:
        OSError, ValueError: the file is no picture, or damaged.
    """
    with Image.open(path) as image:
        picture = ImageOps.exif_transpose(image)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        if picture.mode.startswith(("I", "F")):  # 16-bit and float greys: Pillow would clip, not scale
            values = np.asarray(picture, np.float32)
            limits = (1.0, 255.0) if picture.mode == "F" else (255.0,)
            top = next((limit for limit in limits if values.max() <= limit), 65535.0)
            picture = Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))
        return np.ascontiguousarray(picture.convert("RGB"))
