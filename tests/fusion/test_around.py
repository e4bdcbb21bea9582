"""Policies around policies: bans, and an observer that changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from frcli.errors import UsageError
from frcli.fusion.around import Observed, restrict
from frcli.fusion.mixture import UniformSum
from frcli.fusion.policy import ROUTER
from frcli.fusion.route import FusionRoute, OneExpert, PromptRouter
from frcli.sources.source import Logits

EXPERTS = ("general", "math", "code")
WEIGHTS = np.array([0.5, 2.0, 1.0], np.float32)
ROWS = {"math": np.array([1, 2, 3], np.float32), ROUTER: np.array([3, 1, 1], np.float32)}


class Prompt:
    """A prompt about which the router says ``WEIGHTS``."""

    greedy = True

    def nll(self, source: str) -> float:
        return len(source)

    def routing(self) -> Logits:
        return WEIGHTS


@pytest.mark.parametrize(
    ("allowed", "chosen"),
    [
        (EXPERTS, "math"),
        (("general", "code"), "code"),
        (("general",), "general"),
        (("code", "math"), "math"),
    ],
)
def test_the_best_of_those_that_are_allowed_writes(allowed: tuple[str, ...], chosen: str) -> None:
    before = WEIGHTS.copy()
    policy = restrict(FusionRoute(EXPERTS), EXPERTS, allowed)
    assert policy.choose(WEIGHTS) == (chosen,)
    assert policy.gated(0.5).choose(WEIGHTS) == (chosen,)
    assert policy.for_prompt(Prompt()).choose(WEIGHTS) == (chosen,)
    leaning = restrict(FusionRoute(EXPERTS, prior=0.5), EXPERTS, allowed).for_prompt(Prompt())
    assert leaning.choose(WEIGHTS) == (chosen,)
    np.testing.assert_allclose(leaning.weigh(WEIGHTS)[EXPERTS.index(chosen)], 1.5 * WEIGHTS[EXPERTS.index(chosen)])
    whole = restrict(PromptRouter(EXPERTS), EXPERTS, allowed).for_prompt(Prompt())
    assert whole.choose(None) == (chosen,)
    np.testing.assert_array_equal(WEIGHTS, before)


def test_everything_else_stays_as_it_was() -> None:
    inner = FusionRoute(EXPERTS, gamma=0.5)
    policy = restrict(inner, EXPERTS, ("math",))
    assert (policy.name, policy.drafter, policy.needs_router) == (inner.name, ROUTER, True)
    np.testing.assert_array_equal(policy.fuse(ROWS), inner.fuse(ROWS))
    np.testing.assert_array_equal(policy.gated(0.5).fuse(ROWS), inner.gated(0.5).fuse(ROWS))


def test_no_ban_is_no_wrapper() -> None:
    policy = FusionRoute(EXPERTS)
    assert restrict(policy, EXPERTS, ("code", "general", "math")) is policy
    alone = OneExpert("math")
    assert restrict(alone, EXPERTS, EXPERTS) is alone


def test_what_cannot_be_restricted() -> None:
    with pytest.raises(UsageError, match="nobody would be left to write"):
        restrict(FusionRoute(EXPERTS), EXPERTS, ())
    with pytest.raises(UsageError, match="there is no expert 'bio'"):
        restrict(FusionRoute(EXPERTS), EXPERTS, ("bio",))
    for policy in (OneExpert("math"), UniformSum(EXPERTS)):
        with pytest.raises(UsageError, match=f"the policy {policy.name} does not route"):
            restrict(policy, EXPERTS, ("math",))


def test_an_observer_sees_what_is_fused_and_changes_nothing() -> None:
    seen: list[tuple[Mapping[str, Logits], Logits]] = []
    inner = FusionRoute(EXPERTS)
    policy = Observed(inner, lambda rows, fused: seen.append((rows, fused)))
    fused = policy.gated(0.25).fuse(ROWS)
    np.testing.assert_array_equal(fused, inner.gated(0.25).fuse(ROWS))
    assert seen[0][0] is ROWS and seen[0][1] is fused
    assert policy.for_prompt(Prompt()).choose(WEIGHTS) == ("math",)
