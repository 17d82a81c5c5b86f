"""Still pictures, read as they should be shown. Importing this teaches Pillow the HEIC of telephones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pi_heif
from PIL import Image, ImageOps

pi_heif.register_heif_opener()


def read_still(path: str | Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3], RGB; EXIF orientation applied, transparency over white, deep greys scaled.

    Raises:
        OSError, SyntaxError, ValueError: the file is no picture, damaged, or of a kind whose brightness is unknown.
        Image.DecompressionBombError: it has far more pixels than a photograph.
    """
    with Image.open(path) as image:
        picture = ImageOps.exif_transpose(image)
        if picture.mode.startswith(("I", "F")):
            picture = _eight_bits(picture, path)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.ascontiguousarray(picture.convert("RGB"))


def _eight_bits(picture: Image.Image, path: str | Path) -> Image.Image:
    """Grey of 16 bits or of floating point, scaled; Pillow would clip it."""
    values = np.asarray(picture, np.float32)
    low, high = float(values.min()), float(values.max())
    tops, margin = ((1.0, 255.0, 65535.0), 1.0) if picture.mode == "F" else ((255.0, 65535.0), 0.0)
    top = next((top for top in tops if high <= top + margin), None)  # resampled floats lie a little outside
    if top is None or low < -margin:
        raise ValueError(
            f"{path}: a picture of mode {picture.mode} with values from {low:g} to {high:g}; expected 8 or 16 bits, or "
            "floating point from 0 to 1, 255 or 65535"
        )
    return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
