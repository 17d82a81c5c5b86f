"""Non-maximum suppression."""

from __future__ import annotations

import numpy as np


def keep_best(boxes: np.ndarray, scores: np.ndarray, max_overlap: float) -> np.ndarray:
    """Indices of the boxes to keep, best score first; a box that overlaps a better one is dropped.

    boxes: float [n, 4]. scores: float [n]. max_overlap: intersection over union. Returns int64 [m].
    """
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order].astype(np.float64)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept, alive = [], np.ones(len(order), bool)
    for index in range(len(order)):
        if not alive[index]:
            continue
        kept.append(index)
        low, high = np.maximum(boxes[index, :2], boxes[:, :2]), np.minimum(boxes[index, 2:], boxes[:, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        alive &= shared <= max_overlap * (area + area[index] - shared)
    return order[kept]
