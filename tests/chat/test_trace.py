"""Traces: a line for each token, and the ranks that it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frcli.chat.trace import Trace
from frcli.decode.loop import Step
from frcli.decode.stopwatch import Timings
from frcli.fusion.policy import ROUTER

OWN = np.array([4.0, 3.0, 2.0, 1.0], np.float32)
FUSED = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


def step(token: int, **more: Any) -> Step:
    given: dict[str, Any] = {"experts": ("math",), "weights": (0.5, 2.0), "read": 1, "timings": Timings(), **more}
    return Step(token, **given)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def traced(path: Path) -> Trace:
    return Trace(path, ("general", "math"), lambda token: bytes([97 + token]))


def test_a_line_says_how_far_the_router_raised_the_token(tmp_path: Path) -> None:
    trace = traced(tmp_path / "sub" / "trace.jsonl")
    trace.begin()
    trace.see({"math": OWN, ROUTER: FUSED}, FUSED)
    trace.step(step(2, drafted=True, proposed=3, finish="eos"))
    trace.end()
    (line,) = lines(trace.path)
    assert line == {
        "answer": 1,
        "index": 0,
        "token": 2,
        "text": "c",
        "experts": ["math"],
        "weights": {"general": 0.5, "math": 2.0},
        "margin": pytest.approx(1.5),
        "rank": 2,
        "expert_rank": 3,
        "rank_change": 1,
        "drafted": True,
        "proposed": 3,
        "read": 1,
        "finish": "eos",
    }


def test_rows_are_copied_since_models_use_their_memory_again(tmp_path: Path) -> None:
    trace = traced(tmp_path / "trace.jsonl")
    trace.begin()
    row, fused = OWN.copy(), FUSED.copy()
    for _ in range(2):  # two positions of one window are fused before the first step is seen
        trace.see({"math": row, ROUTER: fused}, fused)
    row[:] = fused[:] = 0
    for token in (0, 3):
        trace.step(step(token))
    trace.end()
    assert [(line["rank"], line["expert_rank"]) for line in lines(trace.path)] == [(4, 1), (1, 4)]


def test_what_a_policy_does_not_have_is_null(tmp_path: Path) -> None:
    trace = traced(tmp_path / "trace.jsonl")
    trace.begin()
    trace.see({"general": OWN, "math": OWN}, FUSED)
    trace.step(step(1, experts=("general", "math"), weights=None))
    trace.end()
    (line,) = lines(trace.path)
    assert (line["weights"], line["margin"], line["expert_rank"], line["rank_change"]) == (None, None, None, None)


def test_an_answer_that_was_stopped_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    trace = traced(tmp_path / "trace.jsonl")
    for _ in range(2):
        trace.begin()
        for _ in range(2):
            trace.see({"math": OWN, ROUTER: FUSED}, FUSED)
        trace.step(step(1))  # the step of the second fusion never comes
        trace.end()
    assert [(line["answer"], line["index"], line["rank"]) for line in lines(trace.path)] == [(1, 0, 3), (2, 0, 3)]
