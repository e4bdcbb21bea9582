"""Line plots as SVG: panels side by side over one scale, readable on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Point = tuple[float, float]

_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP, _LEGEND = 62, 120, 360, 300, 34, 58
# Ink, paper, grid and the colours of lines, on a light and on a dark page; the colours differ in brightness too.
_THEMES = (
    ("#1f2328", "#ffffff", "#d9dee3", ("#0b63c5", "#c2570c", "#1a7f4b", "#8a3fc0")),
    ("#e6edf3", "#0d1117", "#30363d", ("#6cb0ff", "#ff9e5e", "#5fd596", "#cf9bff")),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line through ``points``; ``style`` is "main", "rule", "limit" or the number of a colour, 0 to 3.

    ``notes`` are short texts beside points of the line.
    """

    label: str
    style: str | int
    points: Sequence[Point]
    notes: Sequence[tuple[Point, str]] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot; ``title`` stands above it."""

    title: str
    lines: Sequence[Line]


def draw(
    title: str, subtitles: Sequence[str], panels: Sequence[Panel], x_label: str, y_label: str, x_ticks: Sequence[float]
) -> str:
    """Return the SVG document. The x scale spans ``x_ticks``, the y scale begins at 0, and panels share the legend.

    Labels of lines that occur in several panels must mean the same style.
    """
    highest = max(y for panel in panels for line in panel.lines for _, y in line.points)
    step = _step(highest)
    top = math.ceil(highest * 1.02 / step) * step
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + _LEGEND + 44

    def place(panel: int, point: Point) -> Point:
        x = (point[0] - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return _LEFT + panel * (_WIDTH + _GAP) + x * _WIDTH, _TOP + _HEIGHT * (1 - point[1] / top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="title about">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="about">{escape(" ".join(subtitles))}</desc>',
        f"<style>{_css()}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        _text(_LEFT, 26, title, "title"),
        *(_text(_LEFT, 46 + 16 * number, text, "small") for number, text in enumerate(subtitles)),
        f'<text class="axis" text-anchor="middle" transform="translate(18 {_TOP + _HEIGHT / 2}) rotate(-90)">'
        f"{escape(y_label)}</text>",
    ]
    for number, panel in enumerate(panels):
        left, right = place(number, (x_ticks[0], 0))[0], place(number, (x_ticks[-1], 0))[0]
        for tick in range(round(top / step) + 1):
            y = place(number, (0, tick * step))[1]
            parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
            if number == 0:
                parts.append(_text(left - 8, y + 4, f"{tick * step:.3g}", "tick", "end"))
        for value in x_ticks:
            x, y = place(number, (value, 0))
            parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}v5"/>')
            parts.append(_text(x, y + 18, f"{value:.3g}", "tick", "middle"))
        parts.append(_text((left + right) / 2, _TOP + _HEIGHT + 38, x_label, "axis", "middle"))
        parts.append(_text((left + right) / 2, _TOP - 10, panel.title, "panel", "middle"))
        for line in panel.lines:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(number, point) for point in line.points))
            parts.append(f'<path class="{_name(line.style)}" d="M{path}"/>')
        for line in panel.lines:
            for point, note in line.notes:
                x, y = place(number, point)
                parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
                parts.append(_text(x, y - 8, note, "note", "middle"))
    parts += _legend(panels, width)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(panels: Sequence[Panel], width: float) -> list[str]:
    lines = {line.label: line.style for panel in panels for line in panel.lines}
    parts, x, y = [], float(_LEFT), _TOP + _HEIGHT + _LEGEND + 4.0
    for label, style in lines.items():
        if x > _LEFT and x + 38 + 6.6 * len(label) > width:
            x, y = float(_LEFT), y + 20
        parts.append(f'<path class="{_name(style)}" d="M{x:.1f} {y:.1f}h24"/>')
        parts.append(_text(x + 30, y + 4, label, "tick"))
        x += 48 + 6.6 * len(label)
    return parts


def _step(highest: float) -> float:
    """Return a distance between ticks, 1, 2 or 5 times a power of ten, that leaves four to ten of them."""
    power = 10.0 ** math.floor(math.log10(highest / 4))
    return max(power * factor for factor in (1, 2, 5) if power * factor <= highest / 4)


def _name(style: str | int) -> str:
    return f"c{style}" if isinstance(style, int) else style


def _text(x: float, y: float, text: str, name: str, anchor: str = "start") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _css() -> str:
    rules = [
        "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:12px}",
        ".title{font-size:16px;font-weight:600}.panel{font-size:13px;font-weight:600}",
        ".note{font-size:11px;stroke-width:3px;paint-order:stroke;stroke-linejoin:round}",
        "path{fill:none;stroke-width:1.6}.grid{stroke-width:1}.main{stroke-width:3}",
        ".rule{stroke-dasharray:7 4}.limit{stroke-dasharray:2 3}",
    ]
    for theme, (ink, paper, grid, colours) in enumerate(_THEMES):
        colour = f"text{{fill:{ink}}}.main,.rule,.limit{{stroke:{ink}}}.dot{{fill:{ink}}}.note{{stroke:{paper}}}"
        colour += f".paper{{fill:{paper}}}.grid{{stroke:{grid}}}"
        colour += "".join(f".c{number}{{stroke:{value}}}" for number, value in enumerate(colours))
        rules.append(f"@media (prefers-color-scheme:dark){{{colour}}}" if theme else colour)
    return "".join(rules)
