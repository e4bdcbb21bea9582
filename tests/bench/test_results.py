"""The ratios, worked out by hand from what was measured."""

from __future__ import annotations

from typing import Any

import pytest
from recordings import plain, recording, step

from frcli.bench.measure import Measured
from frcli.bench.peers import BareRun, LlamaBench
from frcli.bench.plan import Plan
from frcli.bench.results import busiest, calls, ratios, runs, splits
from frcli.decode.stopwatch import Timings


def bare(call: float, token: float, tokens: int = 5) -> BareRun:
    """A text of ``tokens`` tokens, each after the first in ``token`` seconds, of which the call took ``call``."""
    calls = [call] * (tokens - 1)
    return BareRun(20, list(range(tokens)), first=2.0, generation=token * (tokens - 1), calls=calls)


def measured() -> Measured:
    """Two repetitions: two experts of 8 and 10 ms, a router of 6 ms; in the second one everything takes twice as long.

    Without drafts a token takes 20 ms, with drafts two of them 25.
    """
    made = Measured()
    for slow in (1, 2):
        made.bare.setdefault(("general", 0.0), []).append([bare(0.008 * slow, 0.009 * slow)])
        made.bare.setdefault(("math", 0.0), []).append([bare(0.010 * slow, 0.012 * slow)])
        made.router.append(bare(0.006 * slow, 0.006 * slow))
        fused = recording(
            {0: 40},
            [(1.0 * slow, [(0, step(expert="math"))])]
            + [(0.020 * slow, [(0, step(expert=name, timings=Timings()))]) for name in ("math", "math", "general")],
        )
        windows = [Timings(), Timings()]
        drafted = recording(
            {0: 40},
            [(1.0 * slow, [(0, step())])]
            + [(0.025 * slow, [(0, step(timings=w, proposed=1)), (0, step(timings=w, drafted=True))]) for w in windows],
        )
        made.fused.setdefault(("off", 0.0), []).append([fused])
        made.fused.setdefault(("auto", 0.0), []).append([drafted])
        made.idle.setdefault(2, []).append(0.020 * slow)
        made.idle.setdefault(8, []).append(0.021 * slow)
    return made


PLAN = Plan(repetitions=2, sequences=())


def value(found: dict[str, Any], name: str) -> float:
    assert found[name]["repetitions"] == 2
    assert found[name]["low"] == pytest.approx(found[name]["median"]) == pytest.approx(found[name]["high"])
    return float(found[name]["median"])


def test_ratios_by_hand() -> None:
    found = ratios(measured(), PLAN)
    # The limit: 6 + 10 for two tokens of math, 6 + 8 for one of general, 46 ms for what took 60.
    assert value(found, "overhead") == pytest.approx(46 / 60, rel=1e-5)
    assert value(found, "overhead_without_catch_up") == pytest.approx(46 / 60, rel=1e-5)
    # 80 tokens/s with drafts, 50 without.
    assert value(found, "draft_vs_fused") == pytest.approx(1.6)
    # Four tokens were written, three by math in 12 ms each alone, one by general in 9: 4 in 45 ms.
    assert value(found, "draft_vs_expert") == pytest.approx(80 * 0.045 / 4)
    assert value(found, "draft_vs_fastest_expert") == pytest.approx(80 * 0.009)
    assert value(found, "idle_experts") == pytest.approx(1.05)
    assert set(found) == {
        *("overhead", "overhead_without_catch_up", "draft_vs_fused", "draft_vs_expert", "draft_vs_fastest_expert"),
        "idle_experts",
    }


def test_catch_up_counts_in_what_it_took_and_not_in_the_limit() -> None:
    made = measured()
    for slow, recordings in zip((1, 2), made.fused["off", 0.0], strict=True):
        usual, late = Timings(experts=0.010 * slow), Timings(experts=0.040 * slow)
        turns = [(1.0, [(0, step())]), (0.020 * slow, [(0, step(timings=usual))])]
        recordings[:] = [recording({0: 40}, [*turns, (0.050 * slow, [(0, step(timings=late, read=11))])])]
    found = ratios(made, PLAN)
    assert value(found, "overhead") == pytest.approx(32 / 70, rel=1e-5)
    assert value(found, "overhead_without_catch_up") == pytest.approx(32 / 40, rel=1e-5)


