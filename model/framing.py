"""Where a face sits in its picture: LivePortrait's crops, their inverses, and the warp that cuts and pastes them.

A transform is a float64 [3, 3] matrix that maps source pixels to crop pixels (integer coordinates are pixel centres,
x to the right, y down); its inverse maps back. Three framings share one measure of the face, `face_rect`:

- `crop_transform`: the aligned crop of one frame, with the face upright (source pictures at inference);
- `driving_box`, `mean_box`, `box_transform`: one box for a driving video, never rotated;
- `fixed_crop`: one upright square for a clip of the data set, so that head motion stays in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

SOURCE_SCALE = 2.3
"""Side of a source crop over the longer side of the landmarks' box."""
SOURCE_VY_RATIO = -0.125
"""Vertical offset of a source crop in units of its side; negative is up, towards the forehead."""
DRIVING_SCALE = 2.2
DRIVING_VY_RATIO = -0.1
OUTPUT_SIZE_PX = 512
"""Side of the published crops."""

Border = Literal["black", "replicate"]

_CV2_BORDER = {"black": cv2.BORDER_CONSTANT, "replicate": cv2.BORDER_REPLICATE}
_EDGE_TOLERANCE_PX = 1e-3  # a crop's edges that come so near to edges of pixels lie on them

# Landmark scheme -> the indices whose mean lies between the eyes, and those whose mean is the middle of the mouth.
_EYES_AND_MOUTH = {
    5: ([0, 1], [3, 4]),
    68: ([36, 39, 42, 45], [48, 54]),
    106: ([33, 35, 40, 39, 87, 89, 94, 93], [52, 61]),
    203: ([0, 6, 12, 18, 24, 30, 36, 42], [48, 66]),
}


def averaging(num_points: int, *groups: list[int]) -> np.ndarray:
    """The matrix that takes points [num_points, C] to the means of groups of them: float64 [groups, num_points]."""
    matrix = np.zeros((len(groups), num_points))
    for row, group in zip(matrix, groups, strict=True):
        row[group] = 1 / len(group)
    return matrix


