"""Draw the pictures of docs/how-it-works.md from the trace that ``scripts/record_trace.py`` has written.

python scripts/pictures.py            # docs/pictures/trace.jsonl -> docs/pictures/*.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from frcli.bench.plot import EXPERT_COLOURS, Canvas, initials, legend
from frcli.files import save

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH, LEFT, STEP = 860, 70, 10.0
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 4", "12 4", "4 2 1 2")
_LETTER = 6.7  # width of a letter of the 11 pixel monospace font, with some room


@dataclass(frozen=True)
class Trace:
    """One answer: the first line of the file, and a line for each of its tokens."""

    head: dict[str, Any]
    tokens: list[dict[str, Any]]

    @property
    def experts(self) -> list[str]:
        """All experts, in the order of the weights."""
        return list(self.head["experts"])

    @property
    def colours(self) -> dict[str, str]:
        """A colour for each expert."""
        return {name: EXPERT_COLOURS[i % len(EXPERT_COLOURS)] for i, name in enumerate(self.experts)}

    @cached_property
    def windows(self) -> list[list[dict[str, Any]]]:
        """The tokens by the step that gave them: a step ends at the first token that was no accepted draft."""
        found: list[list[dict[str, Any]]] = [[]]
        for token in self.tokens:
            if found[-1] and not found[-1][-1]["drafted"]:
                found.append([])
            found[-1].append(token)
        return found

    def behind(self, expert: str) -> list[int]:
        """How many tokens the expert has not read when each token is decided, the prompt's among them."""
        prompt, read, missing = int(self.head["prompt_tokens"]), 0, []
        for i, token in enumerate(self.tokens):
            missing.append(prompt + i - read)
            if expert in token["experts"]:
                read = prompt + i
        return missing

    def first(self, expert: str) -> int | None:
        """The first token that the expert wrote; None when it wrote none."""
        return next((i for i, token in enumerate(self.tokens) if expert in token["experts"]), None)


def read(path: Path) -> Trace:
    """The trace in that file."""
    head, *tokens = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return Trace(head, tokens)


def visible(text: str) -> str:
    """A token's text with its spaces and line ends to be seen."""
    return text.replace("\n", "\u21b5").replace(" ", "\u00b7") or "\u2205"


def routing(trace: Trace) -> str:
    """The routing weights along the answer, and below who wrote."""
    canvas = _begin("Routing weights along an answer")
    weights = [token["weights"] for token in trace.tokens]
    low = min(min(each.values()) for each in weights)
    high = max(max(each.values()) for each in weights)
    top, height = canvas.y + 6, 220.0

    def place(i: int, value: float) -> tuple[float, float]:
        return LEFT + (i + 0.5) * STEP, top + height * (high - value) / (high - low)

    for value in range(int(low) - (low < 0), int(high) + 1):
        if value >= low and (high - low < 12 or value % 2 == 0):
            y = place(0, value)[1]
            canvas.text(LEFT - 8, y + 4, f"{value}", "end small")
            canvas.line(LEFT - 4, y, LEFT, y)
    ends = []
    for name, dashes in zip(trace.experts, _DASHES, strict=False):
        points = [place(i, each[name]) for i, each in enumerate(weights)]
        canvas.curve(points, trace.colours[name], dashes)
        ends.append((points[-1][1], name))
    x, before = LEFT + len(weights) * STEP + 6, 0.0
    for y, name in sorted(ends):
        before = max(y + 4, before + 13)
        canvas.text(x, before, name)
    canvas.y = top + height + 28
    _strip(canvas, trace)
    about = (
        "Lines: the router's weight for each expert at each token. Strip: the expert with the largest one, who writes."
    )
    return canvas.svg("Routing weights along an answer", about)


