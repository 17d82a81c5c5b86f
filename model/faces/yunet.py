"""YuNet face detection on ONNX Runtime: boxes and 5 points.

The network is anchor-free with strides 8, 16 and 32. Per cell it gives a class and an object score, a box as offsets of
its centre (in strides) and logarithms of its size, and five points as offsets. It takes BGR from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model import framing
from model.faces import Detections, FacesConfig, WeightInfo
from model.faces.alignment import letterbox
from model.faces.nms import keep_best
from model.faces.onnx_session import open_session
from model.faces.weights import resolve_weight

_STRIDES = (8, 16, 32)
_BORDER = 0.1
_MAX_OVERLAP = 0.3


class YuNetDetector:
    """Detects faces of about 15 to 400 px in a canvas of `detection_size_px`."""

    def __init__(self, config: FacesConfig) -> None:
        weight = resolve_weight("yunet", config.weights_dir)
        self.weights = {"detector": WeightInfo(weight.path.name, weight.sha256, weight.licence)}
        self._config = config
        self._session = open_session(
            weight.path, num_threads=config.num_threads, device=config.device, free_axes=(2, 3)
        )
        self._outputs = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in _STRIDES]

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: np.ndarray) -> Detections:
        height, width = image.shape[:2]
        matrix, canvas_width, canvas_height = letterbox(
            width, height, size_px=self._config.detection_size_px, border=_BORDER
        )
        canvas = framing.warp(image, matrix, (canvas_width, canvas_height))
        blob = np.ascontiguousarray(canvas[None, :, :, ::-1].transpose(0, 3, 1, 2), np.float32)
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, {"input": blob}), strict=True))
        boxes, scores, points = self._decode(outputs, canvas_width)
        kept = keep_best(boxes, scores, _MAX_OVERLAP)
        to_image = framing.invert(matrix)
        boxes = framing.transform_points(boxes[kept].reshape(-1, 2, 2), to_image).reshape(-1, 4).astype(np.float32)
        points = framing.transform_points(points[kept], to_image).astype(np.float32)
        large = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0) >= self._config.min_face_size_px
        return Detections(boxes, scores[kept], points)[large]

    def _decode(self, outputs: dict[str, np.ndarray], canvas_width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes [n, 4], scores [n] and points [n, 5, 2] above the threshold, in canvas pixels."""
        parts = []
        for stride in _STRIDES:
            class_score, object_score = outputs[f"cls_{stride}"][0, :, 0], outputs[f"obj_{stride}"][0, :, 0]
            scores = np.sqrt(np.clip(class_score, 0, 1) * np.clip(object_score, 0, 1))
            cells = np.flatnonzero(scores >= self._config.min_detection_score)
            rows, columns = np.divmod(cells, canvas_width // stride)
            corner = np.stack([columns, rows], axis=1).astype(np.float32)
            box = outputs[f"bbox_{stride}"][0, cells]
            center, size = (corner + box[:, :2]) * stride, np.exp(box[:, 2:]) * stride
            points = (corner[:, None] + outputs[f"kps_{stride}"][0, cells].reshape(-1, 5, 2)) * stride
            parts.append((np.concatenate([center - size / 2, center + size / 2], axis=1), scores[cells], points))
        boxes, scores, points = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return boxes, scores, points
