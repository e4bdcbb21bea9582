"""NLL of experts and of the fused system against numbers worked by hand and against scipy-free references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fakes import FakeSource, random_rows

from frcli.evaluation.nll import Sums, Systems, score, score_all
from frcli.examples import Encoded
from frcli.fusion.likelihood import log_normalizer, token_nll

WIDTH = 20


def test_token_nll_by_hand() -> None:
    rows = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32)) + 3  # a constant changes nothing
    np.testing.assert_allclose(token_nll(rows, [1, 2]), [math.log(4), -math.log(0.7)], rtol=1e-5)


def test_log_normalizer_stands_large_logits() -> None:
    np.testing.assert_allclose(
        log_normalizer(np.array([[1000.0, 1000.0]], np.float32)), [1000 + math.log(2)], rtol=1e-6
    )


@pytest.mark.parametrize("block", [1, 3, 64])
def test_score_agrees_with_the_formula_token_by_token(block: int) -> None:
    example = Encoded([1, 2, 3], [4, 5, 6, 7, 8])
    makers = {"a": random_rows(WIDTH, 0), "b": random_rows(WIDTH, 1)}
    router, weights = random_rows(WIDTH, 2), random_rows(2, 3)
    experts = {name: FakeSource(WIDTH, make) for name, make in makers.items()}
    sums = score(
        example,
        Systems(experts, FakeSource(WIDTH, router, weights=weights), WIDTH, gammas=[0.0, 0.5, 1.0], block=block),
    )

    def nll(row: np.ndarray, token: int) -> float:
        odds = np.exp(row.astype(np.float64))
        return -math.log(odds[token] / odds.sum())

    expected = dict.fromkeys(["a", "b", "router", "fused 0.0", "fused 0.5", "fused 1.0"], 0.0)
    accepted = dict.fromkeys(["fused 0.0", "fused 0.5", "fused 1.0"], 0)
    prefix = list(example.prompt)
    for token in example.answer:
        chosen = makers["ab"[int(np.argmax(weights(prefix)))]](prefix)
        for name, make in makers.items():
            expected[name] += nll(make(prefix), token)
        expected["router"] += nll(router(prefix), token)
        for gamma in (0.0, 0.5, 1.0):
            expected[f"fused {gamma}"] += nll((chosen + gamma * router(prefix)) / (1 + gamma), token)
            accepted[f"fused {gamma}"] += int(np.argmax(chosen + gamma * router(prefix)) == np.argmax(router(prefix)))
        prefix.append(token)
    assert sums.nll == pytest.approx(expected, rel=1e-5)
    assert (sums.tokens, sums.examples, sum(sums.chosen.values())) == (5, 1, 5)
    assert sums.accepted == accepted


def test_other_routers_are_scored_as_if_they_were_the_bundles_own() -> None:
    example = Encoded([1, 2, 3], [4, 5, 6, 7, 8])
    makers = {"a": random_rows(WIDTH, 0), "b": random_rows(WIDTH, 1)}

    def source(seed: int) -> FakeSource:
        return FakeSource(WIDTH, random_rows(WIDTH, seed), weights=random_rows(2, seed + 1))

    def experts() -> dict[str, FakeSource]:
        return {name: FakeSource(WIDTH, make) for name, make in makers.items()}

    both = score(example, Systems(experts(), source(2), WIDTH, gammas=[0.5], rivals={"new": source(7)}))
    alone = score(example, Systems(experts(), source(7), WIDTH, gammas=[0.5]))
    assert list(both.nll) == ["a", "b", "router", "fused 0.5", "new", "new fused 0.5"]
    assert both.nll["new"] == alone.nll["router"] and both.nll["new fused 0.5"] == alone.nll["fused 0.5"]
    assert both.accepted["new fused 0.5"] == alone.accepted["fused 0.5"]
    assert both.nll["fused 0.5"] != both.nll["new fused 0.5"]


def test_sources_are_reused_from_example_to_example() -> None:
    expert = FakeSource(WIDTH, random_rows(WIDTH, 0))
    one, two = Encoded([1, 2], [3, 4]), Encoded([5], [6])
    total = score_all([one, two], Systems({"a": expert}, None, WIDTH))
    apart = Sums()
    for example in (one, two):
        apart.add(score(example, Systems({"a": FakeSource(WIDTH, random_rows(WIDTH, 0))}, None, WIDTH)))
    assert total == apart
    assert total.mean("a") == pytest.approx(total.nll["a"] / 3)
