"""A trace as a picture: what a token costs, by part, and which expert wrote which token.

The SVG is one file without scripts, fonts or links, for a light and a dark background. Colour never says anything
alone: parts of a bar carry their milliseconds and are in the legend's order, experts are marked by their initials where
they take over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from frcli.bench.trace import Traced, by_configuration
from frcli.decode.stopwatch import PARTS

PARTS_SHOWN = (*PARTS, "rest")
# Dark enough for white letters, light enough for a dark page.
_PART_COLOURS = ("#8661b8", "#2f6fb0", "#b3631a", "#3d8355", "#b0456c", "#6b7280")
EXPERT_COLOURS = ("#2f6fb0", "#b3631a", "#3d8355", "#b0456c", "#8661b8", "#857a1c", "#2b8282", "#8f5840")
SEVERAL = "+"  # the mark of a token that several experts wrote together

_LEFT, _WIDTH, _CELL, _PER_LINE = 250, 1180, 7, 128
# A viewer that knows no colour scheme gets a grey that can be read on both.
_STYLE = """
text { font: 12px system-ui, sans-serif }
text, .fill { fill: #768390 }
.line { stroke: #768390 }
@media (prefers-color-scheme: light) {
  text, .fill { fill: #1f2328 }
  .line { stroke: #1f2328 }
}
@media (prefers-color-scheme: dark) {
  text, .fill { fill: #e6edf3 }
  .line { stroke: #e6edf3 }
}
.head { font-size: 15px; font-weight: 600 }
.small { font-size: 10px }
.mono { font-family: ui-monospace, Menlo, Consolas, monospace }
.code { font-size: 11px }
.mid { text-anchor: middle }
.end { text-anchor: end }
text.in { fill: #ffffff; text-anchor: middle }
"""


@dataclass(slots=True)
class Canvas:
    """SVG elements and how far down they reach."""

    parts: list[str] = field(default_factory=list)
    y: float = 0.0
    width: float = _WIDTH

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Text whose baseline begins at (x, y)."""
        style = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{style}>{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0) -> None:
        """A filled rectangle."""
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:.2f}" height="{height:g}" fill="{colour}"{faint}/>')

    def frame(self, x: float, y: float, width: float, height: float, dashes: str = "") -> None:
        """The outline of a rectangle in the colour of the text."""
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        size = f'width="{width:.2f}" height="{height:g}"'
        self.parts.append(f'<rect class="line" x="{x:g}" y="{y:g}" {size} fill="none"{dashed}/>')

    def curve(self, points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> None:
        """A line through the points."""
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')

    def line(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A line in the colour of the text."""
        self.parts.append(f'<line class="line" x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}"/>')

    def dot(self, x: float, y: float) -> None:
        """A dot in the colour of the text."""
        self.parts.append(f'<circle class="fill" cx="{x:g}" cy="{y:g}" r="1.3"/>')

    def cross(self, x: float, y: float) -> None:
        """A cross in the colour of the text."""
        self.parts.append(f'<path class="line" d="M{x - 2:g} {y - 2:g}l4 4m0 -4l-4 4" fill="none"/>')

    def svg(self, title: str, description: str = "") -> str:
        """The whole picture."""
        size = f'width="{self.width:g}" height="{self.y:g}" viewBox="0 0 {self.width:g} {self.y:g}"'
        head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<title>{escape(title)}</title>"]
        if description:
            head.append(f"<desc>{escape(description)}</desc>")
        return "\n".join([*head, f"<style>{_STYLE}</style>", *self.parts, "</svg>\n"])


def draw(traced: Sequence[Traced], prompts: int = 4) -> str:
    """The picture of a trace as SVG text; the routing is that of the first repetition, for so many ``prompts``."""
    groups = by_configuration(traced)
    canvas = Canvas()
    _draw_costs(canvas, {name: costs(lines) for name, lines in groups.items()})
    single = {name: lines for name, lines in groups.items() if name.startswith("fused")}
    _draw_routing(canvas, single or groups, prompts)
    return canvas.svg("What a token costs, and which expert wrote it")


def costs(lines: Iterable[Traced]) -> dict[str, float]:
    """Mean milliseconds of a token by part, over the steps that read no prompt; empty when there are none."""
    lines = list(lines)
    reading = {(line.repetition, line.window) for line in lines if line.index == 0}
    counted = [line for line in lines if (line.repetition, line.window) not in reading]
    if not counted:
        return {}
    means = {part: sum(line.ms[part] for line in counted) / len(counted) for part in PARTS}
    wall = sum(line.wall for line in counted) / len(counted)
    return {**means, "rest": max(0.0, wall - sum(means.values()))}


def _draw_costs(canvas: Canvas, by_name: Mapping[str, dict[str, float]]) -> None:
    canvas.text(10, 24, "What a token costs, in milliseconds", "head")
    canvas.y = 36
    legend(canvas, [(part, colour) for part, colour in zip(PARTS_SHOWN, _PART_COLOURS, strict=True)])
    longest = max((sum(parts.values()) for parts in by_name.values()), default=0.0)
    scale = (_WIDTH - _LEFT - 70) / longest if longest > 0 else 0.0
    for name, parts in by_name.items():
        canvas.text(_LEFT - 8, canvas.y + 15, name, "end")
        x = float(_LEFT)
        for part, colour in zip(PARTS_SHOWN, _PART_COLOURS, strict=True):
            width = parts.get(part, 0.0) * scale
            canvas.box(x, canvas.y, width, 20, colour)
            if width > 60:
                canvas.text(x + width / 2, canvas.y + 14, f"{part} {parts[part]:.3g}", "small in")
            elif width > 24:
                canvas.text(x + width / 2, canvas.y + 14, f"{parts[part]:.3g}", "small in")
            x += width
        canvas.text(x + 6, canvas.y + 15, f"{sum(parts.values()):.3g}" if parts else "not measured")
        canvas.y += 28
    canvas.y += 14


def legend(canvas: Canvas, entries: Sequence[tuple[str, str]], left: float = _LEFT) -> None:
    """Names beside their colours, in lines from ``left`` on."""
    x = left
    for name, colour in entries:
        width = 26 + 7 * len(name)
        if x > left and x + width > canvas.width:
            x, canvas.y = left, canvas.y + 18
        canvas.box(x, canvas.y, 11, 11, colour)
        canvas.text(x + 16, canvas.y + 10, name)
        x += width
    canvas.y += 24


def initials(names: Sequence[str]) -> dict[str, str]:
    """The shortest beginning of each name, at most three letters, that no other name has; else its number."""
    short = {}
    for number, name in enumerate(names, 1):
        others = [other for other in names if other != name]
        beginnings = (name[:n] for n in range(1, 4))
        short[name] = next((b for b in beginnings if not any(o.startswith(b) for o in others)), str(number))
    return short


def _draw_routing(canvas: Canvas, groups: Mapping[str, Sequence[Traced]], prompts: int) -> None:
    names = list(dict.fromkeys(name for lines in groups.values() for line in lines for name in line.experts))
    colours = {name: EXPERT_COLOURS[i % len(EXPERT_COLOURS)] for i, name in enumerate(names)}
    marks = initials(names)
    canvas.text(10, canvas.y + 18, "Which expert wrote which token", "head")
    canvas.y += 30
    legend(canvas, [(f"{marks[name]} = {name}", colours[name]) for name in names])
    canvas.dot(_LEFT + 5, canvas.y + 5)
    canvas.text(_LEFT + 16, canvas.y + 10, "a draft that was accepted")
    canvas.cross(_LEFT + 205, canvas.y + 6)
    canvas.text(_LEFT + 216, canvas.y + 10, "here a draft was not taken")
    canvas.y += 26
    for configuration, lines in groups.items():
        canvas.text(10, canvas.y + 12, configuration)
        canvas.y += 18
        answers: defaultdict[int, list[Traced]] = defaultdict(list)
        for line in lines:
            if line.repetition == 0 and line.prompt < prompts:
                answers[line.prompt].append(line)
        for prompt, answer in sorted(answers.items()):
            for start in range(0, len(answer), _PER_LINE):
                if not start:
                    canvas.text(_LEFT - 8, canvas.y + 22, f"prompt {prompt}", "end small")
                before = answer[start - 1].experts if start else ()
                _draw_answer(canvas, answer[start : start + _PER_LINE], before, rejections(answer), colours, marks)
        canvas.y += 8


def rejections(answer: Sequence[Traced]) -> set[int]:
    """Indices of the tokens that stand where a draft was not taken: the last ones of windows that had more drafts than
    were accepted.
    """
    windows: dict[int, list[Traced]] = {}
    for line in answer:
        windows.setdefault(line.window, []).append(line)
    return {
        lines[-1].index
        for lines in windows.values()
        if sum(line.proposed for line in lines) > sum(line.drafted for line in lines)
    }


def _draw_answer(
    canvas: Canvas,
    tokens: Sequence[Traced],
    before: tuple[str, ...],
    rejected: set[int],
    colours: Mapping[str, str],
    marks: Mapping[str, str],
) -> None:
    """One line of cells: initials above where the expert changes, what became of drafts below."""
    top = canvas.y + 12
    for place, token in enumerate(tokens):
        x = _LEFT + place * _CELL
        height = 14 / len(token.experts)
        for i, name in enumerate(token.experts):
            canvas.box(x, top + i * height, _CELL - 1, height, colours[name])
        if token.experts != before:
            mark = marks[token.experts[0]] if len(token.experts) == 1 else SEVERAL
            canvas.text(x + (_CELL - 1) / 2, top - 3, mark, "small mid")
            if place:
                canvas.line(x - 0.5, top - 2, x - 0.5, top + 16)
        before = token.experts
        if token.index in rejected:
            canvas.cross(x + (_CELL - 1) / 2, top + 19)
        elif token.drafted:
            canvas.dot(x + (_CELL - 1) / 2, top + 19)
    canvas.y += 38
