"""How a stored picture is to be turned before it is shown."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type

_NUM_KINDS = 64  # of side data; FFmpeg has about 35


def read_orientation(picture: av.VideoFrame) -> tuple[int, bool]:
    """Degrees counter-clockwise that show the stored picture upright (0, 90, 180, 270), and whether it is mirrored
    then."""
    degrees, is_mirrored = picture.rotation, False
    if matrix := _with_orientation_alone(picture).side_data.get("DISPLAYMATRIX"):
        across, down, _, across_2, down_2 = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if is_mirrored := across * down_2 < down * across_2:  # FFmpeg's angle takes no account of it
            degrees = -math.degrees(math.atan2(down, -across))
    return round(degrees / 90) * 90 % 360, is_mirrored


def _with_orientation_alone(picture: av.VideoFrame) -> av.VideoFrame:
    """The picture without other side data, of which PyAV reads all to give any: it raises for kinds that it does not
    know (EXIF, the views of spatial video), and frees the name of a PNG's colour profile twice."""
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [
        graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1)),
        *(
            graph.add("sidedata", mode="delete", type=str(kind))
            for kind in range(_NUM_KINDS)
            if kind != Type.DISPLAYMATRIX.value
        ),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    graph.vpush(picture)
    return graph.vpull()
