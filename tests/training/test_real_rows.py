"""What is kept of the shipped experts' rows is enough: losses on a sample agree with those of whole rows within 1 %."""

from __future__ import annotations

import numpy as np
import pytest

from frcli.bundle import DEFAULT_BUNDLE, read_bundle
from frcli.decode.engine import Engine, Options
from frcli.examples import Encoded
from frcli.training.known import answer_rows, keep, weights

pytestmark = [pytest.mark.bundle, pytest.mark.train]

TEXTS = [
    ("Tom has 3 boxes of 12 pens and gives 7 away. How many are left?", "3 * 12 - 7 = 29\n#### 29"),
    (
        "Write a function that tells whether a word is a palindrome.\nIt must pass this test: assert is_pal('abba')",
        "```python\ndef is_pal(word):\n    return word == word[::-1]\n```",
    ),
    ("All cats are blue. Tom is a cat.\nIs the following statement true? Tom is red.\nA) True\nB) False", "B) False"),
    ("Why is the sky blue?", "Because air scatters blue light more than red light, so it comes from everywhere."),
]


def log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows.astype(np.float64) - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of experts [tokens, experts, width] and router [tokens, width] at the answers' tokens, and these tokens."""
    experts, router, targets = [], [], []
    with Engine(read_bundle(DEFAULT_BUNDLE), Options(context=512, max_rows=64)) as engine:
        assert engine.router is not None
        for prompt, answer in TEXTS:
            tokens = engine.base.encode(answer, special=False)
            example = Encoded(engine.encode_messages([{"role": "user", "content": prompt}]), tokens)
            own = [
                np.stack([row.copy() for row in answer_rows(engine.expert(name), engine.width, example)])
                for name in engine.bundle.experts
            ]
            experts.append(np.stack(own, axis=1))
            router.append(np.stack([row.copy() for row in answer_rows(engine.router, engine.width, example)]))
            targets += tokens
    return np.concatenate(experts), np.concatenate(router), np.array(targets)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0])
def test_the_fused_loss_agrees_with_the_exact_one(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], gamma: float
) -> None:
    import torch

    from frcli.training.objectives import Kept, fused_nll

    experts, router, target = rows
    random = np.random.default_rng(0)
    found = [[keep(row, random) for row in token] for token in experts]
    logp = log_softmax(experts)
    gold = np.take_along_axis(logp, target[:, None, None], 2)[..., 0]
    kept = Kept(
        torch.from_numpy(np.array([[ids for ids, _ in token] for token in found]).astype(np.int64)),
        torch.from_numpy(np.array([[values for _, values in token] for token in found]).astype(np.float32)),
        torch.from_numpy(weights(experts.shape[-1])),
        torch.from_numpy(gold.astype(np.float32)),
        None,
    )
    got = fused_nll(torch.from_numpy(router), torch.from_numpy(target), kept, gamma).numpy()
    fused = log_softmax((logp + gamma * log_softmax(router)[:, None]) / (1 + gamma))
    wanted = -np.take_along_axis(fused, target[:, None, None], 2)[..., 0]
    ratios = got.mean(axis=0) / wanted.mean(axis=0)  # by expert
    assert np.abs(ratios - 1).max() < 0.01, ratios
