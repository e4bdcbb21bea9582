"""The ONNX router on tiny real files, held against llama.cpp on the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from frcli.errors import ContextError, ModelError
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.onnx import OnnxRouter
from frcli.sources.source import Feed, Logits

TOKENS = [5, 17, 99, 3, 250, 41, 41, 8, 120, 77, 64, 9]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base and the router made of it and of a trained part."""
    folder = tmp_path_factory.mktemp("router")
    base = tiny.write_gguf(folder / "base.gguf")
    trained = tiny.write_trained(folder / "router.safetensors")
    return base, tiny.write_router(folder / "router.onnx", base, trained, ("general", "math"), vocabulary="abc")


def router(files: tuple[Path, Path], **settings: int) -> OnnxRouter:
    return OnnxRouter(files[1], **{"context": 64, **settings})


def all_rows(files: tuple[Path, Path], tokens: list[int]) -> tuple[Logits, Logits]:
    rows = router(files).extend([Feed(0, tokens, len(tokens))])[0]
    assert rows.weights is not None
    return rows.logits, rows.weights


def close(a: Logits, b: Logits) -> None:
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_without_a_trained_part_it_is_the_base_itself(tmp_path: Path) -> None:
    base = tiny.write_gguf(tmp_path / "base.gguf")
    trained = tiny.write_trained(tmp_path / "router.safetensors", scale=0.0)
    model = LlamaModel(base)
    expert = LlamaSource(model, context=64, max_rows=12)
    expected = expert.extend([Feed(0, TOKENS, 12)])[0].logits
    got, _ = all_rows((base, tiny.write_router(tmp_path / "r.onnx", base, trained, ("general", "math"))), TOKENS)
    np.testing.assert_allclose(got, expected, atol=2e-2, rtol=0)  # llama.cpp keeps keys and values in f16
    expert.close()
    model.close()


def test_what_the_file_says(files: tuple[Path, Path]) -> None:
    opened = router(files)
    assert opened.experts == ("general", "math")
    assert opened.vocabulary == "abc"
    assert opened.width == tiny.TinyShape().vocab
    assert opened.context == 64


def test_one_by_one_in_chunks_and_at_once_agree(files: tuple[Path, Path]) -> None:
    logits, weights = all_rows(files, TOKENS)
    single = router(files)
    for i, token in enumerate(TOKENS):
        rows = single.extend([Feed(0, [token])])[0]
        close(rows.logits[0], logits[i])
        assert rows.weights is not None
        close(rows.weights[0], weights[i])
    for chunk in (1, 5, 7, 12):
        for wanted in (0, 1, 6, 12):
            rows = OnnxRouter(files[1], context=64, chunk=chunk).extend([Feed(0, TOKENS, wanted)])[0]
            assert rows.logits.shape == (wanted, single.width)
            close(rows.logits, logits[len(TOKENS) - wanted :])


def test_rewinding_is_exact(files: tuple[Path, Path]) -> None:
    one = router(files)
    one.extend([Feed(0, TOKENS[:6], 0)])
    first = one.extend([Feed(0, [9])])[0].logits.copy()
    one.extend([Feed(0, [200, 201], 0)])
    one.rewind(0, 6)
    np.testing.assert_array_equal(one.extend([Feed(0, [9])])[0].logits, first)


def test_sequences_and_forks(files: tuple[Path, Path]) -> None:
    many = router(files, sequences=3)
    a, b = many.extend([Feed(0, [7, 8, 9], 2), Feed(2, [30, 31], 1)])
    close(a.logits, all_rows(files, [7, 8, 9])[0][-2:])
    close(b.logits, all_rows(files, [30, 31])[0][-1:])
    many.fork(0, 1)
    a, b = many.extend([Feed(0, [20]), Feed(1, [21])])
    close(a.logits, all_rows(files, [7, 8, 9, 20])[0][-1:])
    close(b.logits, all_rows(files, [7, 8, 9, 21])[0][-1:])
    assert [many.length(i) for i in range(3)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("feed", "error", "words"),
    [
        (Feed(0, [100_000]), ModelError, "outside the vocabulary"),
        (Feed(0, [-1]), ModelError, "outside the vocabulary"),
        (Feed(3, [1]), ModelError, "sequence 3 does not exist"),
        (Feed(0, [1], 2), ModelError, "2 rows were asked of 1"),
        (Feed(0, [1] * 65), ContextError, "65 tokens do not fit in a context of 64"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(
    files: tuple[Path, Path], feed: Feed, error: type[Exception], words: str
) -> None:
    one = router(files)
    with pytest.raises(error, match=words):
        one.extend([feed])
    assert one.length(0) == 0
    for act in (lambda: one.rewind(0, 1), lambda: one.fork(0, 5), lambda: one.length(2)):
        with pytest.raises(ModelError):
            act()
    one.close()
    with pytest.raises(ModelError, match="closed"):
        one.extend([Feed(0, [1])])


def test_a_full_context_can_be_filled_to_the_last_token(files: tuple[Path, Path]) -> None:
    tokens = [3 + i % 200 for i in range(64)]
    one = router(files)
    one.extend([Feed(0, tokens[:-1], 0)])
    close(one.extend([Feed(0, tokens[-1:])])[0].logits[0], all_rows(files, tokens)[0][-1])
    with pytest.raises(ContextError):
        one.extend([Feed(0, [1])])


def test_files_that_are_missing_damaged_or_not_a_router(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = files[1].read_bytes()
    damaged = tmp_path / "damaged.onnx"
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        damaged.write_bytes(content)
        with pytest.raises(ModelError, match="damaged"):
            OnnxRouter(damaged, context=16)
    with pytest.raises(ModelError, match="gone"):
        OnnxRouter(tmp_path / "gone.onnx", context=16)
    import onnx

    plain = onnx.load(files[1])
    del plain.metadata_props[:]
    onnx.save(plain, damaged)
    with pytest.raises(ModelError, match="not a router of format 1"):
        OnnxRouter(damaged, context=16)
    with pytest.raises(ModelError, match="at most 256 tokens"):
        OnnxRouter(files[1], context=1000)