def test_what_was_not_measured_is_not_there() -> None:
    made = measured()
    made.idle.clear()
    made.router.clear()
    found = ratios(made, Plan(repetitions=2, sequences=(), draft="off"))
    assert found == {}


def test_without_a_router_the_limit_is_the_expert_alone() -> None:
    made = measured()
    made.router.clear()
    for recordings in made.fused["off", 0.0]:
        turns = [(1.0, [(0, step(weights=None))]), (0.016, [(0, step(weights=None, timings=Timings()))])]
        recordings[:] = [recording({0: 40}, turns)]
    found = ratios(made, PLAN)["overhead"]
    assert (found["low"], found["high"]) == (10 / 16, 20 / 16)


def test_batches_are_compared_with_one_at_a_time() -> None:
    made = measured()
    for slow in (1, 2):
        pair = Timings()
        both = [(1.0, [(0, step(timings=pair)), (1, step(timings=pair))])]
        later = Timings()
        both.append((0.025 * slow, [(0, step(timings=later)), (1, step(timings=later))]))
        made.batch.setdefault((1, 0.0), []).append([plain([1.0, 0.020 * slow])])
        made.batch.setdefault((2, 0.0), []).append([recording({0: 40, 1: 40}, both)])
    assert value(ratios(made, PLAN), "batch2_vs_1") == pytest.approx(80 / 50)
    row = next(run for run in runs(made, PLAN) if run["name"] == "2 at once, draft auto")
    assert row["tg"]["each"] == pytest.approx([80, 40])
    assert row["whole"]["high"] == pytest.approx(4 / 1.025, rel=1e-5)
    assert "pp" not in row


def test_a_second_temperature_has_ratios_of_its_own() -> None:
    made = measured()
    for table in (made.fused, made.bare):
        for (name, _), repetitions in list(table.items()):  # type: ignore[attr-defined]
            table[name, 0.8] = repetitions  # type: ignore[index]
    found = ratios(made, Plan(repetitions=2, sequences=(), temperatures=(0.0, 0.8)))
    assert found["draft_vs_fused@0.8"] == found["draft_vs_fused"]
    assert found["overhead@0.8"] == found["overhead"]


def test_runs_calls_and_split() -> None:
    made = measured()
    made.peer += [LlamaBench(100, 50, "1 (a)", 2, "tiny"), LlamaBench(90, 40, "1 (a)", 2, "tiny")]
    by_name = {run["name"]: run for run in runs(made, PLAN)}
    assert list(by_name) == [
        "general alone",
        "math alone",
        "fused, draft off",
        "fused, draft auto",
        "llama-bench (base)",
    ]
    assert by_name["math alone"]["tg"]["each"] == pytest.approx([1 / 0.012, 1 / 0.024], rel=1e-5)
    assert by_name["math alone"]["pp"]["median"] == 10.0
    assert by_name["fused, draft off"]["pp"]["each"] == [40.0, 20.0]
    assert by_name["llama-bench (base)"]["tg"] == {
        "median": 45.0,
        "low": 40.0,
        "high": 50.0,
        "repetitions": 2,
        "each": [50.0, 40.0],
    }
    assert calls(made)["router"]["median"] == pytest.approx(9.0)
    assert calls(made)["math"]["low"] == pytest.approx(10.0)
    fused, drafted = splits(made, PLAN)
    assert (fused["name"], fused["total"]) == ("fused, draft off", 20.0)  # the lower one of two medians
    assert (drafted["name"], drafted["total"]) == ("fused, draft auto", 12.5)


def test_the_busiest_two_of_the_experts() -> None:
    experts = ("code", "general", "math")
    assert busiest(measured(), PLAN, experts) == ["math", "general"]
    only = measured()
    for recordings in only.fused["off", 0.0]:
        recordings[:] = [plain([1.0, 0.1], "general")]
    assert busiest(only, PLAN, experts) == ["general", "code"]
