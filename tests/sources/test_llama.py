"""llama.cpp on tiny real models: the LogitSource contract, and that nothing aborts the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny

from frcli.errors import ContextError, ModelError
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.source import Feed, Logits

TOKENS = [5, 17, 99, 3, 250, 41, 41, 8, 120, 77, 64, 9]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    path = tiny.write_gguf(tmp_path_factory.mktemp("llama") / "tiny.gguf")
    model = LlamaModel(path)
    yield model
    model.close()


def source(model: LlamaModel, **settings: int) -> LlamaSource:
    return LlamaSource(model, **{"context": 64, **settings})


def rows_of(model: LlamaModel, tokens: list[int]) -> Logits:
    """Rows of all ``tokens``, read in one call by a fresh context: float32 [len(tokens), width]."""
    fresh = source(model, max_rows=len(tokens))
    rows = fresh.extend([Feed(0, tokens, len(tokens))])[0].logits.copy()
    fresh.close()
    return rows


def close(a: Logits, b: Logits) -> None:
    """Attention reads an f16 cache, in an order that the call's shape decides; a wrong token moves logits by more than
    0.5.
    """
    # The sums of attention in 16 bits depend on the processor: 3.5e-3 was seen with AVX2, less with AVX-512.
    np.testing.assert_allclose(a, b, atol=1e-2, rtol=0)


def test_one_by_one_in_pieces_and_at_once_agree(model: LlamaModel) -> None:
    whole = rows_of(model, TOKENS)
    single = source(model)
    for i, token in enumerate(TOKENS):
        close(single.extend([Feed(0, [token])])[0].logits[0], whole[i])
    single.rewind(0, 0)
    single.extend([Feed(0, TOKENS[:7], 0)])
    close(single.extend([Feed(0, TOKENS[7:])])[0].logits[0], whole[-1])
    assert single.length(0) == len(TOKENS)
    single.close()


def test_float32_caches_are_read_as_they_are(model: LlamaModel) -> None:
    """Rows then depend on the shape of the calls in their last bits only; 16 bits on the way would be seen here."""
    tokens = TOKENS * 5
    found = []
    for pieces in ([60], [59, 1], [7] * 8 + [4], [1] * 60):
        exact = LlamaSource(model, context=64, kv_type="f32")
        for n in pieces:
            at = exact.length(0)
            rows = exact.extend([Feed(0, tokens[at : at + n])])
        found.append(rows[0].logits[0].copy())
        exact.close()
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("batch", "max_rows"), [(64, 12), (64, 5), (4, 4), (4, 1), (5, 3), (1, 1)])
@pytest.mark.parametrize("rows", [0, 1, 6, 12])
def test_rows_and_tokens_that_need_several_calls(model: LlamaModel, batch: int, max_rows: int, rows: int) -> None:
    whole = rows_of(model, TOKENS)
    limited = source(model, batch=batch, max_rows=max_rows)
    got = limited.extend([Feed(0, TOKENS, rows)])[0].logits
    assert got.shape == (rows, model.n_vocab)
    close(got, whole[len(TOKENS) - rows :])
    limited.close()


def test_rewinding_is_exact(model: LlamaModel) -> None:
    one = source(model)
    one.extend([Feed(0, TOKENS[:6], 0)])
    first = one.extend([Feed(0, [9])])[0].logits.copy()
    one.extend([Feed(0, [200, 201], 0)])
    one.rewind(0, 6)
    np.testing.assert_array_equal(one.extend([Feed(0, [9])])[0].logits, first)
    one.close()


@pytest.mark.parametrize("batch", [64, 7])
def test_sequences_do_not_see_each_other(model: LlamaModel, batch: int) -> None:
    texts = [[7, 8, 9, 10], [30, 31], [50, 51, 52, 53, 54, 55, 56, 57]]
    many = source(model, sequences=3, batch=batch, max_rows=6)
    got = many.extend([Feed(i, text, 2) for i, text in enumerate(texts)])
    for rows, text in zip(got, texts, strict=True):
        close(rows.logits, rows_of(model, text)[-2:])
    # Ragged: one sequence rests, one reads two tokens, one reads one.
    got = many.extend([Feed(2, [1, 2], 1), Feed(0, [3], 1)])
    close(got[0].logits, rows_of(model, [*texts[2], 1, 2])[-1:])
    close(got[1].logits, rows_of(model, [*texts[0], 3])[-1:])
    assert [many.length(i) for i in range(3)] == [5, 2, 10]
    many.close()


def test_a_fork_shares_the_prefix_and_goes_its_own_way(model: LlamaModel) -> None:
    many = source(model, sequences=2)
    many.extend([Feed(0, TOKENS, 0), Feed(1, [1, 2, 3], 0)])
    many.fork(0, 1)
    a, b = many.extend([Feed(0, [20]), Feed(1, [21])])
    close(a.logits, rows_of(model, [*TOKENS, 20])[-1:])
    close(b.logits, rows_of(model, [*TOKENS, 21])[-1:])
    many.close()


def test_adapters_are_fixed_per_context(model: LlamaModel, tmp_path: Path) -> None:
    from converters.adapter import convert_adapter

    convert_adapter(tiny.write_peft(tmp_path / "peft"), model.path, tmp_path / "a.gguf", dtype="f32")
    plain, adapted = source(model), source(model, adapter=model.load_adapter(tmp_path / "a.gguf"))
    before = plain.extend([Feed(0, TOKENS)])[0].logits.copy()
    changed = adapted.extend([Feed(0, TOKENS)])[0].logits
    assert np.abs(changed - before).max() > 0.5
    plain.rewind(0, 0)
    np.testing.assert_array_equal(plain.extend([Feed(0, TOKENS)])[0].logits, before)
    adapted.close()
    plain.close()


def test_too_many_tokens_are_refused_before_anything_is_read(model: LlamaModel) -> None:
    small = source(model, context=16)
    small.extend([Feed(0, TOKENS, 0)])
    with pytest.raises(ContextError, match="17 tokens do not fit in a context of 16"):
        small.extend([Feed(0, [1] * 5)])
    assert small.length(0) == len(TOKENS)
    close(small.extend([Feed(0, [1])])[0].logits, rows_of(model, [*TOKENS, 1])[-1:])
    small.close()


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        (Feed(0, [100_000]), "outside the vocabulary"),
        (Feed(0, [-1]), "outside the vocabulary"),
        (Feed(3, [1]), "sequence 3 does not exist"),
        (Feed(-1, [1]), "sequence -1 does not exist"),
        (Feed(0, [1], 2), "2 rows were asked of 1"),
        (Feed(0, [], -1), "-1 rows"),
    ],
)
def test_what_would_abort_the_process_is_a_sentence(model: LlamaModel, feed: Feed, words: str) -> None:
    one = source(model)
    with pytest.raises(ModelError, match=words):
        one.extend([feed])
    for act in (lambda: one.rewind(0, 1), lambda: one.rewind(0, -1), lambda: one.fork(0, 5), lambda: one.length(2)):
        with pytest.raises(ModelError):
            act()
    close(one.extend([Feed(0, [1])])[0].logits, rows_of(model, [1]))
    one.close()
    for act in (
        lambda: one.extend([Feed(0, [1])]),
        lambda: one.rewind(0, 0),
        lambda: one.fork(0, 0),
        lambda: one.length(0),
    ):
        with pytest.raises(ModelError, match="closed"):
            act()
    one.close()


def test_more_sequences_than_rows_and_than_a_batch(model: LlamaModel) -> None:
    many = source(model, sequences=9, max_rows=1, context=16)
    got = many.extend([Feed(i, [i + 3]) for i in range(9)])
    for i, rows in enumerate(got):
        close(rows.logits, rows_of(model, [i + 3]))
    many.close()
    with pytest.raises(ModelError, match="9 sequences"):
        source(model, sequences=9, batch=4)


def test_forked_sequences_grow_to_their_ends(model: LlamaModel) -> None:
    """llama.cpp makes caches of a multiple of 256 cells: here its last cell is ours, too."""
    many = source(model, context=256, sequences=3)
    many.fork(0, 1)
    many.extend([Feed(0, TOKENS, 0), Feed(1, [1, 2, 3], 0)])
    many.rewind(0, 7)
    many.fork(0, 2)
    many.rewind(0, 5)  # the copy must still be that of seven tokens
    a, b = many.extend([Feed(0, [20]), Feed(2, [21])])
    close(a.logits, rows_of(model, [*TOKENS[:5], 20])[-1:])
    close(b.logits, rows_of(model, [*TOKENS[:7], 21])[-1:])
    for seq in range(3):
        many.extend([Feed(seq, [4] * (256 - many.length(seq)), 0)])
    for seq in range(3):
        with pytest.raises(ContextError, match="257 tokens do not fit in a context of 256"):
            many.extend([Feed(seq, [1])])
    assert [many.length(seq) for seq in range(3)] == [256] * 3
    many.close()


@pytest.mark.parametrize("length", [20, 300])
def test_rows_do_not_depend_on_what_other_sequences_hold(model: LlamaModel, length: int) -> None:
    found = []
    for others in ([[9], [8, 7]], [[120] * 30, [77] * 290]):
        many = source(model, context=512, sequences=3, threads=2)
        for seq, text in enumerate(others, 1):
            many.extend([Feed(seq, text, 0)])
        many.extend([Feed(0, [3 + i % 200 for i in range(length)], 0)])
        rows = many.extend([Feed(0, [5]), *(Feed(seq, text[:1]) for seq, text in enumerate(others, 1))])
        found.append(rows[0].logits.copy())
        many.close()
    close(*found)


def test_text_and_tokens(model: LlamaModel) -> None:
    text = "the wörld 😀 <|im_end|>"
    literal = model.encode(text, special=False)
    assert b"".join(map(model.piece, literal)).decode() == text
    special = model.encode(text, special=True)
    assert model.is_end(special[-1]) and not model.is_end(special[0])
    assert model.piece(special[-1]) == b"" and model.piece(special[-1], special=True) == b"<|im_end|>"
    assert model.encode("", special=True) == []
    assert (model.bos, model.eos) == ("<|im_start|>", "<|im_end|>")
    assert model.chat_template == tiny.CHAT_TEMPLATE
    assert len(model.texts()) == model.size == model.n_vocab
    with pytest.raises(ModelError, match="outside the vocabulary"):
        model.piece(model.n_vocab)
    assert not model.is_end(-1) and not model.is_end(model.n_vocab)


def test_padding_is_not_part_of_the_vocabulary(tmp_path: Path) -> None:
    shape = tiny.TinyShape(vocabulary=tiny.TinyVocabulary(padding=13))
    padded = LlamaModel(tiny.write_gguf(tmp_path / "padded.gguf", shape), vocab_only=True)
    assert (padded.size, padded.n_vocab) == (shape.vocab - 13, shape.vocab)
    padded.close()


def test_a_closed_model_answers_with_a_sentence(tmp_path: Path) -> None:
    closed = LlamaModel(tiny.write_gguf(tmp_path / "closed.gguf"), vocab_only=True)
    closed.close()
    for act in (
        lambda: closed.encode("x", special=True),
        lambda: closed.piece(5),
        lambda: closed.is_end(5),
        closed.texts,
    ):
        with pytest.raises(ModelError, match="closed.gguf is closed"):
            act()


def test_models_without_a_vocabulary_are_refused(tmp_path: Path) -> None:
    """llama.cpp aborts the process when it is asked for a token's text."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    shape = tiny.TinyShape()
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="has no vocabulary"):
        LlamaModel(tmp_path / "bare.gguf", vocab_only=True)


