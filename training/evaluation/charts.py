"""Small SVG charts for the page; colours come from its style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _ROW, _LABEL = 760, 16, 210
_SIDE, _MARGIN = 340, 38


def compare_chart(points: Sequence[tuple[str, float | None, float | None]], digits: int) -> str:
    """One row a clip: a dot for the result, a ring for copying the source, on one scale from 0.

    points: (name, result, copy); None leaves the mark out.
    """
    values = [value for _, *pair in points for value in pair if value is not None]
    top = max(values, default=0.0) or 1.0
    height = _ROW * len(points) + 30
    span = _WIDTH - _LABEL - 60

    def x(value: float) -> float:
        return _LABEL + span * value / top

    parts = [f'<line class="axis" x1="{x(0):.1f}" y1="4" x2="{x(0):.1f}" y2="{height - 26}"/>']
    for value in (0, top / 2, top):
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{height - 12}">{value:.{digits}f}</text>')
    for row, (name, result, copy) in enumerate(points):
        y = _ROW * row + 12
        parts.append(f'<text class="name" x="{_LABEL - 10}" y="{y + 4}">{escape(name)}</text>')
        if result is not None and copy is not None:
            better = "better" if result < copy else "worse"
            parts.append(f'<line class="gap {better}" x1="{x(result):.1f}" y1="{y}" x2="{x(copy):.1f}" y2="{y}"/>')
        if copy is not None:
            parts.append(f'<circle class="copy" cx="{x(copy):.1f}" cy="{y}" r="4"/>')
        if result is not None:
            parts.append(f'<circle class="result" cx="{x(result):.1f}" cy="{y}" r="4"/>')
    legend = '<p class="legend"><i class="dot"></i> result <i class="ring"></i> copying the source</p>'
    return f'{legend}<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def sweep_chart(lines: Sequence[tuple[Sequence[float], Sequence[float | None], str]]) -> str:
    """Achieved over asked openness, one line a source, dotted for a still, with the diagonal of perfect obedience.

    lines: (asked, achieved, video or still).
    """
    values = [v for asked, achieved, _ in lines for v in (*asked, *achieved) if v is not None]
    top = max(values, default=0.0) or 1.0
    span = _SIDE - 2 * _MARGIN

    def place(asked: float, achieved: float) -> str:
        return f"{_MARGIN + span * asked / top:.1f},{_SIDE - _MARGIN - span * achieved / top:.1f}"

    def line(style: str, start: str, end: str) -> str:
        (x1, y1), (x2, y2) = start.split(","), end.split(",")
        return f'<line class="{style}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'

    parts = [line("axis", place(0, 0), place(top, 0)), line("axis", place(0, 0), place(0, top))]
    parts.append(line("diagonal", place(0, 0), place(top, top)))
    for asked, achieved, kind in lines:
        seen = [place(a, b) for a, b in zip(asked, achieved, strict=True) if b is not None]
        if seen:
            parts.append(f'<polyline class="line {kind}" points="{" ".join(seen)}"/>')
    for value in (0, top / 2, top):
        x, y = place(value, 0).split(",")
        parts.append(f'<text class="tick" x="{x}" y="{float(y) + 16:.1f}">{value:.2f}</text>')
        x, y = place(0, value).split(",")
        parts.append(f'<text class="tick side" x="{float(x) - 6:.1f}" y="{float(y) + 4:.1f}">{value:.2f}</text>')
    parts.append(f'<text class="tick" x="{_SIDE / 2}" y="{_SIDE - 4}">asked</text>')
    return f'<svg class="chart square" viewBox="0 0 {_SIDE} {_SIDE}" role="img">{"".join(parts)}</svg>'
