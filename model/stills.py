"""Still pictures, read as they should be shown."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from model.video.frame import rotate_upright
from model.video.probing import PICTURE_BRANDS, upright_deg


def read_still(path: str | Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3], RGB; EXIF orientation applied, transparency over white, deep greys scaled.

    Raises:
        OSError, SyntaxError, ValueError: the file is no picture, damaged, or of a kind whose brightness is unknown.
    """
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        if not _is_heif(path):
            raise
        return _read_heif(path)
    with image:
        picture = ImageOps.exif_transpose(image)
        if picture.mode.startswith(("I", "F")):
            picture = _eight_bits(picture, path)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.ascontiguousarray(picture.convert("RGB"))


def _is_heif(path: str | Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:].decode("latin1") in PICTURE_BRANDS


def _read_heif(path: str | Path) -> np.ndarray:
    """A picture such as HEIC, which Pillow does not open. FFmpeg decodes it, but does not put tiles together."""
    try:
        with av.open(f"file:{path}", metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.dependent:
                raise ValueError(
                    f"{path}: a HEIF picture in tiles, as telephones store it, is not read; save it as JPEG or PNG"
                )
            picture = next(container.decode(stream))
            return rotate_upright(picture.to_ndarray(format="rgb24", threads=1), upright_deg(picture))
    except (av.FFmpegError, StopIteration) as error:
        raise OSError(f"{path}: this HEIF picture cannot be decoded ({error}); save it as JPEG or PNG") from error


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
