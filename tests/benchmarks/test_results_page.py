"""The page of results against numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from results import Results, page

SPEC = """
title = "two"
shipped = "both"
text = "Made by hand."
tried = "Everything."
domains = { math = "one" }

[[system]]
name = "one"
kind = "expert"
nll = ["nll.json", "one"]
tasks = ["tasks.json", "expert:one"]

[[system]]
name = "both"
kind = "fused"
nll = ["nll.json", "fused 0.5"]
tasks = ["tasks.json", "fusionroute"]
speed = ["bench.json", "fused, draft auto"]
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "spec.toml").write_text(SPEC)
    files = {
        "a": {"column": "math", "nll": {"one": 0, "fused 0.5": 0}, "each": [[2, [4.0, 3.0]], [2, [8.0, 6.0]]]},
        "b": {"column": "math", "nll": {"one": 0, "fused 0.5": 0}, "each": [[4, [8.0, 7.0]]]},
        "c": {"column": "code", "nll": {"one": 0, "fused 0.5": 0}, "each": [[1, [2.0, 1.5]]] * 40},
    }
    columns = {"math": {"accepted": {"fused 0.5": 0.8}}, "code": {"accepted": {"fused 0.5": 0.6}}}
    (tmp_path / "nll.json").write_text(json.dumps({"files": files, "columns": columns}))
    systems: dict[str, dict[str, Any]] = {
        "expert:one": {"tasks": {"frcli_x": {"scores": [0.0, 1.0] * 20}}},
        "fusionroute": {"tasks": {"frcli_x": {"scores": [0.0, 1.0, 1.0, 0.0] * 10}}},
    }
    speeds = {"expert:one": (40.0, 1.0), "fusionroute": (20.26, 1.234)}
    for name, (speed, calls_per_token) in speeds.items():
        systems[name] |= {"tokens_per_second": speed, "calls_per_token": calls_per_token}
    (tmp_path / "tasks.json").write_text(json.dumps({"systems": systems}))
    runs = [{"name": "fused, draft auto", "temperature": 0.0, "tg": {"median": 31.4}, "acceptance": 0.69}]
    calls, ratios = {"router": {"median": 8.26}}, {"draft_vs_expert": {"median": 0.561}}
    (tmp_path / "bench.json").write_text(json.dumps({"runs": runs, "calls": calls, "ratios": ratios}))
    return tmp_path / "spec.toml"


def test_differences_weigh_columns_alike_and_tokens_within_them(spec: Path) -> None:
    results = Results(spec)
    mean, low, high = results.difference(results.systems[0], "nll")
    assert mean == pytest.approx(((1 + 2 + 1) / 8 + 0.5) / 2)
    assert 0 < low <= mean <= high
    mean, low, high = results.difference(results.systems[0], "tasks")
    assert mean == 0 and low < 0 < high


def test_the_page_says_what_was_met_and_what_was_not(spec: Path) -> None:
    text = page(Results(spec))
    assert "| one | 2.500 | 2.000 | 2.250 | **+0.500 (" in text
    assert "| both | **2.000** | **1.500** | **1.750** |  |" in text
    assert "| one | **0.500** | **0.500** | +0.000 (" in text
    assert "| one |  | 40.0 | 1.00 |  |  |  |  |" in text
    assert "| both | 70.0% | 20.3 | 1.23 | 69% | 8.3 | 31.4 | 0.56 |" in text
    assert "A lower mean NLL than every expert and baseline, the interval without zero: **met**" in text
    assert "A higher mean accuracy than every expert and baseline, the interval without zero: **missed**" in text
    assert "within 3 % of the domain's own expert: **met** (math -20.0%)" in text
    assert "drafts accepted: **missed** (69%)" in text
    assert text.endswith("## What was tried\n\nEverything.\n")
