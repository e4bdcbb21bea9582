"""Probabilities of known texts: against the policy's own rows, computed token by token from the same fakes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from fakes import FakeSource, random_rows

from frcli.bundle import Bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Decoder
from frcli.decode.scoring import Likelihood, score_many
from frcli.errors import ContextError, UsageError
from frcli.fusion.mixture import UniformSum
from frcli.fusion.policy import Policy
from frcli.fusion.route import FusionRoute, OneExpert

WIDTH, END = 40, 0
EXPERTS = ("a", "b")
MAKERS = {"a": random_rows(WIDTH, 0), "b": random_rows(WIDTH, 1)}
ROUTER, WEIGHTS = random_rows(WIDTH, 2), random_rows(2, 3)


class Parts:
    """What a batch needs of an engine, on fakes."""

    def __init__(self, policy: Policy, sequences: int, context: int = 400) -> None:
        self.sequences = sequences
        self.sources = {name: FakeSource(WIDTH, make, sequences=sequences) for name, make in MAKERS.items()}
        self.router = FakeSource(WIDTH, ROUTER, sequences=sequences, weights=WEIGHTS)
        self.decoder = Decoder(
            policy,
            expert=self.sources.__getitem__,
            router=self.router,
            is_end=lambda token: token == END,
            width=WIDTH,
            context=context,
        )


def expected(policy: Policy, prompt: Sequence[int], tokens: Sequence[int]) -> Likelihood:
    prefix, logprob, greedy = list(prompt), 0.0, True
    for token in tokens:
        weights = WEIGHTS(prefix) if policy.drafter else None
        rows = {name: MAKERS[name](prefix) for name in policy.choose(weights)}
        if policy.drafter:
            rows["router"] = ROUTER(prefix)
        row = policy.fuse(rows).astype(np.float64)
        logprob += row[token] - math.log(np.exp(row).sum())
        greedy = greedy and int(row.argmax()) == token
        prefix.append(token)
    return Likelihood(pytest.approx(logprob, rel=1e-5), greedy)


def texts(seed: int) -> list[tuple[list[int], list[int]]]:
    random = np.random.default_rng(seed)
    prompts = [random.integers(1, WIDTH, size=n).tolist() for n in (1, 30, 7)]
    return [
        (prompts[i % 3], random.integers(0, WIDTH, size=n).tolist()) for i, n in enumerate((1, 5, 150, 2, 64, 65, 9))
    ]


@pytest.mark.parametrize("sequences", [1, 2, 5])
@pytest.mark.parametrize("policy", [FusionRoute(EXPERTS, 0.5), OneExpert("b"), UniformSum(EXPERTS)])
def test_likelihoods_are_those_of_the_rows(policy: Policy, sequences: int) -> None:
    requests = texts(1)
    got = dict(score_many(Parts(policy, sequences), requests))
    assert got == {i: expected(policy, *request) for i, request in enumerate(requests)}


def test_a_text_that_the_policy_would_write_is_greedy() -> None:
    policy, prompt, text = OneExpert("a"), [5, 6], []
    for _ in range(4):
        text.append(int(MAKERS["a"]([*prompt, *text]).argmax()))
    parts = Parts(policy, 1)
    results = dict(score_many(parts, [(prompt, text), (prompt, [*text[:3], (text[3] + 1) % WIDTH])]))
    assert [results[0].greedy, results[1].greedy] == [True, False]


def test_a_prompt_with_several_options_is_read_once() -> None:
    prompt = list(range(1, 31))
    parts = Parts(OneExpert("a"), 4)
    list(score_many(parts, [(prompt, [token, 3]) for token in range(1, 9)]))
    read = sum(len(tokens) for call in parts.sources["a"].calls for _, tokens, _ in call)
    assert read < 4 * len(prompt)  # eight options of two tokens in four sequences


def test_only_experts_that_a_text_needs_are_run() -> None:
    parts = Parts(FusionRoute(EXPERTS, 1.0), 1)
    tokens = [7, 8, 9]
    prompt = [1]
    needed = {EXPERTS[int(WEIGHTS([*prompt, *tokens[:i]]).argmax())] for i in range(3)}
    list(score_many(parts, [(prompt, tokens)]))
    assert {name for name, source in parts.sources.items() if source.calls} == needed


def test_what_cannot_be_scored_is_refused() -> None:
    for request in ([], [1]), ([1], []):
        with pytest.raises(UsageError, match="empty"):
            list(score_many(Parts(OneExpert("a"), 1), [request]))
    with pytest.raises(ContextError, match="11 tokens"):
        list(score_many(Parts(OneExpert("a"), 1, context=10), [([1] * 6, [1] * 5)]))


@pytest.mark.usefixtures("cache")
def test_real_models_give_the_same_in_any_company(bundle: Bundle) -> None:
    requests = [([5, 6, 7, 8], list(range(9, 9 + n))) for n in (1, 12, 3)] + [([9], [4, 5])]
    with Engine(bundle, Options(sequences=1)) as engine:
        alone = [next(score_many(engine, [request]))[1] for request in requests]
    with Engine(bundle, Options(sequences=3)) as engine:
        together = dict(score_many(engine, requests))
    for i, one in enumerate(alone):
        assert together[i].logprob == pytest.approx(one.logprob, abs=1e-3)
        assert together[i].greedy == one.greedy
