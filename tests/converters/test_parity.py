from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from converters.checkpoint import open_checkpoint
from converters.llamacpp import logits as llama_logits
from converters.parity import TEXT, Parity, check_window, compare, kl
from converters.reference import logits
from converters.runner import Rows
from frcli.errors import ModelError


def test_kl_by_hand() -> None:
    """p = (1/2, 1/2) and q = (3/4, 1/4): KL(p || q) = ln(2/3)/2 + ln(2)/2 = ln(4/3)/2; a constant changes nothing."""
    p, q = np.log(np.float32([[1, 1]])), np.log(np.float32([[3, 1]])) + 100
    assert kl(p, q)[0] == pytest.approx(np.log(4 / 3) / 2, rel=1e-5)
    assert kl(q, q)[0] == 0


def test_compare() -> None:
    source = np.log(np.float32([[1, 1], [1, 3], [1, 3]]))
    result = np.log(np.float32([[3, 1], [1, 3], [3, 1]]))
    got = compare(Rows(source, source), Rows(result, result))
    first, last = np.log(4 / 3) / 2, np.log(3) / 2
    assert got.mean_kl == pytest.approx((first + last) / 3, rel=1e-5)
    assert got.max_kl == pytest.approx(last, rel=1e-5)
    assert got.top1 == pytest.approx(2 / 3)
    assert got.tokens == 3
    assert got.routing_kl == pytest.approx(got.mean_kl)
    assert (
        str(got)
        == "KL 2.31e-01 (max 5.49e-01) nats, same top token 66.7%, top ten 100.0%, 3 tokens, routing KL 2.31e-01"
    )


def test_the_heads_of_a_router_are_compared_apart() -> None:
    like = np.log(np.float32([[1, 1], [1, 1]]))
    other = np.log(np.float32([[3, 1], [1, 1]]))
    source, result = (
        Rows(like, like, like, np.float32([[0.5], [0.25]])),
        Rows(like, like, other, np.float32([[0.5], [0.5]])),
    )
    got = compare(source, result)
    assert (got.mean_kl, got.routing_kl, got.gate_distance) == (0, 0, 0.125)
    assert got.prompt_kl == pytest.approx(np.log(4 / 3) / 4, rel=1e-5)
    assert str(got).endswith("2 tokens, routing KL 0.00e+00, prompt routing KL 7.19e-02, gates apart 1.25e-01")
    assert compare(Rows(like, like, like), result).gate_distance is None


@pytest.mark.parametrize("mean", [0.6, float("nan")])
def test_a_broken_result_is_refused(mean: float) -> None:
    parity = Parity(mean, 1.0, 0.5, 10)
    with pytest.raises(ModelError, match="does not agree with its source"):
        parity.require(0.5, "it")
    assert Parity(0.4, 1.0, 0.5, 10).require(0.5, "it").mean_kl == 0.4


def test_tokens_are_those_of_the_text(base: Path, tmp_path: Path) -> None:
    tokens = tiny.TinyVocabulary().tokens()
    alphabet = {character: byte for byte, character in enumerate(tiny.byte_alphabet())}
    ids = check_window(base, len(tokens), limit=10_000).tokens
    assert bytes(alphabet[character] for id in ids for character in tokens[id]) == TEXT.encode()
    assert check_window(base, len(tokens), limit=50).tokens == ids[:50]


def test_tokens_without_a_vocabulary(tmp_path: Path) -> None:
    folder = tiny.write_safetensors(tmp_path)
    ids = check_window(folder, 293, limit=40).tokens
    assert ids == check_window(folder, 293, limit=40).tokens
    assert len(ids) == 40 and min(ids) >= 0 and max(ids) < 293 and len(set(ids)) > 20


@pytest.mark.parametrize("which", ["base", "untied"])
def test_reference_agrees_with_llama_cpp(which: str, request: pytest.FixtureRequest) -> None:

    path: Path = request.getfixturevalue(which)
    checkpoint = open_checkpoint(path)
    tokens = np.random.default_rng(5).integers(3, checkpoint.config.vocab, 90).tolist()
    got, expected = logits(checkpoint, tokens), llama_logits(path, None, tokens)
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert expected.std() > 1
