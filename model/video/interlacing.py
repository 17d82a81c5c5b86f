"""Interlaced video: the odd and even rows of a picture were taken at two times, and what moves is torn to combs."""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.filter

_MIN_SIDE_PX = 4  # smaller pictures are none to the filter
TimedPicture = tuple[int, av.VideoFrame]


def deinterlace(pictures: Iterator[TimedPicture]) -> Iterator[TimedPicture]:
    """Pictures in order, of whose interlaced ones the rows taken second are made anew (FFmpeg's bwdif).

    As many come out, each at its time; those that are not interlaced are as they were. A picture depends on itself and
    the ones just before and after it alone, so a decode that begins anywhere gives the same from its second one on.
    """
    fill = _Deinterlacer()
    before, current = None, next(pictures, None)
    while current is not None:
        pts, picture = current
        if is_combed(picture):
            following = next(pictures, None)
            yield pts, fill(before, picture, following and following[1])
        else:
            yield current
            following = next(pictures, None)
        before, current = picture, following


def is_combed(picture: av.VideoFrame) -> bool:
    """Whether `deinterlace` changes it."""
    return bool(picture.interlaced_frame) and min(picture.width, picture.height) >= _MIN_SIDE_PX


class _Deinterlacer:
    """The filter, which sees each picture of a run once."""

    def __init__(self) -> None:
        self._latest: tuple[av.VideoFrame | None, ...] = ()

    def __call__(
        self, before: av.VideoFrame | None, picture: av.VideoFrame, after: av.VideoFrame | None
    ) -> av.VideoFrame:
        """The picture without combs. Neighbours of another size or format count as none."""
        before, after = (other if _are_alike(other, picture) else None for other in (before, after))
        if before is None or self._latest != (before, picture):
            self._open(picture)
            if before is not None:
                self._graph.vpush(before)
            self._graph.vpush(picture)
            if before is not None:
                self._graph.vpull()  # the one before, seen without its own neighbour
        self._graph.vpush(after or picture)
        self._latest = picture, after
        found = self._graph.vpull()
        found.pts, found.time_base = picture.pts, picture.time_base
        return found

    def _open(self, picture: av.VideoFrame) -> None:
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(
            width=picture.width, height=picture.height, format=picture.format, time_base=picture.time_base
        )
        filtered = self._graph.add("bwdif", "mode=send_frame:deint=all")
        self._graph.link_nodes(source, filtered, self._graph.add("buffersink")).configure()


def _are_alike(other: av.VideoFrame | None, picture: av.VideoFrame) -> bool:
    return other is not None and (other.width, other.height, other.format.name) == (
        picture.width,
        picture.height,
        picture.format.name,
    )
