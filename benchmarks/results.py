"""Write what a bundle is worth as one Markdown page, from the JSON that frcli's own commands have written.

    python benchmarks/results.py models/smollm2-quartet/results/results.toml -o models/smollm2-quartet/RESULTS.md

The TOML file says what is compared and where the numbers of each system are (paths from its own folder):

    title = "smollm2-quartet"
    shipped = "fused"                         # differences are from this system
    text = "How the numbers were made."
    tried = "What was done about what was missed."   # may be left out
    domains = { math = "math", code = "code" }  # column of the NLL table -> the expert of that domain

    [[system]]
    name = "fused"
    kind = "fused"                            # or "expert" or "baseline": what the shipped system must beat
    nll = ["nll.json", "fused 0.5"]           # file of eval nll, and the system's name in it
    tasks = ["tasks.json", "fusionroute"]     # file of eval compare
    speed = ["bench.json", "fused, draft auto"]  # file of frcli bench -o json
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from frcli.evaluation.significance import paired

_WITHIN, _ACCEPTANCE = 1.03, 0.7  # of a domain expert's NLL; of greedy drafts

Row = Sequence[str]


class Results:
    """The systems of a TOML file and their numbers."""

    def __init__(self, spec: Path) -> None:
        self.folder = spec.parent
        self.spec = tomllib.loads(spec.read_text())
        self.systems: list[Mapping[str, Any]] = self.spec["system"]
        self.shipped = next(each for each in self.systems if each["name"] == self.spec["shipped"])

    @cache  # noqa: B019 - one object for the life of the program
    def document(self, file: str) -> dict[str, Any]:
        """A file of numbers."""
        document: dict[str, Any] = json.loads((self.folder / file).read_text())
        return document

    def nll(self, system: Mapping[str, Any]) -> dict[str, tuple[list[float], list[int]]]:
        """Summed NLL and tokens of every example, by column."""
        file, name = system["nll"]
        found: dict[str, tuple[list[float], list[int]]] = {}
        for rows in self.document(file)["files"].values():
            place = list(rows["nll"]).index(name)
            sums, tokens = found.setdefault(rows["column"], ([], []))
            for count, values in rows["each"]:
                sums.append(float("inf") if values[place] is None else values[place])
                tokens.append(count)
        return found

    def scores(self, system: Mapping[str, Any]) -> dict[str, list[float]]:
        """The score of every item, by task."""
        asked = self.asked(system)
        assert asked is not None
        return {task: cell["scores"] for task, cell in asked["tasks"].items()}

    def asked(self, system: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What ``frcli eval compare`` says of the system on all tasks."""
        if "tasks" not in system:
            return None
        file, name = system["tasks"]
        found: Mapping[str, Any] = self.document(file)["systems"][name]
        return found

    def accepted(self, system: Mapping[str, Any]) -> float | None:
        """Mean over the columns of the share of answer tokens at which a draft would be accepted."""
        file, name = system["nll"]
        shares = [column.get("accepted", {}).get(name) for column in self.document(file)["columns"].values()]
        return None if None in shares else sum(shares) / len(shares)

    def run(self, system: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The greedy run of ``frcli bench``."""
        if "speed" not in system:
            return None
        file, name = system["speed"]
        runs = self.document(file)["runs"]
        return next(run for run in runs if run["name"] == name and run["temperature"] == 0)

    def difference(self, system: Mapping[str, Any], what: str) -> tuple[float, float, float]:
        """The system's mean ``nll`` or ``tasks`` minus the shipped one's, and the interval."""
        if what == "nll":
            mine, theirs = self.nll(system), self.nll(self.shipped)
            pairs = [([a - b for a, b in zip(mine[c][0], theirs[c][0], strict=True)], mine[c][1]) for c in theirs]
            return paired([values for values, _ in pairs], 0, [tokens for _, tokens in pairs])
        own, others = self.scores(system), self.scores(self.shipped)
        return paired([[a - b for a, b in zip(own[t], others[t], strict=True)] for t in others], 0)


def page(results: Results) -> str:
    """The whole page."""
    spec = results.spec
    parts = [f"# {spec['title']}: results", spec["text"].strip(), "## NLL per answer token", _nll_table(results)]
    parts += ["## Task accuracy", _task_table(results), "## Drafts and speed", _speed_table(results)]
    parts += ["## Targets", _targets(results)]
    if "tried" in spec:
        parts += ["## What was tried", spec["tried"].strip()]
    return "\n\n".join(parts) + "\n"


def _nll_table(results: Results) -> str:
    columns = list(results.nll(results.shipped))
    table: list[tuple[str, list[float], Row]] = []
    for system in results.systems:
        if "nll" not in system:
            continue
        sums = results.nll(system)
        means = [sum(sums[column][0]) / sum(sums[column][1]) for column in columns]
        table.append((system["name"], [*means, sum(means) / len(means)], [_difference(results, system, "nll")]))
    return _table(["", *columns, "mean", f"mean minus {results.shipped['name']}"], _rows(table, min))


def _task_table(results: Results) -> str:
    tasks = list(results.scores(results.shipped))
    table: list[tuple[str, list[float], Row]] = []
    for system in results.systems:
        if "tasks" not in system:
            continue
        scores = results.scores(system)
        means = [sum(scores[task]) / len(scores[task]) for task in tasks]
        table.append((system["name"], [*means, sum(means) / len(means)], [_difference(results, system, "tasks")]))
    items = [str(len(results.scores(results.shipped)[task])) for task in tasks]
    head = ["", *(task.removeprefix("frcli_") for task in tasks), "mean", f"mean minus {results.shipped['name']}"]
    return _table(head, [*_rows(table, max), ["*items*", *items, "", ""]])


def _difference(results: Results, system: Mapping[str, Any], what: str) -> str:
    if system is results.shipped:
        return ""
    mean, low, high = results.difference(system, what)
    text = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def _rows(table: Sequence[tuple[str, list[float], Row]], best: Any) -> list[Row]:
    """Rows of a name, numbers (the best of each column in bold) and what stands behind them."""
    bests = [best(column) for column in zip(*(numbers for _, numbers, _ in table), strict=True)]
    return [
        [name, *(f"**{n:.3f}**" if n == b else f"{n:.3f}" for n, b in zip(numbers, bests, strict=True)), *rest]
        for name, numbers, rest in table
    ]


def _speed_table(results: Results) -> str:
    rows = []
    for system in results.systems:
        accepted, run = (results.accepted(system) if "nll" in system else None), results.run(system)
        tasks = results.asked(system)
        if accepted is None and run is None and tasks is None:
            continue
        row = [system["name"], "" if accepted is None else f"{accepted:.1%}"]
        row += ["", ""] if tasks is None else [f"{tasks['tokens_per_second']:.1f}", f"{tasks['calls_per_token']:.2f}"]
        if run is None:
            rows.append([*row, "", "", "", ""])
            continue
        document = results.document(system["speed"][0])
        written = f"{run['acceptance']:.0%}" if "acceptance" in run else ""
        alone = document["ratios"].get("draft_vs_expert", {}).get("median")
        call, speed = document["calls"]["router"]["median"], run["tg"]["median"]
        rows.append([*row, written, f"{call:.1f}", f"{speed:.1f}", "" if alone is None else f"{alone:.2f}"])
    head = ["", "drafts accepted on right answers", "tasks: tokens/s", "calls a token"]
    return _table([*head, "bench: drafts accepted", "router, ms a token", "tokens/s", "over its experts alone"], rows)


def _targets(results: Results) -> str:
    shipped, name = results.shipped, results.shipped["name"]
    lines = []
    for what, better in (("nll", "lower mean NLL"), ("tasks", "higher mean accuracy")):
        others = [each for each in results.systems if each.get("kind") in ("expert", "baseline") and what in each]
        beaten, open_ = [], []
        for system in others:
            mean, low, high = results.difference(system, what)
            won = low > 0 if what == "nll" else high < 0
            (beaten if won else open_).append(f"{system['name']} ({mean:+.3f}, {low:+.3f} to {high:+.3f})")
        verdict = "met" if not open_ else "missed"
        lines.append(f"- A {better} than every expert and baseline, the interval without zero: **{verdict}**.")
        if open_:
            lines[-1] += f" Not shown against {', '.join(open_)}."
        if beaten:
            lines[-1] += f" Shown against {', '.join(beaten)}."
    mine, ratios = results.nll(shipped), []
    for column, expert in results.spec["domains"].items():
        theirs = results.nll(next(each for each in results.systems if each["name"] == expert))[column]
        ratios.append((column, sum(mine[column][0]) / sum(theirs[0])))
    verdict = "met" if all(ratio <= _WITHIN for _, ratio in ratios) else "missed"
    told = ", ".join(f"{column} {ratio - 1:+.1%}" for column, ratio in ratios)
    lines.append(f"- NLL of {name} within 3 % of the domain's own expert: **{verdict}** ({told}).")
    run = results.run(shipped)
    if run is not None and "acceptance" in run:
        verdict = "met" if run["acceptance"] >= _ACCEPTANCE else "missed"
        lines.append(f"- At least 70 % of greedy drafts accepted: **{verdict}** ({run['acceptance']:.0%}).")
    return "\n".join(lines)


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="the TOML file")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the Markdown file")
    arguments = parser.parse_args()
    text = page(Results(arguments.spec))
    beside = arguments.out.with_name(f"{arguments.out.name}.part")
    beside.write_text(text)
    beside.replace(arguments.out)


if __name__ == "__main__":
    main()
