"""Training on tiny real models: the losses by hand, batches, and runs that are cut off and go on."""

from __future__ import annotations

import math
import random
from pathlib import Path

import families
import numpy as np
import pytest
import tiny

from frcli.errors import OutputError
from frcli.examples import Encoded
from frcli.training.base import Hardware
from frcli.training.batches import calibration_tokens, make_batch, plan_epoch
from frcli.training.loop import Progress, Schedule, learning_rate, plan

EXAMPLES = [Encoded([1 + i, 2, 3], [4 + i % 5, 5, 2]) for i in range(12)] + [
    Encoded([9] * 9, [8, 7]),
    Encoded([6], [7]),
]


def test_a_batch_points_at_the_place_before_each_answer_token() -> None:
    batch = make_batch([Encoded([1, 2, 3], [4, 5]), Encoded([6], [7])], [1, 0])
    assert batch.ids.tolist() == [[6, 7, 0, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.row.tolist() == [0, 1, 1]
    assert batch.position.tolist() == [0, 2, 3]
    assert batch.target.tolist() == [7, 4, 5]


def test_short_examples_share_a_row() -> None:
    examples = [Encoded([1], [2]), Encoded([3, 4, 5], [6, 7]), Encoded([8], [9, 10])]
    batch = make_batch(examples, [0, 1, 2], pack=True)
    assert batch.ids.tolist() == [[3, 4, 5, 6, 7], [8, 9, 10, 1, 2]]
    assert batch.places is not None and batch.places.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]
    assert (batch.row.tolist(), batch.position.tolist()) == ([1, 0, 0, 1, 1], [3, 2, 3, 0, 1])
    assert (batch.target.tolist(), batch.example.tolist()) == ([2, 6, 7, 9, 10], [0, 1, 1, 2, 2])


BEGIN = list(range(50, 70))
ALIKE = [Encoded([*BEGIN, 5, 6], [7, 8]), Encoded([*BEGIN, 9], [10]), Encoded([*BEGIN[:18], 3, 4], [2, 1])]


def test_prompts_that_begin_alike_share_their_beginning() -> None:
    batch = make_batch(ALIKE, [0, 1], pack=True)
    assert batch.ids.tolist() == [[*BEGIN, 5, 6, 7, 8, 9, 10]]
    assert batch.places is not None and batch.places.tolist() == [[*range(24), 20, 21]]
    assert (batch.position.tolist(), batch.target.tolist()) == ([21, 22, 24], [7, 8, 10])
    assert batch.seen is not None and batch.seen.shape == (1, 1, 26, 26)
    assert np.flatnonzero(batch.seen[0, 0, 24]).tolist() == [*range(20), 24]
    assert np.flatnonzero(batch.seen[0, 0, 22]).tolist() == list(range(23))


def test_a_prompt_that_is_asked_twice_shares_all_but_the_token_before_the_answer() -> None:
    batch = make_batch([Encoded([1, 2, 3], [4, 5]), Encoded([1, 2, 3], [6])], [0, 1], pack=True)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5, 3, 6]]
    assert (batch.position.tolist(), batch.target.tolist()) == ([2, 3, 5], [4, 5, 6])


def test_what_begins_alike_is_in_one_batch_and_counts_once() -> None:
    examples = [example for pair in zip(EXAMPLES[:3], ALIKE, strict=True) for example in pair]
    batches = plan_epoch(examples, 40, random.Random(3), pack=True)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    (together,) = (batch for batch in batches if 1 in batch)
    assert set(together) == {1, 3, 5}  # 32 tokens, 68 if each were read by itself


def test_packed_batches_fill_the_budget() -> None:
    batches = plan_epoch(EXAMPLES, 24, random.Random(3), pack=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(EXAMPLES)))
    assert max(make_batch(EXAMPLES, batch, pack=True).ids.size for batch in batches) <= 24
    assert len(batches) == 4  # 85 tokens, of which the longest example is 11


@pytest.mark.train
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2", "gemma3", "smollm3", "phi3"])
def test_examples_in_one_row_do_not_see_each_other(family: str, tmp_path: Path) -> None:
    import torch

    from frcli.training.base import load_base
    from frcli.training.expert import answer_loss

    model = load_base(families.save(families.make(family), tmp_path), Hardware())
    long = [Encoded(list(range(5, 45)), [9, 8, 7]), *EXAMPLES[:5], *ALIKE, Encoded(list(range(100, 130)), [1])]
    with torch.no_grad():
        apart = float(answer_loss(model, make_batch(long, range(len(long)))))
        together = float(answer_loss(model, make_batch(long, range(len(long)), pack=True)))
    assert make_batch(long, range(len(long)), pack=True).ids.shape == (4, 43)
    assert together == pytest.approx(apart, abs=1e-5)


def test_an_epoch_has_every_example_once_within_the_budget() -> None:
    batches = plan_epoch(EXAMPLES, 24, random.Random(3))
    assert sorted(i for batch in batches for i in batch) == list(range(len(EXAMPLES)))
    sizes = [len(e.prompt) + len(e.answer) for e in EXAMPLES]
    assert all(len(batch) * max(sizes[i] for i in batch) <= 24 or len(batch) == 1 for batch in batches)