def writers(trace: Trace) -> str:
    """The answer's text, each token in a box of the colour of who wrote it."""
    canvas = _begin("Which expert wrote which token")
    marks, colours = initials(trace.experts), trace.colours
    legend(canvas, [(f"{marks[name]} = {name}", colours[name]) for name in trace.experts], 10)
    x, before = 10.0, ""
    canvas.y += 14
    for token in trace.tokens:
        (name,), text = token["experts"], visible(token["text"])
        width = _LETTER * len(text) + 5
        if x + width > WIDTH - 10:
            x, canvas.y = 10.0, canvas.y + 38
        canvas.box(x, canvas.y, width - 1, 18, colours[name])
        canvas.text(x + width / 2, canvas.y + 13, text, "in mono code")
        if name != before:
            canvas.text(x, canvas.y - 3, marks[name], "small")
        x, before = x + width, name
        if token["text"].endswith("\n"):
            x, canvas.y = 10.0, canvas.y + 38
    canvas.y += 30 if x > 10 else 0
    return canvas.svg("Which expert wrote which token", "A letter above a token says who takes over there.")


def drafts(trace: Trace) -> str:
    """Each window: the drafts that were accepted, the one that was not, and the token in its place."""
    proposed = sum(token["proposed"] for token in trace.tokens)
    taken = sum(token["drafted"] for token in trace.tokens)
    canvas = _begin(
        f"Drafts: {taken} of {proposed} accepted, {len(trace.tokens)} tokens in {len(trace.windows)} windows"
    )
    canvas.box(10, canvas.y, 60, 18, EXPERT_COLOURS[0])
    canvas.text(40, canvas.y + 13, "accepted", "in small")
    _struck(canvas, 90, "refused")
    canvas.text(160, canvas.y + 13, "a draft that was not taken; those behind it are dropped")
    canvas.frame(520, canvas.y, 60, 18)
    canvas.text(550, canvas.y + 13, "written", "mid small")
    canvas.text(590, canvas.y + 13, "by expert and router, from the same call")
    top = canvas.y = canvas.y + 36
    rows = -(-len(trace.windows) // 2)
    for number, window in enumerate(trace.windows):
        canvas.y = top + 24 * (number % rows)
        x = 10 + (number // rows) * WIDTH / 2
        canvas.text(x + 16, canvas.y + 13, str(number + 1), "end small")
        x += 24
        for token in window:
            text = visible(token["text"])
            width = _LETTER * len(text) + 6
            if token["drafted"]:
                canvas.box(x, canvas.y, width, 18, EXPERT_COLOURS[0])
                canvas.text(x + width / 2, canvas.y + 13, text, "in mono code")
            else:
                if window[0]["proposed"] >= len(window):  # greedy drafts are the router's likeliest tokens
                    x = _struck(canvas, x, visible(token["top"]["router"][0][0])) + 4
                canvas.frame(x, canvas.y, width, 18)
                canvas.text(x + width / 2, canvas.y + 13, text, "mid mono code")
            x += width + 4
    canvas.y = top + 24 * rows + 6
    about = "A row is a window: what the router drafted and one call of the experts checked."
    return canvas.svg("Drafts accepted and refused", about)


def _struck(canvas: Canvas, x: float, text: str) -> float:
    """A draft that was refused; returns where it ends."""
    width = _LETTER * len(text) + 6
    canvas.frame(x, canvas.y, width, 18, "3 2")
    canvas.text(x + width / 2, canvas.y + 13, text, "mid mono code")
    canvas.line(x, canvas.y + 9, x + width, canvas.y + 9)
    return x + width


def catch_up(trace: Trace) -> str:
    """For each expert how many tokens of the answer it has not read, and where it reads them."""
    canvas = _begin("How many tokens each expert is behind, and where it reads them")
    height, longest = 60.0, len(trace.tokens)
    for name in trace.experts:
        canvas.y += 16
        first = trace.first(name)
        canvas.text(10, canvas.y + height, name)
        missing, free = trace.behind(name), float(LEFT)
        for i, behind in enumerate(missing):
            tall = height * min(behind, i + 1) / longest
            writes = name in trace.tokens[i]["experts"]
            x = LEFT + i * STEP
            canvas.box(x, canvas.y + height - tall, STEP - 1, tall, trace.colours[name], 1 if writes else 0.35)
            count = trace.tokens[i]["read"]
            if writes and count > 1 and x >= free:
                note = (
                    f"reads the prompt and {i}"
                    if i == first and i
                    else "reads the prompt"
                    if i == first
                    else f"{count}"
                )
                canvas.text(x, canvas.y + height - tall - 4, note, "small")
                free = x + 6.0 * len(note)
        canvas.line(LEFT, canvas.y + height, LEFT + longest * STEP, canvas.y + height)
        if first is None:
            canvas.text(LEFT + 4, canvas.y + 12, "is never chosen and reads nothing, not even the prompt", "small")
        canvas.y += height + 6
    canvas.y += 8
    _strip(canvas, trace)
    about = (
        "Faint bars: tokens of the answer not read yet. Full bars: the expert writes, and reads them in one call first."
    )
    return canvas.svg("How far each expert is behind", about)


def fused(trace: Trace) -> str:
    """One token's likeliest candidates: the expert's, the router's, and those of the fused row."""
    token = telling(trace)
    (name,) = token["experts"]
    gamma = trace.head["gamma"]
    canvas = _begin(
        f"Token {token['index']}, \u201c{visible(token['text'])}\u201d: what expert and router each would say"
    )
    titles = (("expert", f"the expert: {name}"), ("router", "the router"), ("fused", f"fused, gamma {gamma:g}"))
    top, column = canvas.y, (WIDTH - 20) / 3
    for number, (part, title) in enumerate(titles):
        x = 10 + number * column
        canvas.text(x, top + 14, title, "head")
        for row, (text, share) in enumerate(token["top"][part]):
            y = top + 28 + 26 * row
            canvas.text(x + 82, y + 14, visible(text), "end mono code")
            canvas.box(x + 88, y, max(1.0, share * (column - 150)), 19, EXPERT_COLOURS[number])
            chosen = " \u25c4" if text == token["text"] else ""
            canvas.text(x + 93 + share * (column - 150), y + 14, f"{100 * share:.3g} %{chosen}")
    canvas.y = top + 28 + 26 * max(len(rows) for rows in token["top"].values()) + 20
    canvas.text(10, canvas.y - 6, "\u25c4 the token that was written", "small")
    return canvas.svg("One token, fused", "Bars: the probability of the likeliest tokens, by each part.")


def telling(trace: Trace) -> dict[str, Any]:
    """The token at which fusing decides most: the largest part of the fused probability that goes to a token which the
    expert alone would not have written; where there is none, the one that it was least sure of.
    """
    changed = [token for token in trace.tokens if token["expert_rank"] > 1]
    if not changed:
        return min(trace.tokens, key=lambda token: token["top"]["fused"][0][1])
    return max(changed, key=lambda token: token["top"]["fused"][0][1] - token["top"]["fused"][1][1])


def _begin(title: str) -> Canvas:
    canvas = Canvas(width=WIDTH, y=40)
    canvas.text(10, 24, title, "head")
    return canvas


def _strip(canvas: Canvas, trace: Trace) -> None:
    """A cell for each token in the colour of who wrote it, an initial where somebody takes over, and an axis."""
    marks, before = initials(trace.experts), ""
    canvas.text(10, canvas.y + 11, "writes")
    for i, token in enumerate(trace.tokens):
        (name,), x = token["experts"], LEFT + i * STEP
        canvas.box(x, canvas.y, STEP - 1, 14, trace.colours[name])
        if name != before:
            canvas.text(x + STEP / 2 - 0.5, canvas.y - 3, marks[name], "small mid")
        if i % 10 == 0:
            canvas.text(x + STEP / 2 - 0.5, canvas.y + 26, str(i), "small mid")
        before = name
    canvas.y += 40
    canvas.text(
        LEFT, canvas.y, ", ".join(f"{marks[name]} = {name}" for name in trace.experts) + "; below: token", "small"
    )
    canvas.y += 10


PICTURES: dict[str, Callable[[Trace], str]] = {
    "routing": routing,
    "writers": writers,
    "drafts": drafts,
    "catch-up": catch_up,
    "fused": fused,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/how-it-works.md.")
    parser.add_argument("trace", nargs="?", type=Path, default=FOLDER / "trace.jsonl")
    parser.add_argument("-o", "--out", type=Path, default=FOLDER, help="folder to write into")
    given = parser.parse_args()
    trace = read(given.trace)
    for name, draw in PICTURES.items():
        save(draw(trace), given.out / f"{name}.svg")


if __name__ == "__main__":
    main()
