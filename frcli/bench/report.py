"""A document of results in the formats of ``frcli bench -o``: Markdown for people, JSON as it is, and JSON lines or CSV
with a line for each number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

FORMATS = ("md", "json", "jsonl", "csv")
COLUMNS = ("part", "name", "temperature", "value", "unit", "median", "low", "high", "repetitions")
_MIB = 1 << 20

Document = Mapping[str, Any]


def render(document: Document, form: str) -> str:
    """The document as text in one of ``FORMATS``, its last line ended."""
    if form == "json":
        return json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(document))
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(document))
        return text.getvalue()
    return markdown(document)


def rows(document: Document) -> Iterator[dict[str, Any]]:
    """Each number as a row: the part that it is of, its name, what it is (``value``), its unit, and its spread where it
    was measured in repetitions; a row has only the columns that it has something for.
    """
    for run in document.get("runs", ()):
        for value in ("pp", "tg", "whole"):
            if value in run:
                yield _row("runs", run, value, "tokens/s", run[value])
        for value, unit in _COUNTS.items():
            if value in run:
                yield _row("runs", run, value, unit, {"median": run[value]})
        for name, share in run.get("share", {}).items():
            yield _row("runs", run, f"share of {name}", "", {"median": share})
    for name, value in document.get("calls", {}).items():
        yield _row("calls", {"name": name}, "one token", "ms", value)
    for split in document.get("split", ()):
        for part in _SPLIT:
            yield _row("split", split, part, "ms/token", {"median": split[part]})
    for name, value in document.get("memory", {}).items():
        if name == "experts":
            for expert, sizes in value.items():
                for kind, size in sizes.items():
                    yield _row("memory", {"name": expert}, kind, "bytes", {"median": size})
        elif name not in ("context", "sequences"):
            yield _row("memory", {"name": document["bundle"]["name"]}, name, "bytes", {"median": value})
    for name, value in document.get("start", {}).items():
        yield _row("start", {"name": name}, "start", "s", value)
    for compared in document.get("same_tokens", {}).get("compared", ()):
        yield _row("same_tokens", compared, "differ", "prompts", {"median": compared["differ"]})
    for name, value in document.get("ratios", {}).items():
        yield _row("ratios", {"name": name}, "ratio", "", value)


_COUNTS = {
    "acceptance": "",
    "tokens_per_window": "tokens",
    "switches": "per 100 tokens",
    "catch_up_tokens": "per token",
}
_SPLIT = ("draft", "router", "experts", "catch_up", "fuse", "sample", "rest", "total")


def _row(part: str, of: Mapping[str, Any], value: str, unit: str, spread: Mapping[str, Any]) -> dict[str, Any]:
    row = {"part": part, "name": of["name"], "temperature": of.get("temperature"), "value": value, "unit": unit}
    row |= {key: spread.get(key) for key in ("median", "low", "high", "repetitions")}
    return {key: found for key, found in row.items() if found is not None}


def markdown(document: Document) -> str:
    """Tables for people; the spread is from the lowest to the highest of the repetitions."""
    return "\n".join("\n".join(lines) + "\n" for lines in _sections(document) if lines)


def _sections(document: Document) -> Iterator[list[str]]:
    yield _head(document)
    yield _speeds(document["runs"])
    yield _splits(document.get("split", ()), document.get("calls", {}))
    yield _made(document["runs"])
    yield _memory(document.get("memory", {}))
    yield _others(document)
    yield _ratios(document.get("ratios", {}))


def _head(document: Document) -> list[str]:
    machine, bundle, settings = document["machine"], document["bundle"], document["settings"]
    memory = f", {machine['memory'] / (1 << 30):.1f} GiB" if "memory" in machine else ""
    names = ("frcli", "llama-cpp-python", "onnxruntime", "onnxruntime-gpu")
    libraries = ", ".join(f"{name} {machine[name]}" for name in names if name in machine)
    tokens = f"{'exactly' if settings['ignore_end'] else 'at most'} {settings['tokens']} tokens each"
    return [
        f"{bundle['name']} on {machine['cpu']}, {machine['cores']} cores{memory}, {machine['system']}; {libraries}",
        "",
        f"{sum(settings['prompts'].values())} prompts, {tokens}, {settings['threads']} threads, policy "
        f"{settings['policy']}, {settings['repetitions']} repetitions; median (lowest to highest)",
    ]


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table whose columns are padded to one width; all but the first are numbers."""
    grid = [list(header), *map(list, body)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(header))]
    lines = []
    for row in grid:
        cells = [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return [lines[0], f"|{rule}|", *lines[1:]]


def _spread(value: Mapping[str, Any] | None, digits: int = 1) -> str:
    if not value:
        return ""
    median = f"{value['median']:.{digits}f}"
    return (
        median if value["repetitions"] == 1 else f"{median} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
    )


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['name']}, temperature {row['temperature']:g}" if row.get("temperature") else str(row["name"])


