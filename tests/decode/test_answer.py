"""What an answer says of its speed, by a clock that only moves when the test says so."""

from __future__ import annotations

import pytest

from frcli.decode import answer
from frcli.decode.answer import Transcript
from frcli.decode.loop import Step
from frcli.decode.stopwatch import Timings


@pytest.mark.parametrize(
    ("windows", "speed"),
    [([3], 0.0), ([1, 1], 40.0), ([4, 1], 40.0), ([4, 4, 4], 160.0)],  # a window takes 25 ms
)
def test_tokens_that_came_with_the_first_one_do_not_count(
    windows: list[int], speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(answer.time, "perf_counter", lambda: now)
    transcript = Transcript(lambda token: b"x", 5)
    for tokens in windows:
        now += 0.025
        timings = Timings()
        for _ in range(tokens):
            transcript.push(Step(1, ("math",), None, 1, timings))
    found = transcript.answer()
    assert (found.first_token, found.first_tokens) == (0.025, windows[0])
    assert found.tokens_per_second == pytest.approx(speed)
