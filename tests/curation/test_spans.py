"""How videos are divided into spans, where their times are not even."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from curation.index import IndexStage, list_inputs
from curation.recipe import IndexOptions, Recipe
from model.video import open_video


def test_no_span_is_without_frames(tmp_path: Path) -> None:
    """As in a recording that was paused for long: 2 s, nothing for 60 s, and 2 s again."""
    path = tmp_path / "paused.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in (*range(0, 2000, 40), *range(62_000, 64_000, 40)):
            picture = av.VideoFrame(64, 48, "yuv420p")
            picture.pts, picture.time_base = time_ms, Fraction(1, 1000)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    recipe = Recipe(index=IndexOptions(max_span_s=10.0))
    (unit,) = list_inputs([str(path)], recipe.index)
    row = IndexStage(recipe, tmp_path).process(unit).rows["sources"][0]
    assert row["duration_s"] == pytest.approx(64, abs=0.1)
    first, second = row["spans"]
    assert [span["start_frame"] for span in row["spans"]] == [0, 50]
    assert (first["start_pts"], second["end_pts"]) == (None, None)
    assert first["end_pts"] == second["start_pts"]
    with open_video(path) as video:
        for span in row["spans"]:
            frames = video.frames(start_pts=span["start_pts"], end_pts=span["end_pts"])
            assert sum(1 for _ in frames) == 50