_AVERAGING = {number: averaging(number, *groups) for number, groups in _EYES_AND_MOUTH.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceRect:
    """A square around a face, turned with the face."""

    center: np.ndarray
    """float64 [2]: centre in source pixels."""
    size_px: float
    """Side of the square in source pixels."""
    angle_rad: float
    """In-plane rotation of the face; positive is clockwise in the picture."""


def eye_and_mouth_centers(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The point between the eyes and the middle of the mouth.

    landmarks: float [N, 2] with N = 5 (eyes, nose, mouth corners), 68 (iBUG), 106 (JD) or 203 (LivePortrait).
    Returns two float64 [2] arrays in the landmarks' pixels.
    """
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.ndim != 2 or landmarks.shape[1] != 2 or len(landmarks) not in _AVERAGING:
        schemes = ", ".join(str(number) for number in _AVERAGING)
        raise ValueError(f"landmarks of shape {landmarks.shape}: expected [N, 2] with N one of {schemes}")
    eyes, mouth = _AVERAGING[len(landmarks)] @ landmarks
    return eyes, mouth


def face_rect(landmarks: np.ndarray, *, scale: float, vy_ratio: float = 0.0) -> FaceRect:
    """The square around the landmarks along the face's own axes, `scale` times as large as their longer extent.

    The vertical axis runs from between the eyes to the mouth. The square is shifted along it by `vy_ratio` of its side.
    """
    eyes, mouth = eye_and_mouth_centers(landmarks)
    down = mouth - eyes
    length = np.linalg.norm(down)
    down = down / length if length > 1e-3 else np.array([0.0, 1.0])
    axes = np.array([[down[1], -down[0]], down])  # rows: face's right-to-left and forehead-to-chin directions
    landmarks = np.asarray(landmarks, np.float64)
    mean = landmarks.mean(0)
    in_face = (landmarks - mean) @ axes.T
    low, high = in_face.min(0), in_face.max(0)
    size_px = float((high - low).max() * scale)
    center = mean + ((low + high) / 2 + np.array([0.0, vy_ratio]) * size_px) @ axes
    return FaceRect(center=center, size_px=size_px, angle_rad=math.atan2(axes[0, 1], axes[0, 0]))


def crop_transform(
    landmarks: np.ndarray,
    *,
    size_px: int = 512,
    scale: float = SOURCE_SCALE,
    vy_ratio: float = SOURCE_VY_RATIO,
) -> np.ndarray:
    """LivePortrait's crop of one picture, with the face upright: source pixels to crop pixels, float64 [3, 3]."""
    rect = face_rect(landmarks, scale=scale, vy_ratio=vy_ratio)
    cos, sin = math.cos(rect.angle_rad), math.sin(rect.angle_rad)
    matrix = np.eye(3)
    matrix[:2, :2] = size_px / rect.size_px * np.array([[cos, sin], [-sin, cos]])
    matrix[:2, 2] = size_px / 2 - matrix[:2, :2] @ rect.center
    return matrix


def driving_box(
    landmarks: np.ndarray, *, scale: float = DRIVING_SCALE, vy_ratio: float = DRIVING_VY_RATIO
) -> np.ndarray:
    """The upright square box (left, top, right, bottom) of one driving frame in source pixels, float64 [4]."""
    rect = face_rect(landmarks, scale=scale, vy_ratio=vy_ratio)
    half = rect.size_px / 2
    return np.concatenate([rect.center - half, rect.center + half])


def driving_framing(scale: float, vy_ratio: float) -> dict[str, float]:
    """Scale and offset of driving boxes that are to source crops of these what the published ones are to theirs."""
    return {
        "scale": DRIVING_SCALE * (scale / SOURCE_SCALE),
        "vy_ratio": DRIVING_VY_RATIO + (vy_ratio - SOURCE_VY_RATIO),
    }


def mean_box(boxes: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of the boxes of a driving video, float64 [4]."""
    return np.mean([np.asarray(box, np.float64) for box in boxes], axis=0)


def box_transform(box: np.ndarray, *, size_px: int = 512) -> np.ndarray:
    """The transform that maps a square box (left, top, right, bottom) to a crop of `size_px`, float64 [3, 3]."""
    left, top, right, bottom = np.asarray(box, np.float64)
    zoom = size_px / (right - left)
    return np.array(
        [
            [zoom, 0.0, size_px / 2 - zoom * (left + right) / 2],
            [0.0, zoom, size_px / 2 - zoom * (top + bottom) / 2],
            [0.0, 0.0, 1.0],
        ]
    )


def invert(matrix: np.ndarray) -> np.ndarray:
    """The affine matrix that maps back, float64 [3, 3]. matrix: [2 or 3, 3]."""
    (a, b, x), (c, d, y) = np.asarray(matrix, np.float64)[:2].tolist()
    determinant = a * d - b * c  # written out: np.linalg.inv takes twice as long
    return np.array([[d, -b, b * y - d * x], [-c, a, c * x - a * y], [0.0, 0.0, determinant]]) / determinant


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Move points float [..., 2] with an affine matrix [2 or 3, 3]; float64 [..., 2]."""
    matrix = np.asarray(matrix, np.float64)
    return np.asarray(points, np.float64) @ matrix[:2, :2].T + matrix[:2, 2]


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedCrop:
    """One upright, axis-aligned square for all frames of a clip."""

    center_x_px: float
    """Centre in source pixels (display geometry)."""
    center_y_px: float
    size_px: float
    """Side in source pixels."""
    output_size_px: int = OUTPUT_SIZE_PX
    """Side of the crop that the square becomes."""
    outside_fraction: float = 0.0
    """Part of the square's area that lies outside the picture, 0 to 1."""

    @property
    def box(self) -> np.ndarray:
        """(left, top, right, bottom) in source pixels, float64 [4]."""
        half = self.size_px / 2
        return np.array(
            [self.center_x_px - half, self.center_y_px - half, self.center_x_px + half, self.center_y_px + half]
        )

    @property
    def upscaling(self) -> float:
        """Output pixels per source pixel; above 1 the crop holds less detail than its size says."""
        return self.output_size_px / self.size_px

    @property
    def matrix(self) -> np.ndarray:
        """Source pixels to crop pixels, float64 [3, 3]."""
        return box_transform(self.box, size_px=self.output_size_px)

    @property
    def inverse(self) -> np.ndarray:
        """Crop pixels to source pixels, float64 [3, 3]."""
        return invert(self.matrix)


def fixed_crop(
    landmarks: np.ndarray,
    *,
    width_px: int,
    height_px: int,
    scale: float = SOURCE_SCALE,
    vy_ratio: float = SOURCE_VY_RATIO,
) -> FixedCrop:
    """The square of a clip from the landmarks of its sampled frames: the mean of the frames' upright boxes.

    Its edges lie on edges of pixels, so that `warp` has only to resize.

    landmarks: float [T, N, 2] in source pixels, N as in `eye_and_mouth_centers`.
    width_px, height_px: the picture's size, to say how much of the square lies outside.
    """
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.ndim != 3 or len(landmarks) == 0:
        raise ValueError(f"landmarks of shape {landmarks.shape}: expected [T, N, 2] with at least one frame")
    box = mean_box(driving_box(frame, scale=scale, vy_ratio=vy_ratio) for frame in landmarks)
    size_px = max(1.0, float(np.round(box[2] - box[0])))
    # `box_transform` puts the box's corner on the middle of an output pixel; the edge is half such a pixel before it.
    to_edge = 0.5 - size_px / OUTPUT_SIZE_PX / 2
    left, top = np.round(box[:2] + to_edge) - to_edge
    matrix = box_transform(np.array([left, top, left + size_px, top + size_px]), size_px=OUTPUT_SIZE_PX)
    return FixedCrop(
        center_x_px=float(left + size_px / 2),
        center_y_px=float(top + size_px / 2),
        size_px=size_px,
        outside_fraction=outside_fraction(matrix, size_px=OUTPUT_SIZE_PX, width_px=width_px, height_px=height_px),
    )


def reach(crop: FixedCrop, landmarks: np.ndarray) -> np.ndarray:
    """How far the outermost landmark is from the crop's centre, in half sides; above 1 the face leaves the crop.

    landmarks: float [..., N, 2] in source pixels. Returns float64 [...].
    """
    center = np.array([crop.center_x_px, crop.center_y_px])
    return np.abs(np.asarray(landmarks, np.float64) - center).max((-2, -1)) / (crop.size_px / 2)


def outside_fraction(matrix: np.ndarray, *, size_px: int, width_px: int, height_px: int) -> float:
    """The part of any crop's area (rotated too) that shows no picture but the warp's border, 0 to 1."""
    # A pixel reaches half a pixel beyond its centre, so a picture spans -0.5 .. width - 0.5.
    corners = np.array([[0.0, 0.0], [size_px, 0.0], [size_px, size_px], [0.0, size_px]]) - 0.5
    quad = transform_points(corners, invert(matrix)) + 0.5
    picture = np.array([[0.0, 0.0], [width_px, 0.0], [width_px, height_px], [0.0, height_px]])
    inside, _ = cv2.intersectConvexConvex(quad.astype(np.float32), picture.astype(np.float32))
    area = size_px**2 * abs(np.linalg.det(invert(matrix)[:2, :2]))
    return float(np.clip(1 - inside / area, 0.0, 1.0))


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: int | tuple[int, int],
    *,
    border: Border = "black",
) -> np.ndarray:
    """Cut a crop out of a picture, or paste one back with the inverse matrix.

    image: uint8 or float32 [H, W] or [H, W, C]. matrix: [2 or 3, 3], image pixels to output pixels.
    size: side of the output, or (width, height). Returns the image's dtype and channels.

    Sampling is bilinear. `cv2.warpAffine` reads the same few source pixels per output pixel whatever the scale, which
    aliases. So at half size and below, the part of the picture that is read is first averaged over k x k blocks,
    k = floor(1 / scale), at little cost.
    A warp that turns nothing and has its edges on edges of pixels is a resize, which takes a third of the time.
    What lies outside the picture is black (as published; `outside_fraction` measures it) or, with
    `border="replicate"`, the nearest pixel.
    """
    matrix = np.asarray(matrix, np.float64)[:2]
    width, height = (size, size) if isinstance(size, int) else size
    (a, b), (c, d) = matrix[:, :2].tolist()
    reduction = 1 / math.sqrt(abs(a * d - b * c))  # np.linalg.det takes many times as long
    block = int(reduction + 1e-9)
    if block > 1:
        image, matrix = _shrink(image, matrix, (width, height), block)
    if (part := _whole_pixels(image, matrix, (width, height), border)) is not None:
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=_CV2_BORDER[border])


def _whole_pixels(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: Border) -> np.ndarray | None:
    """The part of the image that the output shows, with its border; None if that is no upright box of whole pixels."""
    (zoom_x, skew_x, shift_x), (skew_y, zoom_y, shift_y) = matrix.tolist()
    if skew_x or skew_y or zoom_x <= 0 or zoom_y <= 0:
        return None
    edges = [
        0.5 + (edge - 0.5 - shift) / zoom
        for zoom, shift, length in ((zoom_x, shift_x, size[0]), (zoom_y, shift_y, size[1]))
        for edge in (0, length)
    ]
    left, right, top, bottom = whole = [round(edge) for edge in edges]
    part = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if not part.size or max(abs(edge - near) for edge, near in zip(edges, whole, strict=True)) > _EDGE_TOLERANCE_PX:
        return None
    outside = (max(-top, 0), max(bottom - image.shape[0], 0), max(-left, 0), max(right - image.shape[1], 0))
    return cv2.copyMakeBorder(part, *outside, _CV2_BORDER[border]) if any(outside) else part


def _shrink(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], block: int) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of `block` x `block` pixels where the warp reads the image; adapt the matrix to the result."""
    corners = np.array([[0, 0], [size[0], 0], [0, size[1]], size], np.float64)
    in_image = transform_points(corners, invert(matrix))
    margin = 4 * block  # more than is read; blocks begin there, so another margin would give other pixels
    limit = np.array([image.shape[1], image.shape[0]])
    left, top = np.clip(np.floor(in_image.min(0)).astype(int) - margin, 0, limit - 1)
    right, bottom = np.clip(np.ceil(in_image.max(0)).astype(int) + margin, (left + 1, top + 1), limit)
    part = image[top:bottom, left:right]
    if (right - left) % block or (bottom - top) % block:  # complete the last blocks
        pad_x, pad_y = -(right - left) % block, -(bottom - top) % block
        part = cv2.copyMakeBorder(part, 0, int(pad_y), 0, int(pad_x), cv2.BORDER_REPLICATE)
    height, width = part.shape[:2]
    part = cv2.resize(part, (width // block, height // block), interpolation=cv2.INTER_AREA)
    # Pixel i of the part is centred on source pixel block * i + (block - 1) / 2 + start.
    to_source = np.array([[block, 0, (block - 1) / 2 + left], [0, block, (block - 1) / 2 + top], [0, 0, 1]])
    return part, matrix @ to_source
