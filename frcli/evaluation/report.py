"""A comparison as Markdown: who scored what, how fast, and which differences are more than luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from frcli.evaluation.comparison import MEAN

_COSTS = (("tokens_per_second", "tokens/s", ".1f"), ("calls_per_token", "calls/token", ".2f"))


def short(task: str) -> str:
    """A task's name without our prefix."""
    return task.removeprefix("frcli_")


def markdown(document: Mapping[str, Any]) -> str:
    """The scores (with standard errors), the speeds, and the paired differences with their 95 % intervals."""
    parts = [_scores(document)]
    if document["groups"]:
        parts.append(_groups(document))
    if document["differences"]:
        parts.append(_differences(document))
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _scores(document: Mapping[str, Any]) -> str:
    tasks, systems = list(document["tasks"]), document["systems"]
    best = best_means(document)
    costs = [cost for cost in _COSTS if any(result[cost[0]] for result in systems.values())]
    rows = []
    for system, result in systems.items():
        cells = [_score(result["tasks"][task], best[task]) for task in tasks] + [_score(result, best[MEAN])]
        rows.append([system, *cells, *(f"{result[key]:{form}}" if result[key] else "" for key, _, form in costs)])
    items = [str(len(task["items"])) for task in document["tasks"].values()]
    rows.append(["*items*", *items, str(sum(map(int, items))), *("" for _ in costs)])
    return _table(["", *map(short, tasks), "mean", *(title for _, title, _ in costs)], rows)


def best_means(document: Mapping[str, Any]) -> dict[str, float]:
    """The highest mean of each task, and that over all tasks."""
    systems = document["systems"].values()
    best = {task: max(result["tasks"][task][MEAN] for result in systems) for task in document["tasks"]}
    return best | {MEAN: max(result[MEAN] for result in systems)}


def _score(cell: Mapping[str, Any], best: float) -> str:
    number = f"**{cell[MEAN]:.3f}**" if cell[MEAN] == best else f"{cell[MEAN]:.3f}"
    return number if cell["stderr"] is None else f"{number} ± {cell['stderr']:.3f}"


def _groups(document: Mapping[str, Any]) -> str:
    rows = [
        [system, *(f"{group_mean(result, tasks):.3f}" for tasks in document["groups"].values())]
        for system, result in document["systems"].items()
    ]
    return _table(["LogiGLUE", *document["groups"]], rows)


def group_mean(result: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """Mean over a group's data sets, each of which weighs the same."""
    return float(sum(result["tasks"][task][MEAN] for task in tasks) / len(tasks))


def _differences(document: Mapping[str, Any]) -> str:
    columns = [*document["tasks"], MEAN]
    rows = [
        [system, *(difference(found[column]) if column in found else "" for column in columns)]
        for system, found in document["differences"].items()
    ]
    return _table([f"minus {document['against']}", *map(short, columns)], rows)


def difference(values: Sequence[float]) -> str:
    """A difference and its interval; bold when the interval tells it from zero."""
    mean, low, high = values
    text = f"{mean:+.3f}"
    return f"{f'**{text}**' if certain(values) else text} ({low:+.3f} to {high:+.3f})"


def certain(values: Sequence[float]) -> bool:
    """Whether an interval tells a difference from none; one without width comes from too few items to tell anything."""
    _, low, high = values
    return low < high and (low > 0 or high < 0)
