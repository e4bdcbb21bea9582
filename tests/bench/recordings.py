"""Recordings made by hand: what a decoder would have given, with times that one can add up in one's head."""

from __future__ import annotations

from collections.abc import Sequence

from frcli.bench.recording import Event, Recording
from frcli.decode.loop import Step
from frcli.decode.stopwatch import Timings


def step(
    token: int = 1,
    expert: str = "math",
    timings: Timings = Timings(),  # noqa: B008 - frozen
    *,
    read: int = 1,
    proposed: int = 0,
    drafted: bool = False,
    weights: tuple[float, ...] | None = (1.0, 0.0),
) -> Step:
    return Step(token, (expert,), weights, read, timings, proposed, drafted)


def recording(prompts: dict[int, int], turns: Sequence[tuple[float, Sequence[tuple[int, Step]]]]) -> Recording:
    """Each turn is the seconds that it took and its tokens as (prompt, step); the clock starts at 100."""
    made = Recording(prompts, began=100.0)
    now = 100.0
    for seconds, tokens in turns:
        now += seconds
        made.events += [Event(now, prompt, one) for prompt, one in tokens]
    made.ended = now
    return made


def plain(seconds: Sequence[float], expert: str = "math", prompt: int = 10, experts: float = 0.0) -> Recording:
    """One answer without drafts: a token for each number of seconds, of which ``experts`` are spent in the expert."""
    turns = [(s, [(0, step(i, expert, Timings(experts=experts)))]) for i, s in enumerate(seconds)]
    return recording({0: prompt}, turns)
