"""The experts' rows on disk: what is kept, and runs that are cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from converters.adapter import convert_adapter
from frcli.errors import ModelError, OutputError
from frcli.examples import Encoded
from frcli.training import known
from frcli.training.known import distinct, keep, known_rows, strata, weights

EXAMPLES = [Encoded([1 + i, 2, 3], [4 + i % 5, 5, 2]) for i in range(9)] + [Encoded([9] * 90, [8] * 70)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter for it."""
    folder = tmp_path_factory.mktemp("known")
    base = tiny.write_gguf(folder / "base.gguf")
    convert_adapter(tiny.write_peft(folder / "peft"), base, folder / "math.gguf", dtype="f32")
    return base, folder / "math.gguf"


def test_the_likeliest_tokens_are_kept_and_the_others_drawn() -> None:
    row = np.random.default_rng(1).normal(size=5000).astype(np.float32) * 2
    ids, logp = keep(row, np.random.default_rng(2))
    assert len(ids) == len(set(ids.tolist())) == len(weights(5000)) == 256
    order = np.argsort(-row)
    assert set(order[:128]) == set(ids[:128])
    assert set(ids[128:224]) < set(order[128:1024]) and set(ids[224:]) < set(order[1024:])
    assert ids[0] == order[0]
    np.testing.assert_allclose(logp, row[ids] - np.log(np.exp(row.astype(np.float64)).sum()), rtol=1e-3)
    assert weights(5000).sum() == pytest.approx(5000)
    assert [first for first, _, _ in strata(5000)] == [0, 128, 1024]


def test_sums_over_the_vocabulary_are_estimated_without_bias() -> None:
    random = np.random.default_rng(3)
    row = (random.normal(size=4000) * 2).astype(np.float32)
    other = (row + random.normal(size=4000)).astype(np.float32)

    def total(ids: np.ndarray, logp: np.ndarray, weight: np.ndarray) -> float:
        return float((np.exp(0.6 * logp.astype(np.float64) + 0.4 * other[ids]) * weight).sum())

    logp = row - np.log(np.exp(row.astype(np.float64)).sum())
    wanted = total(np.arange(4000), logp, np.ones(4000))
    found = [total(*keep(row, np.random.default_rng(seed)), weights(4000)) for seed in range(300)]
    spread = np.std(found) / wanted
    assert abs(np.mean(found) / wanted - 1) < 4 * spread / 300**0.5 + 2e-3
    assert spread < 0.05


def test_rows_are_those_of_the_numpy_reference(models: tuple[Path, Path], tmp_path: Path) -> None:
    from converters.checkpoint import open_checkpoint
    from converters.reference import logits

    base, adapter = models
    found = known_rows(base, {"general": None, "math": adapter}, EXAMPLES, tmp_path, 1, lambda *_: None)
    assert list(found) == ["general", "math"]
    general, at = found["general"], 0
    checkpoint = open_checkpoint(base)
    for example in EXAMPLES[-2:]:
        at = sum(len(e.answer) for e in EXAMPLES[: EXAMPLES.index(example)])
        rows = np.asarray(logits(checkpoint, [*example.prompt, *example.answer]), np.float64)
        for i, token in enumerate(example.answer):
            row = rows[len(example.prompt) - 1 + i]
            logp = row - row.max() - np.log(np.exp(row - row.max()).sum())
            assert general.gold[at + i] == pytest.approx(logp[token], abs=0.02)
            np.testing.assert_allclose(general.logp[at + i], logp[general.ids[at + i]], atol=0.03)
            assert logp[general.best[at + i]] == pytest.approx(logp.max(), abs=0.02)
    assert not np.allclose(general.gold, found["math"].gold)


def test_a_run_that_was_cut_off_goes_on_with_the_same_rows(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_SAVE_EVERY", 2)
    base, _ = models

    def rows(folder: str, stop: int = 0) -> known.KnownRows:
        asked: list[int] = []

        def report(name: str, done: int, total: int) -> None:
            asked.append(done)
            if done == stop:
                raise KeyboardInterrupt

        found = known_rows(base, {"general": None}, EXAMPLES, tmp_path / folder, 1, report)["general"]
        report_of[folder] = asked
        return found

    report_of: dict[str, list[int]] = {}
    whole = rows("whole")
    with pytest.raises(KeyboardInterrupt):
        rows("cut", stop=5)
    cut = rows("cut")
    assert report_of["cut"][0] == 5  # four were safe
    for name in ("ids", "logp", "gold", "best", "weight"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cut, name))
    assert len(list((tmp_path / "cut").iterdir())) == 1
    rows("cut")
    assert report_of["cut"] == []


def test_rows_are_made_anew_when_the_examples_or_the_adapter_change(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = models
    asked: list[str] = []

    def make(path: Path | None, examples: list[Encoded]) -> None:
        asked.clear()
        known_rows(base, {"e": path}, examples, tmp_path, 1, lambda name, done, total: asked.append(name))

    make(adapter, EXAMPLES[:3])
    assert asked
    make(adapter, EXAMPLES[:3])
    assert not asked
    make(adapter, EXAMPLES[1:4])
    assert asked
    make(None, EXAMPLES[:3])
    assert asked


def test_rows_that_are_given_twice_are_asked_once() -> None:
    again = Encoded(list(EXAMPLES[1].prompt), list(EXAMPLES[1].answer))
    different, spans = distinct([EXAMPLES[0], EXAMPLES[1], again, EXAMPLES[9], EXAMPLES[0]])
    assert different == [EXAMPLES[0], EXAMPLES[1], EXAMPLES[9]]
    assert spans == [slice(0, 3), slice(3, 6), slice(3, 6), slice(6, 76), slice(0, 3)]


def test_only_what_is_asked_for_is_kept(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = models
    whole, gold = (
        known_rows(base, {"e": None}, EXAMPLES, tmp_path, 1, lambda *_: None, gold_only=only)["e"]
        for only in (False, True)
    )
    assert gold.ids.shape == gold.logp.shape == (len(gold.gold), 0) and len(gold.weight) == 0
    np.testing.assert_array_equal(gold.gold, whole.gold)
    np.testing.assert_array_equal(gold.best, whole.best)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_expert_of_another_tokenizer_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny.write_gguf(tmp_path / "other.gguf", tiny.TinyShape(vocabulary=tiny.TinyVocabulary(swapped=(40, 41))))
    with pytest.raises(ModelError, match="have different tokenizers"):
        known_rows(models[0], {"e": other}, EXAMPLES, tmp_path, 1, lambda *_: None)


def test_two_trainings_do_not_write_the_same_rows_at_once(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = models

    def report(name: str, done: int, total: int) -> None:
        with pytest.raises(OutputError, match="another training is writing"):
            known_rows(base, {"e": None}, EXAMPLES, tmp_path, 1, lambda *_: None)

    known_rows(base, {"e": None}, EXAMPLES, tmp_path, 1, report)
    known_rows(base, {"e": None}, EXAMPLES, tmp_path, 1, lambda *_: pytest.fail("asked again"))
