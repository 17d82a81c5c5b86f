"""Still pictures, read as they should be shown. Importing this teaches Pillow the HEIC of telephones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pi_heif
from PIL import Image, ImageCms, ImageOps

pi_heif.register_heif_opener()

_FORMATS = (
    "JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "GIF", "BMP", "DIB", "JPEG2000", "PPM", "PSD", "ICO", "ICNS", "PCX",
    "QOI", "SGI", "SUN", "DDS", "XBM", "XPM", "TGA",
)  # fmt: skip
"""What is only decoded. Pillow knows EPS, too, a program that Ghostscript would run, and IPTC, which may hold one."""
_COLOURS = np.stack(np.meshgrid(*3 * [np.arange(0, 256, 15, np.uint8)]), axis=-1).reshape(18, -1, 3)
"""Colours from all over RGB, to see what a profile changes."""


def open_still(path: str | Path) -> Image.Image:
    """`Image.open` for files of unknown origin: those that would start a program are no pictures here.

    Raises:
        UnidentifiedImageError, an OSError: the file is no picture, or of another format.
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: as `read_still`.
    """
    return Image.open(path, formats=_FORMATS)


def read_still(path: str | Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3], sRGB; EXIF orientation applied, transparency over white, deep greys scaled.

    Colour profiles of RGB are followed, as that of telephones (Display P3). Values stay as they are where there is none
    or one of sRGB, and where it is damaged or of grey or CMYK.

    Raises:
        OSError, SyntaxError, ValueError: the file is no picture, damaged, or of a kind whose brightness is unknown.
        Image.DecompressionBombError: it has far more pixels than a photograph.
    """
    with open_still(path) as image:
        picture = ImageOps.exif_transpose(image)
        profile = picture.info.get("icc_profile")
        if picture.mode.startswith(("I", "F")):
            picture = _eight_bits(picture, path)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            alpha = picture.convert("RGBA")
            picture = _to_srgb(alpha.convert("RGB"), profile)
            picture.putalpha(alpha.getchannel("A"))
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return np.ascontiguousarray(picture.convert("RGB"))
        return np.ascontiguousarray(_to_srgb(picture.convert("RGB"), profile))


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of mode RGB whose numbers mean what its ICC profile says, in sRGB."""
    if not profile:
        return picture
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if own.profile.xcolor_space.strip() != "RGB":
            return picture
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), "RGB", "RGB")
        colours = np.asarray(ImageCms.applyTransform(Image.fromarray(_COLOURS), transform))
        if np.abs(colours.astype(int) - _COLOURS).max() <= 1:  # sRGB by whatever name, up to rounding
            return picture
        return ImageCms.applyTransform(picture, transform)
    except (OSError, ValueError, ImageCms.PyCMSError):  # damaged
        return picture


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
