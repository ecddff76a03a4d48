"""Charts as inline SVG: no script, no file, colours that follow the page's light or dark mode.

The drawing is 400 units wide so that its 12-unit letters stay readable on a phone of 380 pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDE, _HIGH = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 14, 40
_MOST_POINTS = 300
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")


@dataclass(frozen=True)
class Series:
    """One line: points in the order of x; the legend shows its name and its dash pattern.

    Attributes:
        band: ends of an interval around each point, drawn as a band; NaN: there is none. It is
            drawn for lines of up to 300 points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """One set of axes."""

    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = ""


def log_series(records: Sequence[Mapping], fields: Sequence[str]) -> list[Series]:
    """One series per field that the records hold as a number, over ``step``."""
    found = []
    for name in fields:
        points = [(r["step"], r[name]) for r in records if "step" in r and _is_number(r.get(name))]
        if points:
            found.append(Series(name, [x for x, _ in points], [y for _, y in points]))
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def line_chart(chart: Chart) -> str:
    """The chart as an ``<svg>`` element with axes, ticks and a title that screen readers find.

    Points that are not finite interrupt their line. Long series are averaged in equal pieces down
    to 300 points. A chart without a finite point says so.
    """
    lines = [_thin(series) for series in chart.series]
    points = [point for _, line in lines for point in line if math.isfinite(point[1])]
    described = escape(f"{chart.title}: {', '.join(series.name for series in chart.series)}")
    head = (
        f'<svg class="chart" viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{described}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )
    if not points:
        note = f'<text x="{_WIDE / 2}" y="{_HIGH / 2}" text-anchor="middle">no finite values</text>'
        return f"{head}{note}</svg>"
    x_ticks = nice_ticks(min(x for x, _ in points), max(x for x, _ in points))
    edges = [end for series in chart.series for ends in series.band for end in ends]
    heights = [y for _, y in points] + [end for end in edges if math.isfinite(end)]
    y_ticks = nice_ticks(min(heights), max(heights))
    x_range = (x_ticks[0], x_ticks[-1])
    y_range = (y_ticks[0], y_ticks[-1])
    parts = [head, _axes(chart, x_ticks, y_ticks, x_range, y_range)]
    for index, series in enumerate(chart.series):
        if series.band and len(series.x) <= _MOST_POINTS:
            parts.append(_band(index, series, x_range, y_range))
    for index, (_, line) in enumerate(lines):
        parts.append(_polyline(index, line, x_range, y_range))
    return "".join([*parts, "</svg>"])


def legend(chart: Chart) -> list[tuple[str, str]]:
    """Name and a small ``<svg>`` of the line, per series."""
    sample = (
        '<svg class="key" viewBox="0 0 28 8" aria-hidden="true" '
        'xmlns="http://www.w3.org/2000/svg"><line class="s{0}" x1="0" y1="4" x2="28" y2="4" '
        'stroke-dasharray="{1}"/></svg>'
    )
    return [
        (series.name, sample.format(index % 6, _DASHES[index % 6]))
        for index, series in enumerate(chart.series)
    ]


def interval_bar(value: float, ends: tuple[float, float], scale: tuple[float, float]) -> str:
    """A score and its interval on a scale as a small ``<svg>``; a line marks 0 where it is inside.

    The numbers stand beside it, so that screen readers pass it over.
    """
    wide, high = 120, 14
    x = [_place(min(max(v, scale[0]), scale[1]), scale, 2, wide - 2) for v in (*ends, value)]
    parts = [
        f'<svg class="bar" viewBox="0 0 {wide} {high}" aria-hidden="true" '
        'xmlns="http://www.w3.org/2000/svg">',
        f'<line class="rail" x1="2" y1="7" x2="{wide - 2}" y2="7"/>',
    ]
    if scale[0] < 0 < scale[1]:
        zero = _place(0.0, scale, 2, wide - 2)
        parts.append(f'<line class="rail" x1="{zero}" y1="1" x2="{zero}" y2="13"/>')
    parts.append(f'<line class="span" x1="{x[0]}" y1="7" x2="{x[1]}" y2="7"/>')
    parts.append(f'<circle cx="{x[2]}" cy="7" r="3"/></svg>')
    return "".join(parts)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose ``[low, high]``.

    >>> nice_ticks(0.3, 9.0)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high <= low:
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _thin(series: Series) -> tuple[str, list[tuple[float, float]]]:
    points = [(float(x), float(y)) for x, y in zip(series.x, series.y, strict=True)]
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return series.name, points
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(piece[-1][0], sum(y for _, y in piece) / len(piece)) for piece in pieces]
    return series.name, means


def _place(value: float, bounds: tuple[float, float], start: float, end: float) -> float:
    share = (value - bounds[0]) / ((bounds[1] - bounds[0]) or 1)
    return round(start + share * (end - start), 1)


def _axes(
    chart: Chart,
    x_ticks: list[float],
    y_ticks: list[float],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> str:
    bottom, right = _HIGH - _BOTTOM, _WIDE - _RIGHT
    parts = []
    for tick in y_ticks:
        y = _place(tick, y_range, bottom, _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x = _place(tick, x_range, _LEFT, right)
        parts.append(f'<line class="grid" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 4}"/>')
        anchor = "end" if x > right - 12 else "middle"
        parts.append(f'<text x="{x}" y="{bottom + 17}" text-anchor="{anchor}">{tick:g}</text>')
    middle = (_LEFT + right) / 2
    label = (
        f'<text x="{middle}" y="{_HIGH - 5}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    if chart.y_label:
        at = (_TOP + bottom) / 2
        label += (
            f'<text transform="translate(12 {at}) rotate(-90)" text-anchor="middle">'
            f"{escape(chart.y_label)}</text>"
        )
    return "".join([*parts, label])


def _polyline(
    index: int,
    line: list[tuple[float, float]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> str:
    bottom, right = _HIGH - _BOTTOM, _WIDE - _RIGHT
    path, pen_down = [], False
    for x, y in line:
        if not math.isfinite(y):
            pen_down = False
            continue
        at = f"{_place(x, x_range, _LEFT, right)} {_place(y, y_range, bottom, _TOP)}"
        path.append(f"{'L' if pen_down else 'M'}{at}")
        pen_down = True
    if len(path) == 1:
        path.append("h0.1")  # a single point shows through its round cap
    dash = _DASHES[index % 6]
    return f'<path class="s{index % 6}" d="{"".join(path)}" stroke-dasharray="{dash}"/>'


def _band(
    index: int, series: Series, x_range: tuple[float, float], y_range: tuple[float, float]
) -> str:
    """The intervals of a line as one area; a single point has a bar."""
    bottom, right = _HIGH - _BOTTOM, _WIDE - _RIGHT
    known = [
        (_place(x, x_range, _LEFT, right), *(_place(end, y_range, bottom, _TOP) for end in ends))
        for x, ends in zip(series.x, series.band, strict=True)
        if all(map(math.isfinite, ends))
    ]
    if not known:
        return ""
    if len(known) == 1:
        x, low, high = known[0]
        known = [(x - 1.5, low, high), (x + 1.5, low, high)]
    outline = [(x, high) for x, _, high in known] + [(x, low) for x, low, _ in reversed(known)]
    path = "L".join(f"{x} {y}" for x, y in outline)
    return f'<path class="band b{index % 6}" d="M{path}Z"/>'
