"""Both sources under random interleavings of extend, rewind and fork, against sequences that are read alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny

from frcli.errors import ContextError
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.onnx import OnnxRouter
from frcli.sources.source import Feed, LogitSource, Rows

SEQUENCES, CONTEXT, STEPS = 6, 40, 40


def random_feeds(random: np.random.Generator, width: int) -> list[Feed]:
    """Feeds for some of the sequences in any order: mostly one token each, now and then several, none, or a second
    feed of one sequence.
    """
    feeds = []
    for seq in random.permutation(SEQUENCES)[: random.integers(1, SEQUENCES + 1)]:
        for _ in range(1 + (random.random() < 0.05)):
            n = 1 if random.random() < 0.8 else int(random.integers(0, 8))
            tokens = random.integers(0, width, n).tolist()
            feeds.append(Feed(int(seq), tokens, int(random.integers(0, n + 1)) if random.random() < 0.5 else min(n, 1)))
    return feeds


def run(source: LogitSource, alone: LogitSource, same: Callable[[Rows, Rows], None], seed: int) -> int:
    """Do random things to ``source`` and compare every row with the one that ``alone`` gives after reading the whole
    prefix from its beginning; the number of rows compared.
    """
    random = np.random.default_rng(seed)
    texts: list[list[int]] = [[] for _ in range(SEQUENCES)]
    compared = refused = 0
    for _ in range(STEPS):
        seq = int(random.integers(SEQUENCES))
        what = random.random()
        if what < 0.15:
            n = int(random.integers(len(texts[seq]) + 1))
            source.rewind(seq, n)
            del texts[seq][n:]
        elif what < 0.3:
            other = int(random.integers(SEQUENCES))
            source.fork(seq, other)
            texts[other] = list(texts[seq])
        else:
            feeds = random_feeds(random, source.width)
            grown = [len(text) + sum(len(f.tokens) for f in feeds if f.seq == seq) for seq, text in enumerate(texts)]
            if max(grown) > CONTEXT:
                refused += 1
                with pytest.raises(ContextError):
                    source.extend(feeds)
            else:
                for feed, got in zip(feeds, source.extend(feeds), strict=True):
                    texts[feed.seq] += feed.tokens
                    assert got.logits.shape == (feed.rows, source.width)
                    if feed.rows:
                        alone.rewind(0, 0)
                        same(got, alone.extend([Feed(0, texts[feed.seq], feed.rows)])[0])
                        compared += feed.rows
        assert [source.length(seq) for seq in range(SEQUENCES)] == [len(text) for text in texts]
    source.close()
    alone.close()
    assert refused < STEPS / 2  # a run that reads next to nothing would prove nothing
    return compared


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("interleavings")
    base = tiny.write_gguf(folder / "base.gguf")
    trained = tiny.write_trained(folder / "router.safetensors")
    return base, tiny.write_router(folder / "router.onnx", base, trained, ("general", "math"))


@pytest.fixture(scope="module")
def model(files: tuple[Path, Path]) -> Iterator[LlamaModel]:
    model = LlamaModel(files[0])
    yield model
    model.close()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [256, 3])
def test_the_router(files: tuple[Path, Path], chunk: int, seed: int) -> None:
    def same(got: Rows, expected: Rows) -> None:
        assert got.weights is not None and expected.weights is not None
        np.testing.assert_allclose(got.logits, expected.logits, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(got.weights, expected.weights, atol=1e-4, rtol=1e-4)

    many = OnnxRouter(files[1], context=CONTEXT, sequences=SEQUENCES, chunk=chunk)
    alone = OnnxRouter(files[1], context=CONTEXT)
    assert run(many, alone, same, seed) > STEPS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", [{}, {"batch": 7, "max_rows": 6}], ids=str)
def test_llama(model: LlamaModel, settings: dict[str, int], seed: int) -> None:
    def same(got: Rows, expected: Rows) -> None:
        # Keys and values are f16, and lie between those of other sequences; a wrong token moves logits by more than
        # 0.5.
        np.testing.assert_allclose(got.logits, expected.logits, atol=3e-2, rtol=0)

    many = LlamaSource(model, **{"context": CONTEXT, "sequences": SEQUENCES, "max_rows": 16, **settings})
    alone = LlamaSource(model, context=CONTEXT, max_rows=CONTEXT)
    assert run(many, alone, same, seed) > STEPS