def test_encoders_are_refused(tmp_path: Path) -> None:
    """An encoder keeps no KV cache; llama.cpp aborts the process when one row of it is asked for."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "bert.gguf", "bert")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_tokenizer_model("bert")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2581a", "\u2581b", "c"]
    writer.add_token_list(tokens)
    writer.add_token_type_count(2)
    for name in ("unk", "sep", "pad", "mask"):
        getattr(writer, f"add_{name}_token_id")(tokens.index(f"[{name.upper()}]"))
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))

    add("token_embd.weight", len(tokens), 32)
    add("position_embd.weight", 64, 32)
    add("token_types.weight", 2, 32)
    for norm in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        add(f"{norm}.weight", 32)
        add(f"{norm}.bias", 32)
    for part, out, into in (("attn_q", 32, 32), ("attn_k", 32, 32), ("attn_v", 32, 32), ("attn_output", 32, 32)):
        add(f"blk.0.{part}.weight", out, into)
        add(f"blk.0.{part}.bias", out)
    add("blk.0.ffn_up.weight", 64, 32)
    add("blk.0.ffn_up.bias", 64)
    add("blk.0.ffn_down.weight", 32, 64)
    add("blk.0.ffn_down.bias", 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    encoder = LlamaModel(tmp_path / "bert.gguf")
    with pytest.raises(ModelError, match="keeps no KV cache"):
        source(encoder)
    encoder.close()


def test_files_that_are_missing_cut_short_or_something_else(model: LlamaModel, tmp_path: Path) -> None:
    whole = model.path.read_bytes()
    for name, content in {
        "text": b"hello",
        "empty": b"",
        "magic": b"GGUF",
        "header": whole[:200],
        "half": whole[: len(whole) // 2],
        "short": whole[:-1000],
        "version": whole[:4] + b"\xff" * 4 + whole[8:],
        "counts": whole[:8] + b"\xff" * 16 + whole[24:],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelError, match=name):
            LlamaModel(path)
        with pytest.raises(ModelError, match=name):
            model.load_adapter(path)
    with pytest.raises(ModelError, match="gone"):
        LlamaModel(tmp_path / "gone")
    with pytest.raises(ModelError):
        LlamaModel(tmp_path)
