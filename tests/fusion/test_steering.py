"""Steering by small models: numbers worked by hand, the paper's grid, and what must hold whatever the rows are."""

from __future__ import annotations

import numpy as np
import pytest

from frcli.fusion.alpha import best_alpha, grid_alpha, shift
from frcli.fusion.policy import BASE, LARGE
from frcli.fusion.steering import Contrast, DynamicLogitFusion, ProxyTuning, moved


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def random_row(chance: np.random.Generator, width: int = 200, spread: float = 3.0) -> np.ndarray:
    return (spread * chance.standard_normal(width)).astype(np.float32)


def direct_kl(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    p, q = (np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum() for z in (p_logits, q_logits))
    return float((p * np.log(p / q)).sum())


def test_proxy_tuning_by_hand() -> None:
    rows = {LARGE: row(1, 2, 0), "e": row(3, 0, 1), BASE: row(1, 1, 1)}
    np.testing.assert_allclose(ProxyTuning("e").fuse(rows), [3, 1, 0])
    np.testing.assert_allclose(ProxyTuning("e", alpha=0.5).fuse(rows), [2, 1.5, 0])
    policy = ProxyTuning("e")
    assert (policy.drafter, policy.choose(None), policy.needs_router) == ("e", (BASE, LARGE), False)


def test_contrast_by_hand() -> None:
    # The cut is at 0.1 * 0.6 = 0.06: tokens 2 and 3 are out. 0.6 / 0.5 = 1.2, 0.3 / 0.1 = 3, so token 1 wins.
    rows = {"e": np.log(row(0.6, 0.3, 0.05, 0.05)), BASE: np.log(row(0.5, 0.1, 0.2, 0.2))}
    np.testing.assert_allclose(np.exp(Contrast("e").fuse(rows)), [1.2, 3.0, 0, 0], rtol=1e-5)
    # at 0.08 only what has half of the best stays in: tokens 0 and 1; at 0.7 token 0 alone
    np.testing.assert_allclose(np.exp(Contrast("e", alpha=0.7).fuse(rows)), [1.2, 0, 0, 0], rtol=1e-5)
    assert Contrast("e", weaker="w").choose(None) == ("e", "w")


def test_steering_leaves_the_rows_alone() -> None:
    rows = {LARGE: row(1, 2), "e": row(3, 0), BASE: row(1, 1)}
    before = {name: z.tolist() for name, z in rows.items()}
    for policy in (ProxyTuning("e"), Contrast("e"), DynamicLogitFusion(("e",))):
        policy.fuse(rows)
    assert {name: z.tolist() for name, z in rows.items()} == before


def test_divergences_are_those_computed_directly() -> None:
    chance = np.random.default_rng(1)
    for spread in (0.1, 1.0, 6.0):
        p, q = random_row(chance, spread=spread), random_row(chance, spread=spread)
        assert shift(p, q) == pytest.approx((direct_kl(p, q), direct_kl(q, p)), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("spread", [0.3, 1.5, 5.0])
def test_the_search_finds_what_the_papers_grid_finds_or_better(spread: float) -> None:
    chance = np.random.default_rng(2)
    nearer = 0
    for _ in range(60):
        large, base, expert = (random_row(chance, spread=spread) for _ in range(3))
        expert = base + np.float32(chance.choice([0.1, 0.5, 1.0, 3.0])) * (expert - base)
        target = shift(expert, base)
        alpha, loss = best_alpha(large, expert - base, target)
        on_grid, grid_loss = grid_alpha(large, expert - base, target)
        assert 0 <= alpha <= 2
        assert loss <= grid_loss * (1 + 1e-6) + 1e-9
        found = shift(moved(large, expert - base, alpha), large)
        assert (found[0] - target[0]) ** 2 + (found[1] - target[1]) ** 2 == pytest.approx(loss, rel=1e-3, abs=1e-6)
        nearer += abs(alpha - on_grid) <= 0.1
    assert nearer >= 57  # two valleys of nearly the same depth are rare


def test_a_large_model_that_is_the_base_goes_all_the_way() -> None:
    chance = np.random.default_rng(3)
    base, expert = random_row(chance), random_row(chance)
    rows = {LARGE: base, BASE: base, "e": expert}
    acting = DynamicLogitFusion(("e",)).act(rows)
    assert acting.alpha == pytest.approx(1, abs=2e-3)
    np.testing.assert_allclose(DynamicLogitFusion(("e",)).fuse(rows), expert, atol=0.03)
    assert best_alpha(base, expert - base, shift(expert, base))[1] == pytest.approx(0, abs=1e-4)


def test_an_expert_that_is_the_base_changes_nothing() -> None:
    chance = np.random.default_rng(4)
    base, large = random_row(chance), random_row(chance)
    rows = {LARGE: large, BASE: base, "e": base + np.float32(3)}  # a constant is no difference
    assert DynamicLogitFusion(("e",)).act(rows).alpha == 0
    assert DynamicLogitFusion(("e",)).fuse(rows) is large


def test_a_target_beyond_reach_is_met_as_far_as_alpha_goes() -> None:
    chance = np.random.default_rng(5)
    base, away = random_row(chance, spread=0.3), random_row(chance, spread=0.3)
    assert best_alpha(base, away, shift(base + 4 * away, base))[0] == pytest.approx(2, abs=2e-3)


def test_the_expert_that_acts_is_the_one_of_the_least_summed_loss() -> None:
    """Against the paper's loop: every expert, every alpha of the grid, the loss summed over all experts' targets."""
    chance = np.random.default_rng(6)
    for _ in range(40):
        rows = {name: random_row(chance, 80, 1.5) for name in (LARGE, BASE, "a", "b", "c")}
        names = ("a", "b", "c")
        targets = [(direct_kl(rows[n], rows[BASE]), direct_kl(rows[BASE], rows[n])) for n in names]

        def loss(name: str, alpha: float) -> float:
            fused = rows[LARGE] + np.float32(alpha) * (rows[name] - rows[BASE])  # noqa: B023
            forth, back = direct_kl(fused, rows[LARGE]), direct_kl(rows[LARGE], fused)  # noqa: B023
            return sum((forth - t[0]) ** 2 + (back - t[1]) ** 2 for t in targets)  # noqa: B023

        grid = [(name, alpha) for name in names for alpha in np.linspace(0, 2, 21)]
        best = min(grid, key=lambda pair: loss(*pair))
        acting = DynamicLogitFusion(names).act(rows)
        assert acting.expert is not None
        assert loss(acting.expert, acting.alpha) <= loss(*best) * (1 + 1e-5)


def test_skipping_the_search_changes_no_greedy_token() -> None:
    chance = np.random.default_rng(7)
    skipped = 0
    for _ in range(300):
        large = random_row(chance, 50, 3)
        rows = {LARGE: large, BASE: random_row(chance, 50, 1)}
        for name in ("a", "b"):
            rows[name] = rows[BASE] + random_row(chance, 50, 0.5)
        full, quick = DynamicLogitFusion(("a", "b")), DynamicLogitFusion(("a", "b"), greedy=True)
        assert full.fuse(rows).argmax() == quick.fuse(rows).argmax()
        skipped += quick.act(rows).skipped
    assert 30 < skipped < 290
