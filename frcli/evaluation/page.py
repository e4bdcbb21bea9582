"""A comparison as one HTML file that needs nothing else: tables, bars, and answers with each token's expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frcli.evaluation.comparison import MEAN
from frcli.evaluation.report import best_means, certain, group_mean, short

_COLOURS = 8  # that the template has
_LABEL, _BAR, _LINE = 150, 190, 18  # widths and height of a bar chart's parts, in pixels


def page(document: Mapping[str, Any]) -> str:
    """The document as HTML."""
    from jinja2 import Environment

    source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    tasks, experts = list(document["tasks"]), document["experts"]
    return template.render(
        document=document,
        tasks=[(task, short(task), len(document["tasks"][task]["items"])) for task in tasks],
        charts=[_chart(document, task) for task in [*tasks, MEAN]],
        experts=[(name, number % _COLOURS) for number, name in enumerate(experts)],
        samples=[_sample(sample, experts) for sample in document["samples"] if sample["written"]],
        best=best_means(document),
        certain=certain,
        group_mean=group_mean,
    )


def _chart(document: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Bars of one task, a line for each system, from 0 to the largest mean and its error."""
    cells = {
        system: result if column == MEAN else result["tasks"][column] for system, result in document["systems"].items()
    }
    ends = [cell[MEAN] + (cell["stderr"] or 0) for cell in cells.values()]
    top = max(ends)
    scale = _BAR / top if top > 0 else 0.0
    bars = [
        {
            "system": system if len(system) <= 24 else f"{system[:23]}…",
            "whole": system,
            "y": number * _LINE,
            "width": round(max(0.0, cell[MEAN]) * scale, 1),
            "low": round(max(0.0, cell[MEAN] - (cell["stderr"] or 0)) * scale, 1),
            "high": round((cell[MEAN] + (cell["stderr"] or 0)) * scale, 1),
            "mean": cell[MEAN],
            "best": cell[MEAN] == max(other[MEAN] for other in cells.values()),
        }
        for number, (system, cell) in enumerate(cells.items())
    ]
    return {
        "title": short(column),
        "bars": bars,
        "label": _LABEL,
        "bar": _BAR,
        "line": _LINE,
        "height": _LINE * len(bars),
    }


def _sample(sample: Mapping[str, Any], experts: Sequence[str]) -> dict[str, Any]:
    """A sample whose tokens say how they are drawn: text, colour (None for several experts), what a pointer shows."""
    written = {}
    for system, answer in sample["written"].items():
        tokens = []
        for text, names, weights in answer["tokens"]:
            one = names[0] if len(names) == 1 and names[0] in experts else None
            routed = (
                ""
                if weights is None
                else "\n" + "  ".join(f"{name} {weight:+.2f}" for name, weight in zip(experts, weights, strict=True))
            )
            tokens.append((text, experts.index(one) % _COLOURS if one else None, ", ".join(names) + routed))
        written[system] = {"score": answer["score"], "tokens": tokens}
    return {**sample, "task": short(sample["task"]), "written": written}
