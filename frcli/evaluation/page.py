"""A comparison as one HTML file that needs nothing else: tables, bars, and answers with each token's expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frcli import webpage
from frcli.evaluation.comparison import MEAN
from frcli.evaluation.report import best_means, certain, group_mean, short

_LABEL, _BAR, _LINE = 150, 190, 18  # widths and height of a bar chart's parts, in pixels


def page(document: Mapping[str, Any]) -> str:
    """The document as HTML."""
    tasks, experts = list(document["tasks"]), document["experts"]
    return webpage.render(
        Path(__file__).parent / "page.html",
        document=document,
        tasks=[(task, short(task), len(document["tasks"][task]["items"])) for task in tasks],
        charts=[_chart(document, task) for task in [*tasks, MEAN]],
        experts=webpage.legend(experts),
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
    """A sample whose tokens are drawn."""
    written = {
        system: {"score": answer["score"], "tokens": webpage.drawn(answer["tokens"], experts)}
        for system, answer in sample["written"].items()
    }
    return {**sample, "task": short(sample["task"]), "written": written}
