"""Speeds, the split of a token's cost and the counts, from recordings made by hand."""

from __future__ import annotations

import pytest
from recordings import plain, recording, step

from frcli.bench.recording import catch_up, counts, generating, prompt_rate, rate, split, turns
from frcli.decode.stopwatch import Timings


def test_a_step_is_what_shares_one_timings_object() -> None:
    first, second = Timings(router=1.0), Timings(router=1.0)  # equal, but two steps
    made = recording(
        {0: 5, 1: 7},
        [
            (2.0, [(0, step(1, timings=first)), (0, step(2, timings=first)), (1, step(3, timings=first))]),
            (0.5, [(0, step(4, timings=second)), (1, step(5, timings=second))]),
        ],
    )
    one, two = turns(made)
    assert (one.seconds, len(one.steps), one.prompts, one.begun) == (2.0, 3, {0, 1}, {0, 1})
    assert (two.seconds, len(two.steps), two.prompts, two.begun) == (0.5, 2, {0, 1}, set())
    assert made.tokens(0) == [1, 2, 4]


def test_generation_begins_after_the_step_that_read_the_prompt() -> None:
    made = plain([2.0, 0.25, 0.25, 0.5], prompt=30)
    assert rate(generating([made])) == 3.0
    assert prompt_rate([made]) == 15.0


def test_drafts_of_the_step_that_read_the_prompt_are_no_generation() -> None:
    opening, second = Timings(), Timings()
    made = recording(
        {0: 30},
        [
            (2.0, [(0, step(1, timings=opening, proposed=1)), (0, step(2, timings=opening, drafted=True))]),
            (0.5, [(0, step(3, timings=second)), (0, step(4, timings=second)), (0, step(5, timings=second))]),
        ],
    )
    assert rate(generating([made])) == 6.0


def test_an_answer_of_one_step_has_no_speed_of_generation() -> None:
    assert rate(generating([plain([2.0])])) is None
    assert split(generating([plain([2.0])])) is None


def test_many_at_once_count_while_all_are_busy_and_no_prompt_is_read() -> None:
    def turn(seconds: float, *prompts: int) -> tuple[float, list[tuple[int, object]]]:
        timings = Timings()
        return seconds, [(prompt, step(timings=timings)) for prompt in prompts]

    made = recording(
        {0: 5, 1: 5, 2: 5},
        [turn(3.0, 0, 1), turn(1.0, 0, 1), turn(3.0, 2, 1), turn(0.5, 2, 1), turn(0.25, 2)],  # type: ignore[list-item]
    )
    assert [t.seconds for t in generating([made], 2)] == [1.0, 0.5]
    assert rate(generating([made], 2)) == pytest.approx(4 / 1.5)


def test_the_split_adds_up_to_the_time_on_the_wall() -> None:
    window = Timings(draft=0.001, router=0.004, experts=0.005, fuse=0.0005, sample=0.0005)
    made = recording(
        {0: 9},
        [
            (1.0, [(0, step(timings=Timings()))]),
            (0.024, [(0, step(timings=window, proposed=1, drafted=True)), (0, step(timings=window))]),
        ],
    )
    parts = split(generating([made]))
    assert parts is not None
    assert parts == pytest.approx(
        {
            "draft": 1,
            "router": 4,
            "experts": 5,
            "fuse": 0.5,
            "sample": 0.5,
            "rest": 1,
            "total": 12,
            "catch_up": 0,
        },
        abs=1e-5,
    )
    assert sum(value for part, value in parts.items() if part not in ("total", "catch_up")) == pytest.approx(12)


def test_catch_up_is_what_a_step_takes_beyond_others_of_its_kind() -> None:
    def turn(experts: float, read: int = 1) -> tuple[float, list[tuple[int, object]]]:
        return 0.1, [(0, step(timings=Timings(experts=experts), read=read))]

    made = recording({0: 9}, [turn(5.0, 9), turn(0.010), turn(0.012), turn(0.011), turn(0.031, read=7)])  # type: ignore[list-item]
    assert catch_up(generating([made])) == pytest.approx(0.020)


def test_catch_up_without_anything_to_compare_with_is_its_share_of_the_tokens() -> None:
    window = Timings(experts=0.010)
    made = recording(
        {0: 9},
        [
            (0.1, [(0, step())]),
            (0.1, [(0, step(timings=window, read=7, proposed=1)), (0, step(timings=window, drafted=True))]),
        ],
    )
    # 6 tokens behind and 2 in the window; the window took 0.020 s in experts, 0.010 for each of its two tokens.
    assert catch_up(generating([made])) == pytest.approx(0.020 * 6 / 8)


def test_counts() -> None:
    opening, window, alone = Timings(), Timings(), Timings()
    made = recording(
        {0: 9},
        [
            (0.1, [(0, step(expert="math", timings=opening, read=9))]),
            (
                0.1,
                [
                    (0, step(expert="math", timings=window, proposed=3, drafted=True)),
                    (0, step(expert="code", timings=window, drafted=True, read=10)),
                    (0, step(expert="math", timings=window)),
                ],
            ),
            (0.1, [(0, step(expert="math", timings=alone))]),
        ],
    )
    assert counts([made]) == {
        "tokens": 5,
        "tokens_per_window": pytest.approx(5 / 3, rel=1e-5),
        "switches": 40.0,
        "catch_up_tokens": pytest.approx(9 / 5),
        "share": {"code": 0.2, "math": 0.8},
        "proposed": 3,
        "accepted": 2,
        "acceptance": pytest.approx(2 / 3, rel=1e-5),
    }


def test_without_drafts_there_is_no_acceptance() -> None:
    assert "acceptance" not in counts([plain([1.0, 1.0])])
    assert counts([]) == {"tokens": 0}
