"""Where answers differ, and by how little: against rows that are computed here."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from frcli.bench.engines import Engines
from frcli.bench.measure import Measured
from frcli.bench.plan import Plan, Prompt
from frcli.bench.recording import Recording
from frcli.bench.same import compare, explain, first_difference
from frcli.bundle import Bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling
from frcli.fusion.route import FusionRoute
from frcli.sources.source import Feed

PROMPT = [1, 20, 30, 40, 50, 60, 70]
GREEDY = Sampling(temperature=0, logit_bias={0: float("-inf"), 2: float("-inf")})


def test_the_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([], []) is None


def written(engine: Engine, tokens: int = 40) -> list[int]:
    found: list[int] = []
    engine.write(PROMPT, GREEDY, max_tokens=tokens, on_step=lambda step: found.append(step.token)).run()
    return found


@pytest.fixture(scope="module")
def pair(trio: Bundle) -> Iterator[tuple[Engine, Engine]]:
    """Two engines whose answers differ for sure: another gamma is a coarse stand-in for another rounding."""
    with (
        Engine(trio, Options(threads=1, draft="off", gamma=0.5)) as one,
        Engine(trio, Options(threads=1, draft="off", gamma=4.0)) as two,
    ):
        yield one, two


def row(engine: Engine, prefix: list[int]) -> np.ndarray:  # type: ignore[type-arg]
    """The fused row after a text, read in one go by every source: equation 1 with the mean."""
    policy = engine.policy
    assert engine.router is not None and isinstance(policy, FusionRoute)
    engine.router.rewind(0, 0)
    (routed,) = engine.router.extend([Feed(0, prefix, 1)])
    assert routed.weights is not None
    source = engine.expert(policy.experts[int(np.argmax(routed.weights[-1]))])
    source.rewind(0, 0)
    (rows,) = source.extend([Feed(0, prefix, 1)])
    mixed = (rows.logits[-1] + policy.gamma * routed.logits[-1]) / (1 + policy.gamma)
    return np.asarray(mixed)


def test_gap_and_shift_are_those_of_the_fused_rows(pair: tuple[Engine, Engine]) -> None:
    one, two = pair
    first, second = written(one), written(two)
    at = first_difference(first, second)
    assert at is not None
    found = explain(one, lambda: two, PROMPT, GREEDY, first, second)
    a, b = first[at], second[at]
    before, after = row(one, PROMPT + first[:at]), row(two, PROMPT + first[:at])
    assert found["at"] == at
    assert found["gap"] == pytest.approx(float(before[a] - before[b]), abs=1e-3)
    assert found["gap"] > 0  # greedy: the token that was taken has the larger logit
    shift = max(abs(before[a] - after[a]), abs(before[b] - after[b]))
    assert found["shift"] == pytest.approx(float(shift), abs=1e-3)
    assert (one.policy.name, two.policy.name) == ("fusionroute", "fusionroute")
    assert written(one) == first  # the policy is the engine's own again


def test_an_answer_that_is_only_longer_has_no_gap(pair: tuple[Engine, Engine]) -> None:
    first = written(pair[0])
    assert explain(pair[0], None, PROMPT, GREEDY, first, first[:10]) == {"at": 10}


def test_without_the_other_engine_there_is_no_shift(pair: tuple[Engine, Engine]) -> None:
    first, second = written(pair[0]), written(pair[1])
    assert set(explain(pair[0], None, PROMPT, GREEDY, first, second)) == {"at", "gap"}


def recorded(tokens: list[int]) -> Recording:
    from recordings import recording, step

    return recording({0: len(PROMPT)}, [(0.1, [(0, step(token))]) for token in tokens])


def test_prompts_are_counted_once_and_answers_each(trio: Bundle, pair: tuple[Engine, Engine]) -> None:
    first, second = written(pair[0]), written(pair[1])
    measured = Measured(
        fused={
            ("off", 0.0): [[recorded(first)], [recorded(first)], [recorded(first)]],
            ("auto", 0.0): [[recorded(first)], [recorded(second)], [recorded(second)]],
        },
        batch={(4, 0.0): [[recorded(first)], [recorded(first)], [recorded(first)]]},
    )
    plan = Plan(repetitions=3, sequences=(4,), ignore_end=True)
    prompts = [Prompt(tuple(PROMPT))]
    with Engines(trio, Options(threads=1, gamma=0.5), prompts[0], roomy=True) as engines:
        found = compare(engines, plan, prompts, measured)
    assert found["reference"] == "fused, draft off"
    drafted, batch = found["compared"]
    assert (drafted["name"], drafted["prompts"], drafted["answers"], drafted["differ"]) == (
        "fused, draft auto",
        1,
        3,
        1,
    )
    (difference,) = drafted["differences"]
    assert (difference["prompt"], difference["at"]) == (0, first_difference(first, second))
    assert (batch["name"], batch["differ"], batch["differences"]) == ("4 at once, draft auto", 0, [])


def test_nothing_to_compare() -> None:
    measured = Measured(fused={("off", 0.0): [[recorded([1, 2])]]})
    assert compare(None, Plan(sequences=()), [Prompt((1,))], measured) == {}  # type: ignore[arg-type]
