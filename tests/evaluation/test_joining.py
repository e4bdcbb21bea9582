"""Comparisons put together: those of parts are that of the whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from frcli.errors import DataError, UsageError
from frcli.evaluation.comparison import differences
from frcli.evaluation.joining import join

SYSTEMS = {"fusionroute": [1, 1, 0, 1], "sum": [0, 1, 0, 0], "expert:math": [0, 0, 0, 1]}


def compared(*systems: str, items: tuple[int, ...] = (1, 3, 4, 9)) -> dict[str, Any]:
    document: dict[str, Any] = {
        "bundle": "duo",
        "experts": ["general", "math"],
        "limit": 4,
        "seed": 5,
        "tasks": {"frcli_gsm8k": {"metric": "right", "items": list(items)}},
        "groups": {},
        "systems": {
            system: {
                "tasks": {"frcli_gsm8k": {"mean": sum(SYSTEMS[system]) / 4, "stderr": 0.25, "scores": SYSTEMS[system]}},
                "mean": sum(SYSTEMS[system]) / 4,
                "stderr": 0.25,
                "tokens_per_second": None,
                "calls_per_token": None,
            }
            for system in systems
        },
        "against": systems[0],
        "samples": [
            {
                "task": "frcli_gsm8k",
                "doc": 3,
                "prompt": "2 and 2?",
                "answer": "4",
                "written": {system: {"score": 1.0, "tokens": [[system, ["math"], None]]} for system in systems},
            }
        ],
    }
    document["differences"] = differences(document, systems[0], document["seed"])
    return document


def test_parts_are_the_whole() -> None:
    parts = [compared("fusionroute"), compared("sum", "expert:math")]
    before = copy.deepcopy(parts)
    assert join(parts) == compared(*SYSTEMS)
    assert parts == before
    assert join([compared(*SYSTEMS)]) == compared(*SYSTEMS)


def test_differences_are_from_whom_one_wants() -> None:
    joined = join([compared("fusionroute"), compared("sum")], against="sum")
    assert joined["differences"]["fusionroute"]["frcli_gsm8k"][0] == 0.5
    assert set(joined["differences"]) == {"fusionroute"}
    with pytest.raises(UsageError, match="dlf is not compared; the policies are fusionroute, sum"):
        join([compared("fusionroute"), compared("sum")], against="dlf")


def test_of_two_the_last_counts() -> None:
    newer = compared("fusionroute")
    newer["systems"]["fusionroute"]["tokens_per_second"] = 9.5
    assert join([compared("fusionroute", "sum"), newer])["systems"]["fusionroute"]["tokens_per_second"] == 9.5


def test_what_asked_other_items_is_not_joined() -> None:
    with pytest.raises(DataError, match="differ in tasks"):
        join([compared("fusionroute"), compared("sum", items=(1, 3, 4, 8))])
    with pytest.raises(DataError, match="differ in bundle"):
        join([compared("fusionroute"), compared("sum") | {"bundle": "trio"}])