def test_units_stay_together() -> None:
    units = [[0], [1], [2, 3], [4, 5], [6, 7]]
    batches = plan_epoch(EXAMPLES[:8], 40, random.Random(3), units=units)
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    for first in (2, 4, 6):
        (mine,) = [batch for batch in batches if first in batch]
        assert mine[mine.index(first) + 1] == first + 1


def test_the_seed_alone_decides_the_order() -> None:
    one = plan(EXAMPLES, Schedule(epochs=2, budget=24, seed=1))
    assert one == plan(EXAMPLES, Schedule(epochs=2, budget=24, seed=1))
    assert one != plan(EXAMPLES, Schedule(epochs=2, budget=24, seed=2))
    assert plan(EXAMPLES, Schedule(epochs=2, budget=24, seed=1, max_steps=3)) == one[:3]


def test_calibration_is_whole_examples_one_behind_the_other() -> None:
    tokens = calibration_tokens(EXAMPLES, 1, sequences=3, length=8)
    assert tokens is not None and tokens.shape == (3, 8) and tokens.dtype == np.int32
    whole = [token for example in EXAMPLES for token in [*example.prompt, *example.answer]]
    assert set(tokens.ravel().tolist()) <= set(whole)
    np.testing.assert_array_equal(tokens, calibration_tokens(EXAMPLES, 1, sequences=3, length=8))
    few = calibration_tokens(EXAMPLES, 1, sequences=50, length=16)
    assert few is not None and few.shape == (len(whole) // 16, 16)
    assert calibration_tokens(EXAMPLES[:1], 1, length=256) is None


def test_learning_rate_by_hand() -> None:
    schedule = Schedule(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(step, 10, schedule) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5)  # half of the 8 steps after the warm-up are done
    assert rates[9] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 7 / 8)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


def no_report(progress: Progress) -> None:
    assert math.isfinite(progress.losses["loss"])


@pytest.mark.train
def test_the_fitted_head_is_a_minimum_of_the_routing_loss() -> None:
    import torch

    from frcli.training.head import fit_head

    random = np.random.default_rng(4)
    hidden = random.normal(size=(200, 6)).astype(np.float32)
    nll = np.abs(random.normal(size=(3, 200))).astype(np.float32)
    nll[0] += 2 * (hidden[:, 0] > 0)  # expert 0 is bad where the first feature is positive
    disagree = np.arange(200) % 4 > 0
    importance = (1 / (1 + np.arange(200) % 5)).astype(np.float32)
    share = torch.from_numpy(importance / importance[disagree].sum())

    def loss(head: np.ndarray) -> float:
        weights = torch.from_numpy(hidden @ head.T)
        parts = (weights.softmax(-1) * torch.from_numpy(nll.T)).sum(-1) * torch.from_numpy(disagree)
        return float((parts * share).sum() + 1e-3 * (head**2).sum())

    start = np.zeros((3, 6), np.float32)
    head = fit_head(start, hidden[disagree], nll.T[disagree], importance[disagree])
    assert loss(head) < loss(start) - 0.1
    for _ in range(20):
        assert loss(head) <= loss(head + random.normal(size=head.shape).astype(np.float32) * 0.05) + 1e-5
    chosen = (hidden @ head.T).argmax(axis=1)
    assert (chosen[hidden[:, 0] > 1] != 0).all()
    np.testing.assert_array_equal(fit_head(start, hidden[:0], nll.T[:0], importance[:0]), start)


@pytest.mark.train
def test_answer_loss_is_the_mean_nll_of_the_numpy_reference(base: Path) -> None:
    from converters.checkpoint import open_checkpoint
    from converters.reference import logits
    from frcli.training.base import load_base
    from frcli.training.expert import answer_loss

    model = load_base(base, Hardware())
    checkpoint = open_checkpoint(base)
    total, count = 0.0, 0
    for example in EXAMPLES[-3:]:
        rows = np.asarray(logits(checkpoint, [*example.prompt, *example.answer]), np.float64)
        for i, token in enumerate(example.answer):
            row = rows[len(example.prompt) - 1 + i]
            total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[token]
            count += 1
    loss = float(answer_loss(model, make_batch(EXAMPLES, [11, 12, 13])))
    assert loss == pytest.approx(total / count, abs=1e-4)


@pytest.mark.train
def test_an_expert_learns_and_goes_on_bit_for_bit_after_a_cut(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    from frcli.training import loop
    from frcli.training.expert import train_expert

    losses: list[float] = []
    schedule = Schedule(epochs=4, budget=24, learning_rate=1e-2, seed=1, save_every=5)

    def train(out: Path, stop: int = 0) -> None:
        def report(progress: Progress) -> None:
            losses.append(progress.losses["loss"])
            if progress.step == stop:
                raise KeyboardInterrupt

        train_expert(base, EXAMPLES, out, rank=4, schedule=schedule, hardware=Hardware(), report=report)

    train(tmp_path / "whole")
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=8)
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    with monkeypatch.context() as other:  # as a version would that plans its steps in another way
        other.setattr(loop, "plan", lambda *arguments: plan(*arguments)[::-1])
        with pytest.raises(OutputError, match=r"checkpoint.pt is from a run with other data or settings"):
            train(tmp_path / "cut")
    train(tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(np.array_equal(whole[key], cut[key]) for key in whole)
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()
