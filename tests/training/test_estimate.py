"""What a training is said to take, by hand for a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from frcli.examples import Encoded
from frcli.training.estimate import estimate, machine_flops
from frcli.training.loop import Schedule


def test_memory_and_time_by_hand(tmp_path: Path) -> None:
    base = tiny.write_gguf(tmp_path / "base.gguf")
    examples = [Encoded([1] * 6, [2] * 4)] * 4
    schedule = Schedule(epochs=2, budget=20)  # two rows a step, four steps
    vocab, hidden, middle = tiny.DEFAULT.vocab, 64, 96
    layer = 2 * hidden + hidden * hidden * 2 + 32 * hidden * 2 + 3 * hidden * middle  # norms, q and o, k and v, mlp
    trained = 2 * 4 * (64 + 64)  # q of two layers, rank 4
    got = estimate(base, examples, schedule, ["q_proj"], 4, flops=1e9)
    work = 4 * (2 * layer + trained) * 80 + 4 * vocab * hidden * 32
    assert got.seconds == pytest.approx(work / 1e9)
    kept = 20 * 2 * (14 * hidden + 4 * middle) + 4 * 8 * vocab
    assert got.memory == 4 * (vocab * hidden + 2 * layer + 4 * trained + kept) + (600 << 20)
    half = estimate(base, examples, schedule, ["q_proj"], 4, layers=1, flops=1e9)
    assert half.seconds < got.seconds and half.memory < got.memory
    more = estimate(base, examples, schedule, ["q_proj"], 4, losses=2, flops=1e9)
    assert more.memory - got.memory == 4 * 2 * 8 * vocab and more.seconds == got.seconds
    saved = estimate(base, examples, schedule, ["q_proj"], 4, save_memory=True, flops=1e9)
    assert got.memory - saved.memory == 4 * 20 * (14 * hidden + 4 * middle - 2 * hidden)
    assert saved.seconds == pytest.approx((work + 2 * 2 * layer * 80) / 1e9)


def test_the_machine_can_multiply() -> None:
    assert 1e8 < machine_flops() < 1e14
