"""Line charts as SVG: panels side by side, steps over a logarithmic axis, a band around each line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

#: Okabe and Ito's colours, told apart by colour-blind eyes too; without the yellow, which is too light for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
#: What tells lines apart that have one colour.
DASHES = ("", "7 3", "2 3")

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 58, 50
_LEGEND_ROW, _LETTER = 18, 6.6
_FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes
    ----------
    name : str
        As the legend has it.
    style : int
        Which colour and dashes: the same number in every panel for the same thing.
    points : tuple of (float, float, float, float)
        x (over 0), y, lower and upper end of the band; y holds until the next x.
    """

    name: str
    style: int
    points: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes
    ----------
    x_label, y_label : str
        What is on the axes.
    lines : tuple of Line
        In the order of the legend.
    ticks : tuple of float
        Where the x axis has ticks; powers of ten and their halves and fifths when empty.
    """

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Axes:
    """From values to places in the picture."""

    left: float
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = (math.log(v) for v in self.x)
        return self.left + (math.log(value) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        low, high = self.y
        inside = min(max(value, low), high)
        return _TOP + (high - inside) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def chart(title: str, panels: Sequence[Panel]) -> str:
    """Return panels side by side, one legend below them, as the text of an SVG file.

    Parameters
    ----------
    title : str
        Of the whole picture.
    panels : sequence of Panel
        At least one; those with the same label on the y axis have the same axis, so that they can be compared.
    """
    width = _WIDTH * len(panels)
    rows = _legend_rows(panels, width)
    height = _HEIGHT + _LEGEND_ROW * len(rows) + 8
    body = [f'<text x="{width / 2:g}" y="26" text-anchor="middle" class="title">{escape(title)}</text>']
    for number, panel in enumerate(panels):
        alike = [p for other in panels if other.y_label == panel.y_label for line in other.lines for p in line.points]
        body += _panel(panel, _Axes(number * _WIDTH + _LEFT, _x_range(panel), _y_range(alike)))
    for number, row in enumerate(rows):
        body += _legend(row, _HEIGHT + _LEGEND_ROW * (number + 0.5))
    style = f"text {{ font: 12px {_FONT}; fill: #222 }} .title {{ font-size: 15px; font-weight: 600 }}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{escape(style)}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _x_range(panel: Panel) -> tuple[float, float]:
    """As far as lines and ticks go; without ticks to the next of the round numbers that get one."""
    values = [p[0] for line in panel.lines for p in line.points] + list(panel.ticks)
    low, high = min(values, default=1.0), max(values, default=1.0)
    if not panel.ticks:
        low, high = max(v for v in _round(low, low) if v <= low), min(v for v in _round(high, high) if v >= high)
    return (low, high) if high > low else (low / 2, high * 2)


def _round(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten, from those below to those above."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
    return [n * 10.0**p for p in powers for n in (1, 2, 5)]


def _y_range(points: Sequence[tuple[float, float, float, float]]) -> tuple[float, float]:
    """From a round number below the lowest band to a round one above the highest."""
    low = min((p[2] for p in points), default=0.0)
    high = max((p[3] for p in points), default=1.0)
    step = _step(high - low)
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return (bottom, top) if top > bottom else (bottom, bottom + step)


def _step(length: float) -> float:
    """Return a round distance of ticks: about five of them."""
    rough = max(length, 1e-3) / 5
    power = 10 ** math.floor(math.log10(rough))
    return float(next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999))


def _x_ticks(axes: _Axes) -> list[float]:
    low, high = axes.x
    found = [v for v in _round(low, high) if low <= v <= high]
    return found if len(found) <= 9 else [v for v in found if round(math.log10(v), 6).is_integer()]


def _panel(panel: Panel, axes: _Axes) -> list[str]:
    left, right = axes.left, axes.left + _WIDTH - _LEFT - _RIGHT
    bottom = _HEIGHT - _BOTTOM
    middle = (_TOP + bottom) / 2
    found = []
    low, high = axes.y
    step = _step(high - low)
    for number in range(round((high - low) / step) + 1):
        y = axes.up(low + number * step)
        found.append(f'<path d="M{left:g} {y:.1f}H{right:g}" stroke="#ddd"/>')
        found.append(f'<text x="{left - 7:g}" y="{y + 4:.1f}" text-anchor="end">{low + number * step:.3g}</text>')
    for value in panel.ticks or _x_ticks(axes):
        x = axes.across(value)
        found.append(f'<path d="M{x:.1f} {bottom}v5" stroke="#444"/>')
        found.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    found += [_band(line, axes) for line in panel.lines if line.points]
    found += [_steps(line, axes) for line in panel.lines if line.points]
    found.append(f'<path d="M{left:g} {_TOP}V{bottom}H{right:g}" fill="none" stroke="#444"/>')
    found.append(
        f'<text x="{(left + right) / 2:g}" y="{bottom + 38}" text-anchor="middle">{escape(panel.x_label)}</text>'
    )
    x = left - 46
    found.append(
        f'<text x="{x:g}" y="{middle:g}" text-anchor="middle" transform="rotate(-90 {x:g} {middle:g})">'
        f"{escape(panel.y_label)}</text>"
    )
    return found


def _walk(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of a stair: a value holds until the next one."""
    corners = list(places[:1])
    for (_, y), (x, new) in pairwise(places):
        if new != y:
            corners += [(x, y), (x, new)]
    return [*corners, *places[-1:]]


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)


def _steps(line: Line, axes: _Axes) -> str:
    # One point is a line of no length: a dot, by its round cap.
    corners = _walk([(axes.across(x), axes.up(y)) for x, y, _, _ in line.points])
    return f'<path d="{_path(corners)}" fill="none" {_stroke(line)}/>'


def _band(line: Line, axes: _Axes) -> str:
    low = _walk([(axes.across(x), axes.up(low)) for x, _, low, _ in line.points])
    high = _walk([(axes.across(x), axes.up(high)) for x, _, _, high in line.points])
    return f'<path d="{_path([*high, *reversed(low)])}Z" fill="{_colour(line)}" fill-opacity="0.13"/>'


def _colour(line: Line) -> str:
    return COLOURS[line.style % len(COLOURS)]


def _stroke(line: Line) -> str:
    dash = DASHES[line.style // len(COLOURS) % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_colour(line)}" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"{dashes}'


def _legend_rows(panels: Sequence[Panel], width: float) -> list[list[tuple[float, Line]]]:
    """Return the lines' places from the left, in as many rows as they need."""
    lines = {line.name: line for panel in panels for line in panel.lines}.values()
    rows: list[list[tuple[float, Line]]] = [[]]
    x = float(_LEFT)
    for line in lines:
        length = 44 + _LETTER * len(line.name)
        if rows[-1] and x + length > width - _RIGHT:
            rows.append([])
            x = float(_LEFT)
        rows[-1].append((x, line))
        x += length
    return rows


def _legend(row: Sequence[tuple[float, Line]], y: float) -> list[str]:
    found = []
    for x, line in row:
        found.append(f'<path d="M{x:g} {y:g}h22" fill="none" {_stroke(line)}/>')
        found.append(f'<text x="{x + 28:g}" y="{y + 4:g}">{escape(line.name)}</text>')
    return found
