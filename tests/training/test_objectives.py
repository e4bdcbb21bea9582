"""The router's losses: by hand, and against whole distributions in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from frcli.training.known import keep, strata, weights

pytestmark = pytest.mark.train

WIDTH, TOKENS, EXPERTS = 3000, 12, 3


def log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kept_of(rows: np.ndarray, target: np.ndarray, seed: int) -> Any:
    """What is kept of rows [tokens, experts, width]."""
    import torch

    from frcli.training.objectives import Kept

    random = np.random.default_rng(seed)
    found = [[keep(row, random) for row in token] for token in rows]
    logp = log_softmax(rows.astype(np.float64))
    best = rows.argmax(axis=-1)
    return Kept(
        torch.from_numpy(np.array([[ids for ids, _ in token] for token in found]).astype(np.int64)),
        torch.from_numpy(np.array([[values for _, values in token] for token in found]).astype(np.float32)),
        torch.from_numpy(weights(rows.shape[-1])),
        torch.from_numpy(np.take_along_axis(logp, target[:, None, None], 2)[..., 0].astype(np.float32)),
        torch.from_numpy((best != best[:, :1]).any(axis=1)),
    )


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of experts and router that have much in common, as models of one base have, and the right tokens."""
    random = np.random.default_rng(0)
    common = random.normal(size=(TOKENS, 1, WIDTH)) * 3
    experts = (common + random.normal(size=(TOKENS, EXPERTS, WIDTH))).astype(np.float32)
    router = (common[:, 0] + random.normal(size=(TOKENS, WIDTH))).astype(np.float32)
    target = np.array([row.argmax() if t % 2 else random.integers(WIDTH) for t, row in enumerate(router)])
    return experts, router, target


def exact(experts: np.ndarray, router: np.ndarray, target: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """The NLL of the right tokens under the fused distributions, [tokens, experts]."""
    power = gamma[:, None, None]
    fused = (log_softmax(experts.astype(np.float64)) + power * log_softmax(router.astype(np.float64))[:, None]) / (
        1 + power
    )
    return -np.take_along_axis(log_softmax(fused), target[:, None, None], 2)[..., 0]


def test_routing_loss_by_hand() -> None:
    import torch

    from frcli.training.objectives import Kept, routing_loss

    # Softmax of (0, ln 3) is (1/4, 3/4); token 0: (2 + 3 * 4) / 4 = 3.5, token 1: agreed, token 2: (1 + 1) / 2 = 1.
    head = torch.tensor([[0.0, math.log(3)], [5.0, 1.0], [2.0, 2.0]])
    gold = -torch.tensor([[2.0, 4.0], [9.0, 9.0], [1.0, 1.0]])
    kept = Kept(None, None, None, gold, torch.tensor([True, False, True]))
    assert float(routing_loss(head, kept)) == pytest.approx(4.5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_fused_nll_is_that_of_the_whole_distributions(rows: Any, gamma: float) -> None:
    import torch

    from frcli.training.objectives import fused_nll

    experts, router, target = rows
    wanted = exact(experts, router, target, np.full(TOKENS, gamma))
    found = [
        fused_nll(torch.from_numpy(router), torch.from_numpy(target), kept_of(experts, target, seed), gamma).numpy()
        for seed in range(40)
    ]
    np.testing.assert_allclose(np.mean(found, axis=0), wanted, rtol=0.01, atol=0.02)
    assert abs(np.mean(found[0]) / wanted.mean() - 1) < 0.01


@pytest.mark.parametrize("rank", [0, 200, 600, 2000])
def test_a_router_that_is_sure_of_the_right_token_gains_no_more_than_there_is(rank: int) -> None:
    """Wherever the right token stands in the expert's row, kept, drawn or neither."""
    import torch

    from frcli.training.objectives import fused_nll

    row = (np.random.default_rng(1).normal(size=WIDTH) * 3).astype(np.float32)
    target = np.array([np.argsort(-row)[rank]])
    for sure in (0.0, 10.0, 30.0):
        router = row.copy()[None]
        router[0, target] = router.max() + sure
        wanted = exact(row[None, None], router, target, np.ones(1))
        for seed in range(8):
            kept = kept_of(row[None, None], target, seed)
            got = float(fused_nll(torch.from_numpy(router), torch.from_numpy(target), kept, 1.0))
            assert got == pytest.approx(float(wanted[0, 0]), rel=0.08, abs=0.02)
            assert got >= 0


def test_each_token_has_its_own_gate_and_it_learns(rows: Any) -> None:
    import torch

    from frcli.training.objectives import fused_nll

    experts, router, target = rows
    gamma = torch.linspace(0, 1, TOKENS, requires_grad=True)
    nll = fused_nll(torch.from_numpy(router), torch.from_numpy(target), kept_of(experts, target, 0), gamma)
    wanted = exact(experts, router, target, gamma.detach().numpy().astype(np.float64))
    np.testing.assert_allclose(nll.detach().numpy(), wanted, rtol=0.05, atol=0.05)
    nll.sum().backward()
    assert gamma.grad is not None and (gamma.grad != 0).all()


def test_a_small_vocabulary_is_kept_whole() -> None:
    import torch

    from frcli.training.objectives import fused_nll

    random = np.random.default_rng(3)
    experts, router = random.normal(size=(4, 2, 90)).astype(np.float32), random.normal(size=(4, 90)).astype(np.float32)
    target = np.arange(4)
    nll = fused_nll(torch.from_numpy(router), torch.from_numpy(target), kept_of(experts, target, 0), 0.7)
    np.testing.assert_allclose(nll.numpy(), exact(experts, router, target, np.full(4, 0.7)), atol=5e-3)  # 16 bits
    assert strata(90) == [(0, 90, 90)]
    assert strata(500) == [(0, 128, 128), (128, 500, 96)]


def test_agreement_is_the_share_of_drafts_that_greedy_decoding_accepts(rows: Any) -> None:
    import torch

    from frcli.training.objectives import agreement

    experts, router, target = rows
    chosen = np.arange(TOKENS) % EXPERTS
    fused = log_softmax(experts[np.arange(TOKENS), chosen]) + 0.5 * log_softmax(router)
    wanted = np.mean(fused.argmax(axis=-1) == router.argmax(axis=-1))
    kept = kept_of(experts, target, 0)
    found = agreement(torch.from_numpy(router), kept, torch.from_numpy(chosen)[:, None], 0.5)
    assert 0 < wanted < 1
    assert float(found) == pytest.approx(wanted)


def test_cdpo_by_hand_and_where_its_gradient_goes() -> None:
    import torch

    from frcli.training.objectives import cdpo_loss

    chosen = torch.tensor([-3.0, -10.0], requires_grad=True)
    rejected = torch.tensor([-5.0, -8.0], requires_grad=True)
    reference = torch.tensor([1.0, -1.0], requires_grad=True)
    offset = torch.tensor([0.4, -0.2], requires_grad=True)
    # Margins: 0.1 (2 - 1) + 0.4 = 0.5 and 0.1 (-2 + 1) - 0.2 = -0.3.
    loss = cdpo_loss(chosen, rejected, reference, offset, beta=0.1)
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.3)))
    loss.backward()
    weight = [1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-0.3))]
    assert chosen.grad is not None and rejected.grad is not None
    np.testing.assert_allclose(chosen.grad.numpy(), [-0.1 * w for w in weight], rtol=1e-5)
    np.testing.assert_allclose(rejected.grad.numpy(), [0.1 * w for w in weight], rtol=1e-5)
    assert reference.grad is None and offset.grad is None
