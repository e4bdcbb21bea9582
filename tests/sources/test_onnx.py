"""The ONNX router on tiny real files, held against llama.cpp on the same weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

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


Runs = list[tuple[int, int, int]]


def spy(opened: OnnxRouter, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The runs that the router makes from now on: the first KV row, the number of rows, the tokens of each."""
    runs: Runs = []
    run = opened._run

    def spied(first: int, tokens: NDArray[np.int64], picked: Sequence[int], at: int) -> None:
        runs.append((first, *tokens.shape))
        run(first, tokens, picked, at)

    monkeypatch.setattr(opened, "_run", spied)
    return runs


def test_one_token_of_each_sequence_is_one_run(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasts of any length, an empty one among them, in any order, and rows only where they were asked for."""
    texts = [[], TOKENS, [30], TOKENS[3:9], [], [7] * 40]
    many = router(files, sequences=6)
    for seq, text in enumerate(texts):
        many.extend([Feed(seq, text, 0)])
    runs = spy(many, monkeypatch)
    for step in (20, 21):
        order = [4, 0, 5, 2, 1, 3]
        got = many.extend([Feed(seq, [step + seq], int(seq != 2)) for seq in order])
        for seq, rows in zip(order, got, strict=True):
            texts[seq] = [*texts[seq], step + seq]
            logits, weights = all_rows(files, texts[seq])
            assert rows.weights is not None and len(rows.logits) == len(rows.weights) == int(seq != 2)
            if seq != 2:
                close(rows.logits[0], logits[-1])
                close(rows.weights[0], weights[-1])
    assert runs == [(0, 6, 1)] * 2


def test_longer_feeds_go_alone_beside_a_run_of_the_others(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = router(files, sequences=4)
    many.extend([Feed(seq, TOKENS[: seq + 2], 0) for seq in range(4)])
    runs = spy(many, monkeypatch)
    # Sequence 3 has two feeds of one token: the second one needs the first.
    feeds = [Feed(3, [9], 1), Feed(2, [50]), Feed(1, [60, 61, 62], 2), Feed(3, [10], 1), Feed(0, [70])]
    got = many.extend(feeds)
    close(got[0].logits, all_rows(files, [*TOKENS[:5], 9])[0][-1:])
    close(got[1].logits, all_rows(files, [*TOKENS[:4], 50])[0][-1:])
    close(got[2].logits, all_rows(files, [*TOKENS[:3], 60, 61, 62])[0][-2:])
    close(got[3].logits, all_rows(files, [*TOKENS[:5], 9, 10])[0][-1:])
    close(got[4].logits, all_rows(files, [*TOKENS[:2], 70])[0][-1:])
    assert runs == [(3, 1, 1), (1, 1, 3), (3, 1, 1), (0, 3, 1)]


@pytest.mark.parametrize(
    ("reading", "idle", "runs"),
    [
        ([0, 4], 5, [(0, 5, 1)]),  # three short idle rows cost less than another run
        ([0, 5], 5, [(0, 1, 1), (5, 1, 1)]),
        ([0, 2, 6, 7], 0, [(0, 8, 1)]),
        ([3, 1, 7], 5, [(1, 7, 1)]),
        ([0, 2, 7], 5, [(0, 3, 1), (7, 1, 1)]),
        ([0, 3], 63, [(0, 4, 1)]),
        ([0, 4], 63, [(0, 1, 1), (4, 1, 1)]),
        ([0, 3], 64, [(0, 1, 1), (3, 1, 1)]),  # a full sequence cannot read a token more
        ([6], 64, [(6, 1, 1)]),
    ],
)
def test_idle_rows_between_are_read_along_where_that_is_cheaper_and_stay_as_they_are(
    files: tuple[Path, Path], reading: list[int], idle: int, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = router(files, sequences=8)
    prefix = [3 + i % 50 for i in range(idle)]
    resting = [seq for seq in range(8) if seq not in reading]
    many.extend([Feed(seq, prefix, 0) for seq in resting])
    many.extend([Feed(seq, TOKENS[: seq + 1], 0) for seq in reading])
    made = spy(many, monkeypatch)
    for seq, rows in zip(reading, many.extend([Feed(seq, [99]) for seq in reading]), strict=True):
        close(rows.logits, all_rows(files, [*TOKENS[: seq + 1], 99])[0][-1:])
    assert made == runs
    assert [many.length(seq) for seq in resting] == [idle] * len(resting)
    if idle == 64:
        for seq in resting:
            many.rewind(seq, 63)
        prefix = prefix[:63]
    expected = all_rows(files, [*prefix, 98])[0][-1:]
    for rows in many.extend([Feed(seq, [98]) for seq in resting]):
        close(rows.logits, expected)


def test_an_idle_row_with_a_long_prefix_is_not_read_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.write_gguf(tmp_path / "base.gguf", tiny.TinyShape(context=1024))
    path = tiny.write_router(tmp_path / "long.onnx", base, tiny.write_trained(tmp_path / "t.safetensors"), context=1024)
    many = OnnxRouter(path, context=1024, sequences=3)
    runs = spy(many, monkeypatch)
    many.extend([Feed(1, [5] * 600, 0)])
    many.extend([Feed(0, [7]), Feed(2, [8])])
    many.extend([Feed(1, [5] * 100, 0)])
    many.extend([Feed(0, [7]), Feed(2, [8])])
    assert runs[3:4] + runs[-2:] == [(0, 3, 1), (0, 1, 1), (2, 1, 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_mapped_as_it_is_written(tmp_path: Path) -> None:
    """A token of each of 16 sequences costs some pages of each buffer, not all of a context of 8192 tokens (67 MB)."""
    shape = tiny.TinyShape(context=8192)
    base = tiny.write_gguf(tmp_path / "base.gguf", shape)
    trained = tiny.write_trained(tmp_path / "t.safetensors")
    path = tiny.write_router(tmp_path / "long.onnx", base, trained, ("general", "math"), context=8192)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    many = OnnxRouter(path, context=8192, sequences=17)
    before = resident()
    many.extend([Feed(seq, [5]) for seq in range(16)])
    many.fork(0, 16)
    many.extend([Feed(seq, [5]) for seq in range(17)])
    assert resident() - before < 16e6


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


def test_keys_and_values_in_float16(files: tuple[Path, Path], tmp_path: Path) -> None:
    """A graph that was made for a GPU, on the processor: the same text in one call, in steps, and behind a fork."""
    from converters.router import convert_router

    folder = files[0].parent
    convert_router(
        files[0], tmp_path / "half.onnx", folder / "router.safetensors", precision="fp16", context=64, target="cuda"
    )
    half = OnnxRouter(tmp_path / "half.onnx", context=64, sequences=2)
    (whole,) = half.extend([Feed(0, TOKENS, len(TOKENS))])
    expected, _ = all_rows(files, TOKENS)
    assert whole.logits.dtype == np.float32
    np.testing.assert_allclose(whole.logits, expected, atol=0.1)
    last = whole.logits[-1].copy()
    half.rewind(0, 6)
    half.fork(0, 1)
    for token in TOKENS[6:]:
        (row,) = half.extend([Feed(1, [token], 1)])
    np.testing.assert_allclose(row.logits[0], last, atol=0.02)
