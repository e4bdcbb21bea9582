"""The formats of the results."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from frcli.bench.report import COLUMNS, render, rows, table


def spread(median: float, low: float, high: float) -> dict[str, Any]:
    return {"median": median, "low": low, "high": high, "repetitions": 3}


DOCUMENT: dict[str, Any] = {
    "machine": {"cpu": "a processor", "cores": 2, "memory": 8 << 30, "system": "Linux", "frcli": "0.1.0"},
    "bundle": {"name": "trio", "experts": ["math"], "router": "int4"},
    "settings": {
        "repetitions": 3,
        "tokens": 128,
        "ignore_end": False,
        "prompts": {"a.jsonl": 2, "b.jsonl": 1},
        "threads": 2,
        "policy": "fusionroute",
    },
    "runs": [
        {"name": "math alone", "temperature": 0.0, "pp": spread(300, 290, 310), "tg": spread(100, 90, 110)},
        {
            "name": "fused, draft auto",
            "temperature": 0.8,
            "sequences": 1,
            "tg": spread(120, 110, 130),
            "tokens": 90,
            "tokens_per_window": 2.5,
            "switches": 4.0,
            "catch_up_tokens": 1.25,
            "share": {"math": 1.0},
            "proposed": 50,
            "accepted": 45,
            "acceptance": 0.9,
        },
    ],
    "calls": {"router": spread(8.3, 8.0, 9.0)},
    "split": [
        {
            "name": "fused, draft auto",
            "temperature": 0.8,
            "draft": 0.5,
            "router": 4.0,
            "experts": 3.0,
            "catch_up": 1.0,
            "fuse": 0.1,
            "sample": 0.2,
            "rest": 0.2,
            "total": 8.0,
        }
    ],
    "memory": {
        "context": 2048,
        "sequences": 1,
        "base": 96 << 20,
        "router": 102 << 20,
        "target": 300 << 20,
        "experts": {"math": {"adapter": 6 << 20, "kv": 45 << 20, "growth": 60 << 20}},
    },
    "start": {"frcli --help": spread(0.1, 0.09, 0.12)},
    "same_tokens": {
        "reference": "fused, draft off",
        "compared": [
            {
                "name": "fused, draft auto",
                "temperature": 0.8,
                "prompts": 3,
                "answers": 9,
                "differ": 1,
                "differences": [{"prompt": 2, "at": 17, "gap": 0.0123, "shift": 0.01}],
            }
        ],
    },
    "skipped": {"idle_experts": "there is too little memory"},
    "ratios": {"overhead": spread(0.96, 0.95, 0.97)},
}


def test_json_is_the_document() -> None:
    assert json.loads(render(DOCUMENT, "json")) == DOCUMENT


def test_json_lines_and_csv_have_a_row_for_each_number() -> None:
    lines = [json.loads(line) for line in render(DOCUMENT, "jsonl").splitlines()]
    assert lines == list(rows(DOCUMENT))
    table = list(csv.DictReader(io.StringIO(render(DOCUMENT, "csv"))))
    assert len(table) == len(lines)
    for row, line in zip(table, lines, strict=True):
        assert list(row) == list(COLUMNS)
        assert {key: value for key, value in row.items() if value} == {k: str(v) for k, v in line.items() if v != ""}
    assert lines[0] == {
        "part": "runs",
        "name": "math alone",
        "temperature": 0.0,
        "value": "pp",
        "unit": "tokens/s",
        "median": 300,
        "low": 290,
        "high": 310,
        "repetitions": 3,
    }
    found = {(line["part"], line["name"], line["value"]): line["median"] for line in lines}
    assert found["runs", "fused, draft auto", "acceptance"] == 0.9
    assert found["split", "fused, draft auto", "catch_up"] == 1.0
    assert found["memory", "math", "growth"] == 60 << 20
    assert found["memory", "trio", "target"] == 300 << 20
    assert found["same_tokens", "fused, draft auto", "differ"] == 1
    assert found["ratios", "overhead", "ratio"] == 0.96
    assert len(found) == len(lines)


def test_tables_are_aligned() -> None:
    lines = table(["name", "x"], [["a", "1.5"], ["longer", "10.5"]])
    assert lines == ["| name   |    x |", "|--------|-----:|", "| a      |  1.5 |", "| longer | 10.5 |"]


def test_markdown_shows_each_part() -> None:
    text = render(DOCUMENT, "md")
    for shown in (
        "trio on a processor, 2 cores, 8.0 GiB, Linux; frcli 0.1.0",
        "3 prompts, at most 128 tokens each, 2 threads, policy fusionroute, 3 repetitions",
        "| 300.0 (290.0 to 310.0) |  100.0 (90.0 to 110.0) |",
        "| fused, draft auto, temperature 0.8 |                        | 120.0 (110.0 to 130.0) |",
        "90% of 50",
        "One token in one call, alone, in milliseconds: router 8.30 (8.00 to 9.00)",
        "|     6.0 | 45.0 |   60.0 |",
        "In MiB: base 96.0, router 102.0, target 300.0",
        "- frcli --help: 0.10 (0.09 to 0.12) s",
        "other tokens at 1 of 3 prompts, where their fused logits were at most 0.0123 apart",
        "- idle_experts: not measured, there is too little memory",
        "0.960 (0.950 to 0.970)",
    ):
        assert shown in text, shown
    assert text.endswith("|\n")
    assert "\n\n\n" not in text


def test_markdown_of_a_small_document() -> None:
    small = {key: DOCUMENT[key] for key in ("machine", "bundle", "settings", "runs")}
    small["runs"] = DOCUMENT["runs"][:1]
    text = render(small, "md")
    assert text.count("\n|---") == 1
    assert "catch" not in text and "In MiB" not in text