def _speeds(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return table(
        ["tokens per second", "prompt", "generation"],
        [[_name(run), _spread(run.get("pp")), _spread(run.get("tg"))] for run in runs],
    )


def _splits(splits: Sequence[Mapping[str, Any]], calls: Mapping[str, Any]) -> list[str]:
    if not splits:
        return []
    header = ["milliseconds a token", *(part.replace("catch_up", "(catch-up)") for part in _SPLIT)]
    lines = table(header, [[_name(row), *(f"{row[part]:.2f}" for part in _SPLIT)] for row in splits])
    alone = ", ".join(f"{name} {_spread(value, 2)}" for name, value in calls.items())
    return [*lines, "", f"One token in one call, alone, in milliseconds: {alone}", "(catch-up) is a part of experts."]


def _made(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    fused = [run for run in runs if "share" in run]
    if not fused:
        return []
    header = ["how tokens came about", "accepted", "tokens/window", "switches/100", "caught up/token", "written by"]
    body = []
    for run in fused:
        accepted = f"{run['acceptance']:.0%} of {run['proposed']}" if "acceptance" in run else "no drafts"
        shares = ", ".join(f"{name} {share:.0%}" for name, share in run["share"].items())
        numbers = (f"{run['tokens_per_window']:.2f}", f"{run['switches']:.1f}", f"{run['catch_up_tokens']:.2f}")
        body.append([_name(run), accepted, *numbers, shares])
    return table(header, body)


def _memory(memory: Mapping[str, Any]) -> list[str]:
    if not memory:
        return []
    kinds = ("adapter", "weights", "kv", "kv_held", "compute", "output", "growth")
    shown = [kind for kind in kinds if any(kind in sizes for sizes in memory["experts"].values())]
    body = [[name, *(_mib(sizes.get(kind)) for kind in shown)] for name, sizes in memory["experts"].items()]
    lines = table([f"MiB, context {memory['context']}", *shown], body)
    names = {"base": "base", "router": "router", "router_kv": "router KV at most", "target": "target"}
    names |= {"resident": "process grew by", "program": "from", "opening": "of which opening"}
    names |= {"reading_base": "reading the base", "fusing": "the router's work"}
    parts = [f"{words} {_mib(memory[name])}" for name, words in names.items() if name in memory]
    return [*lines, "", f"In MiB: {', '.join(parts)}"]


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / _MIB:.1f}"


def _others(document: Document) -> list[str]:
    lines = [f"{name}: {_spread(value, 2)} s" for name, value in document.get("start", {}).items()]
    for compared in document.get("same_tokens", {}).get("compared", ()):
        gaps = [difference["gap"] for difference in compared["differences"] if "gap" in difference]
        near = f", where their fused logits were at most {max(gaps):.3g} apart" if gaps else ""
        lines.append(f"{_name(compared)}: other tokens at {compared['differ']} of {compared['prompts']} prompts{near}")
    lines += [f"{name}: not measured, {reason}" for name, reason in document.get("skipped", {}).items()]
    return [f"- {line}" for line in lines]


def _ratios(ratios: Mapping[str, Any]) -> list[str]:
    if not ratios:
        return []
    return table(["ratio", "median (lowest to highest)"], [[name, _spread(value, 3)] for name, value in ratios.items()])
