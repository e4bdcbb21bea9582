"""Mixtures of all experts against numbers worked by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from frcli.fusion.mixture import PackLLM, UnionOfTopK


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@dataclass
class KnownPrompt:
    losses: dict[str, float]
    greedy: bool = False
    asked: list[str] = field(default_factory=list)

    def nll(self, source: str) -> float:
        self.asked.append(source)
        return self.losses[source]

    def routing(self) -> np.ndarray:
        raise AssertionError("not asked for")


def test_packllm_weighs_by_the_prompts_likelihood() -> None:
    # softmax(-1, -2) = (1, e^-1) / (1 + e^-1) = 0.7310586, 0.2689414
    prompt = KnownPrompt({"a": 1.0, "b": 2.0})
    policy = PackLLM(("a", "b")).for_prompt(prompt)
    assert prompt.asked == ["a", "b"]
    assert policy.weights == pytest.approx((0.7310586, 0.2689414))
    rows = {"a": row(1, 0), "b": row(0, 10)}
    np.testing.assert_allclose(policy.fuse(rows), [0.7310586, 2.689414], rtol=1e-6)
    # at half the temperature: softmax(-2, -4)
    assert PackLLM(("a", "b"), tau=0.5).for_prompt(prompt).weights == pytest.approx((0.8807971, 0.1192029))


def test_packllm_leaves_out_an_expert_that_weighs_nothing() -> None:
    policy = PackLLM(("a", "b"), tau=1e-3).for_prompt(KnownPrompt({"a": 1.0, "b": 9.0}))
    z = row(1, 2)
    assert policy.choose(None) == ("a",)
    assert policy.fuse({"a": z}) is z


def test_topk_union_by_hand() -> None:
    # k = 1: the union is token 0 (of a) and token 2 (of b). On it a is (3, 1) : 4, b is (1, 4) : 5; token 1 is out.
    rows = {"a": np.log(row(3, 2, 1)), "b": np.log(row(1, 3, 4))}
    fused = UnionOfTopK(("a", "b"), k=1).fuse(rows)
    np.testing.assert_allclose(np.exp(fused), [(3 / 4 + 1 / 5) / 2, 0, (1 / 4 + 4 / 5) / 2], rtol=1e-6)


def test_topk_union_of_everything_is_the_mean_of_the_probabilities() -> None:
    rows = {"a": np.log(row(0.5, 0.3, 0.2)), "b": np.log(row(0.1, 0.1, 0.8)) + 7}
    np.testing.assert_allclose(np.exp(UnionOfTopK(("a", "b"), k=99).fuse(rows)), [0.3, 0.2, 0.5], rtol=1e-5)
