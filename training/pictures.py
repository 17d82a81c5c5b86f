"""Sample grids: rows of pairs, columns by title, as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from model.video import complete_or_absent

TITLE_PX = 20
MIN_CELL_PX = 128


def draw_grid(columns: Mapping[str, Tensor]) -> np.ndarray:
    """Columns [B, 3, H, W] or [B, 1, H, W] in [0, 1], of any sizes, under their titles: uint8 [H', W', 3], RGB.

    Cells have the size of the largest column, at least 128 px.
    """
    side = max(MIN_CELL_PX, *(column.shape[-1] for column in columns.values()))
    drawn = []
    for title, column in columns.items():
        cells = column.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
        if cells.shape[-1] != side:
            cells = functional.interpolate(cells, size=(side, side), mode="nearest-exact")
        pixels = (cells * 255).round().to(torch.uint8).permute(0, 2, 3, 1).reshape(-1, side, 3).numpy()
        head = np.zeros((TITLE_PX, side, 3), np.uint8)
        cv2.putText(head, title, (4, TITLE_PX - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        drawn.append(np.concatenate([head, pixels]))
    return np.concatenate(drawn, axis=1)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a grid; the file appears complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")
