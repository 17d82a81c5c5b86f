"""The sample grid."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from training.pictures import MIN_CELL_PX, TITLE_PX, draw_grid, write_png


def test_cells_lie_in_rows_of_pairs_and_columns_of_titles(tmp_path) -> None:
    first = torch.zeros(2, 3, 64, 64)
    first[1, 0] = 1.0  # the second pair is red
    grid = draw_grid({"source": first, "occlusion": torch.full((2, 1, 16, 16), 0.5)})
    assert grid.shape == (TITLE_PX + 2 * MIN_CELL_PX, 2 * MIN_CELL_PX, 3)
    assert grid[TITLE_PX + 10, 10].tolist() == [0, 0, 0]
    assert grid[TITLE_PX + MIN_CELL_PX + 10, 10].tolist() == [255, 0, 0]
    assert grid[-1, -1].tolist() == [128, 128, 128]
    assert grid[:TITLE_PX, :MIN_CELL_PX].max() > 200  # the title
    write_png(tmp_path / "pictures" / "grid.png", grid)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "pictures" / "grid.png")), grid)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["grid.png"]
