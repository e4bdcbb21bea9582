"""Policies against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from frcli.errors import UsageError
from frcli.fusion.mixture import UniformSum
from frcli.fusion.registry import make_policy
from frcli.fusion.route import FusionRoute, OneExpert, PromptRouter


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits.astype(np.float64))
    return odds / odds.sum()


def test_fusionroute_chooses_the_largest_weight_and_the_first_of_equals() -> None:
    policy = FusionRoute(("a", "b", "c"))
    assert policy.choose(row(0.1, 2.0, -1.0)) == ("b",)
    assert policy.choose(row(1.0, 1.0, 1.0)) == ("a",)


def test_fusionroute_by_hand() -> None:
    # (z_e + gamma z_r) / (1 + gamma) with gamma 0.5: (1 + 2) / 1.5 = 2, (3 - 1.5) / 1.5 = 1, (0 + 3) / 1.5 = 2
    rows = {"a": row(1, 3, 0), "router": row(4, -3, 6)}
    np.testing.assert_allclose(FusionRoute(("a",), 0.5).fuse(rows), [2, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(FusionRoute(("a",), 0.5, sharp=True).fuse(rows), [3, 1.5, 3], rtol=1e-6)


def test_the_mean_of_a_model_with_itself_is_that_model_and_the_bare_sum_is_its_square() -> None:
    z = row(0.3, -1.2, 2.0, 0.0)
    rows = {"a": z, "router": z}
    np.testing.assert_allclose(softmax(FusionRoute(("a",), 1.0).fuse(rows)), softmax(z), rtol=1e-6)
    squared = softmax(z) ** 2
    np.testing.assert_allclose(
        softmax(FusionRoute(("a",), 1.0, sharp=True).fuse(rows)), squared / squared.sum(), rtol=1e-5
    )


def test_gamma_zero_is_the_expert_itself_even_where_the_router_is_infinite() -> None:
    z = row(1, 2)
    assert FusionRoute(("a",), 0.0).fuse({"a": z, "router": row(-np.inf, 0)}) is z


def test_fusing_leaves_the_rows_of_the_models_alone() -> None:
    a, b, r = row(1, 2), row(3, 4), row(5, 6)
    FusionRoute(("a",), 1.0).fuse({"a": a, "router": r})
    UniformSum(("a", "b")).fuse({"a": a, "b": b})
    assert (a.tolist(), b.tolist(), r.tolist()) == ([1, 2], [3, 4], [5, 6])


def test_sum_by_hand() -> None:
    rows = {"a": row(1, 2), "b": row(3, 6), "c": row(2, 1)}
    np.testing.assert_allclose(UniformSum(("a", "b", "c")).fuse(rows), [2, 3], rtol=1e-6)
    np.testing.assert_allclose(UniformSum(("a", "b", "c"), sharp=True).fuse(rows), [6, 9], rtol=1e-6)


def test_sum_of_logits_is_the_normalised_product_of_the_probabilities() -> None:
    a, b = row(0.5, -1, 2), row(1.5, 0, 0)
    product = softmax(a) * softmax(b)
    fused = UniformSum(("a", "b"), sharp=True).fuse({"a": a, "b": b})
    np.testing.assert_allclose(softmax(fused), product / product.sum(), rtol=1e-5)


def test_one_expert_needs_nothing_else() -> None:
    policy = OneExpert("b")
    z = row(1, 2)
    assert policy.choose(None) == ("b",)
    assert policy.fuse({"b": z}) is z
    assert not policy.needs_router


@pytest.mark.parametrize(
    ("name", "gamma", "has_router", "word"),
    [
        ("expert:nobody", 1.0, True, "nobody"),
        ("expert:", 1.0, True, "expert:"),
        ("mean", 1.0, True, "mean"),
        ("fusionroute", 1.0, False, "router"),
        ("fusionroute", -0.1, True, "-0.1"),
        ("fusionroute", float("nan"), True, "nan"),
        ("sum", float("inf"), True, "inf"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_word_that_matters(
    name: str, gamma: float, has_router: bool, word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        make_policy(name, ["a", "b"], gamma=gamma, sharp=False, roles={"router"} if has_router else set())


def test_names_are_the_users_own() -> None:
    for name in ("fusionroute", "sum", "expert:b"):
        assert make_policy(name, ["a", "b"], gamma=1, sharp=False, roles={"router"}).name == name


class Known:
    """A prompt of which only the routing may be asked."""

    greedy = True

    def nll(self, source: str) -> float:
        raise AssertionError("not asked for")

    def routing(self) -> np.ndarray:
        return row(0.1, 3.0, 3.0)


def test_a_prior_is_added_to_the_weights_of_each_token() -> None:
    policy = FusionRoute(("a", "b", "c"), prior=0.5).for_prompt(Known())
    np.testing.assert_allclose(policy.weigh(row(1.0, -1.0, -0.2)), [1.05, 0.5, 1.3], rtol=1e-6)
    assert policy.choose(row(1.0, -1.0, -0.2)) == ("c",)
    assert policy.gated(0.5).choose(row(1.0, -1.0, -0.2)) == ("c",)
    assert policy.choose(row(9.0, 0.0, 0.0)) == ("a",)
    plain = FusionRoute(("a", "b", "c"))
    assert plain.for_prompt(Known()) is plain
    assert plain.choose(row(1.0, -1.0, -0.2)) == ("a",)


def test_a_prompt_router_chooses_once() -> None:
    policy = PromptRouter(("a", "b", "c")).for_prompt(Known())
    z = row(1, 2)
    assert (policy.choose(None), policy.fuse({"b": z}) is z) == (("b",), True)
    assert (policy.needs_router, policy.drafter, policy.name) == (True, None, "prompt-router")
    with pytest.raises(UsageError, match="one weight for each expert"):
        PromptRouter(("a", "b")).for_prompt(Known())
