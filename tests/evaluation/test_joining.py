"""Comparisons put together: those of parts are that of the whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from frcli.errors import DataError, UsageError
from frcli.evaluation.comparison import differences
from frcli.evaluation.joining import join
from frcli.evaluation.report import markdown

SYSTEMS = {"fusionroute": [1, 1, 0, 1], "sum": [0, 1, 0, 0], "expert:math": [0, 0, 0, 1]}


def compared(*systems: str, items: tuple[int, ...] = (1, 3, 4, 9), task: str = "frcli_gsm8k") -> dict[str, Any]:
    document: dict[str, Any] = {
        "bundle": "duo",
        "experts": ["general", "math"],
        "limit": 4,
        "seed": 5,
        "tasks": {task: {"metric": "right", "items": list(items)}},
        "groups": {},
        "systems": {
            system: {
                "tasks": {task: {"mean": sum(SYSTEMS[system]) / 4, "stderr": 0.25, "scores": SYSTEMS[system]}},
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
                "task": task,
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


def test_of_two_the_last_counts_and_speeds_of_different_runs_are_left_out() -> None:
    newer = compared("fusionroute")
    newer["systems"]["fusionroute"]["tasks"]["frcli_gsm8k"] |= {"mean": 0.5, "scores": [1, 1, 0, 0], "tokens": 80}
    newer["systems"]["fusionroute"]["tasks"]["frcli_gsm8k"] |= {"calls": 120, "timed": 8, "seconds": 2.0}
    found = join([compared("fusionroute", "sum"), newer])["systems"]["fusionroute"]
    assert (found["mean"], found["calls_per_token"], found["tokens_per_second"]) == (0.5, 1.5, None)
    head = markdown(join([compared("fusionroute", "sum"), newer])).splitlines()[0]
    assert "calls/token" in head and "tokens/s" not in head


def test_tasks_may_be_asked_in_parts() -> None:
    parts = [
        compared("fusionroute", "sum"),
        compared("sum", "fusionroute", task="frcli_mbpp", items=(0, 2, 5, 6)),
        compared("expert:math", task="frcli_mbpp", items=(0, 2, 5, 6)),
        compared("expert:math"),
    ]
    joined = join(parts)
    assert list(joined["tasks"]) == ["frcli_gsm8k", "frcli_mbpp"]
    assert list(joined["systems"]) == list(SYSTEMS)
    assert [list(result["tasks"]) for result in joined["systems"].values()] == 3 * [["frcli_gsm8k", "frcli_mbpp"]]
    assert joined["systems"]["fusionroute"]["mean"] == 0.75
    assert joined["systems"]["fusionroute"]["stderr"] == pytest.approx(0.25 / 2**0.5)
    assert joined["differences"]["sum"]["mean"][0] == -0.5
    assert [sample["task"] for sample in joined["samples"]] == ["frcli_gsm8k", "frcli_mbpp"]
    assert all(list(sample["written"]) for sample in joined["samples"])
    with pytest.raises(DataError, match="expert:math was not asked frcli_gsm8k; every policy needs every task"):
        join(parts[:3])


def test_what_asked_other_items_is_not_joined() -> None:
    with pytest.raises(DataError, match="differ in the items of frcli_gsm8k"):
        join([compared("fusionroute"), compared("sum", items=(1, 3, 4, 8))])
    with pytest.raises(DataError, match="differ in bundle"):
        join([compared("fusionroute"), compared("sum") | {"bundle": "trio"}])
