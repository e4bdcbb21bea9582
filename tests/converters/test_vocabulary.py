"""Tokenizers of every supported kind: llama.cpp cuts text as the package tokenizers does."""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import vocabularies

from converters.gguf_file import write_vocabulary
from converters.llamacpp import tokenize_all
from converters.tokenization import COMMON, RARE, disagreement, reference_ids
from converters.vocabulary import CONTROL, UNUSED, USER_DEFINED, Vocabulary, read_vocabulary
from frcli.errors import ModelError

WIDTH = 768


def _write(folder: Path, vocabulary: Vocabulary, name: str = "tiny") -> Path:
    config: Any = SimpleNamespace(family="llama")
    write_vocabulary(folder / "vocabulary.gguf", vocabulary, config, {"name": name})
    return folder / "vocabulary.gguf"


# What must be among the texts: how to tell that one has it.
CLASSES: dict[str, Callable[[str], bool]] = {
    **{
        f"plane {plane}": lambda text, plane=plane: any(ord(letter) >> 16 == plane for letter in text)
        for plane in vocabularies.PLANES
    },
    "several spaces": lambda text: "  " in text,
    "other spaces": lambda text: any(each in text for each in vocabularies.SPACES),
    "digits": lambda text: re.search("[0-9]{4}", text) is not None,
    "other numbers": lambda text: any(each in text for each in vocabularies.NUMBERS),
    "code": lambda text: any(each in text for each in vocabularies.CODE),
    "special tokens": lambda text: any(each in text for each in vocabularies.MARKS),
    "no normal form": lambda text: not unicodedata.is_normalized("NFC", text),
}
_MARK = "|".join(map(re.escape, vocabularies.MARKS))


def comparable(kind: str) -> Callable[[str], bool]:
    """Whether llama.cpp is expected to cut a text as the tokenizer does: docs/convert.md has the known differences."""
    if kind == "llama-2-metaspace":
        # llama.cpp puts a space before every piece between special tokens, the tokenizer at the start if there is none.
        return lambda text: re.fullmatch(rf"(?! )((?!{_MARK}).)*({_MARK})*", text, re.DOTALL) is not None
    if kind == "phi-3":
        # After special tokens llama.cpp drops spaces of ASCII, the tokenizer those of Unicode.
        return lambda text: not re.search(r"\|>\s*[^\S \t\n\r\v\f]", text)
    if kind == "tekken":
        # llama.cpp's expression for it leaves combining marks out of words, and has capitals of ASCII only.
        return lambda text: not any(unicodedata.category(letter)[0] == "M" for letter in text)
    return lambda text: True


@pytest.mark.train
@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_500_awkward_strings(kind: str, tmp_path: Path) -> None:
    vocabularies.write_tokenizer(tmp_path, kind)
    path = _write(tmp_path, read_vocabulary(tmp_path, WIDTH), "phi-3" if kind == "phi-3" else "tiny")
    form = "NFC" if kind == "qwen2" else ""  # which its tokenizer makes of every text, and llama.cpp does not
    texts = vocabularies.awkward_strings(comparable(kind), form=form)
    assert len(set(texts)) == 500
    few = {name: count for name, has in CLASSES.items() if (count := sum(map(has, texts))) < 5}
    assert few == ({"no normal form": 0} if form else {})
    expected = reference_ids(tmp_path, texts)
    found = tokenize_all(path, texts, add_special=False, parse_special=True)
    assert [text for text, a, b in zip(texts, expected, found, strict=True) if a != b] == []


@pytest.mark.train
@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_what_every_conversion_checks(kind: str, tmp_path: Path) -> None:
    vocabularies.write_tokenizer(tmp_path, kind)
    path = _write(tmp_path, read_vocabulary(tmp_path, WIDTH))
    assert disagreement(path, tmp_path, COMMON) is None
    assert (disagreement(path, tmp_path, RARE) is None) == (kind not in ("tekken", "llama-2-metaspace"))


@pytest.mark.train
def test_another_pre_tokenizer_is_noticed(tmp_path: Path) -> None:
    vocabularies.write_tokenizer(tmp_path, "llama-bpe")
    path = _write(tmp_path, read_vocabulary(tmp_path, WIDTH, pre="gpt-2"))
    assert disagreement(path, tmp_path, COMMON) is not None


@pytest.mark.train
def test_bos_and_eos_are_put_where_transformers_puts_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for kind in ("llama-bpe", "qwen2", "gemma"):
        for settings in ({}, {"add_bos_token": True}, {"add_bos_token": False}):
            folder = tmp_path / f"{kind}{settings}"
            tokenizer = vocabularies.write_tokenizer(folder, kind, **settings)
            vocabulary = read_vocabulary(folder, WIDTH)
            found = tokenize_all(_write(folder, vocabulary), ["a b"], add_special=True, parse_special=False)[0]
            assert found[-1] != 2 and (found[0] == 1) == vocabulary.add_bos
            if not settings:
                expected = tokenizer.encode("a b").ids
                assert found == expected
                assert AutoTokenizer.from_pretrained(folder)("a b").input_ids == expected
            else:
                assert vocabulary.add_bos == settings["add_bos_token"]


@pytest.mark.parametrize("spaced", [True, False])
def test_sentencepiece_models_are_read_without_the_package(spaced: bool, tmp_path: Path) -> None:
    """One as Llama's, which puts a space before the text, and one as Gemma's, which has pieces of several spaces."""
    symbols = ["<tool>"] if spaced else ["<tool>", "\u2581\u2581", "\u2581\u2581\u2581"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentencepiece = pytest.importorskip("sentencepiece")
        (tmp_path / "text").write_text("".join(vocabularies.CORPUS) * 3)
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text"),
            model_prefix=str(tmp_path / "tokenizer"),
            model_type="bpe",
            vocab_size=640,
            byte_fallback=True,
            character_coverage=0.98,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=spaced,
            user_defined_symbols=symbols,
            control_symbols=["<turn>"],
            minloglevel=2,
        )
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    added = {"640": {"content": "<extra>", "special": False}}
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = read_vocabulary(tmp_path, 700)
    assert (vocabulary.model, vocabulary.spaced, vocabulary.add_bos, vocabulary.size) == ("llama", spaced, True, 641)
    assert vocabulary.types[640] == USER_DEFINED and vocabulary.types[641:] == [UNUSED] * 59
    texts = [*vocabularies.awkward_strings(marks=False), *COMMON, *RARE]
    texts += [] if spaced else ["a<tool>b <tool>  c"]
    found = tokenize_all(_write(tmp_path, vocabulary), texts, add_special=False, parse_special=False)
    assert [text for text, ids in zip(texts, found, strict=True) if tokenizer.encode(text) != ids] == []


def test_fields(tmp_path: Path) -> None:
    """Types, unused ids up to the embedding's width, ids by role, flags and the template."""
    vocabularies.write_plain_tokenizer(tmp_path, add_bos_token=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    vocabulary = read_vocabulary(tmp_path, 300)
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_bos, vocabulary.add_eos) == ("gpt2", "smollm", True, False)
    assert vocabulary.special == {"bos": 1, "eos": 2}  # the template's turns end with eos
    assert vocabulary.types[:3] == [CONTROL] * 3
    assert vocabulary.types[vocabulary.size :] == [UNUSED] * (300 - vocabulary.size)
    assert vocabulary.tokens[-1] == "[PAD299]"
    fields = gguf.GGUFReader(_write(tmp_path, vocabulary)).fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.chat_template"].contents().startswith("{% for message")
    (tmp_path / "chat_template.jinja").write_text("{# mine #}")
    assert read_vocabulary(tmp_path, 300).template == "{# mine #}"


def test_the_end_of_a_turn_has_a_place_of_its_own(tmp_path: Path) -> None:
    vocabularies.write_plain_tokenizer(tmp_path, eos_token="<|endoftext|>")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [0, 2], "pad_token_id": 0}))
    assert read_vocabulary(tmp_path, 300).special == {"bos": 1, "eos": 0, "pad": 0, "eot": 2}


def test_templates_by_name(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    vocabularies.write_plain_tokenizer(tmp_path, chat_template=named)
    fields = gguf.GGUFReader(_write(tmp_path, read_vocabulary(tmp_path, 300))).fields
    assert fields["tokenizer.chat_template"].contents() == "A"
    assert fields["tokenizer.chat_template.tool_use"].contents() == "B"


def _change(folder: Path, **values: Any) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | values))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"model": {"type": "Unigram"}}, "'Unigram'"),
        ({"model": {"type": "BPE"}}, "cannot be read: KeyError 'vocab'"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase.*--pre"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace.*known are gpt-2.*--pre"),
        ({"pre_tokenizer": None}, ": nothing"),
        ({"added_tokens": [{"id": "x"}]}, "cannot be read"),
        ({"added_tokens": [{"id": 1 << 40, "content": "x"}]}, "ids and the embedding only 300 rows"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1 << 40}, "merges": []}}, "ids and the embedding only 300"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": -1}, "merges": []}}, "has the id -1"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["\ud800 a"]}}, "cannot be read: UnicodeEncodeError"),
    ],
)
def test_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    vocabularies.write_plain_tokenizer(tmp_path)
    _change(tmp_path, **change)
    with pytest.raises(ModelError, match=match):
        read_vocabulary(tmp_path, 300)


def test_the_name_can_be_given(tmp_path: Path) -> None:
    vocabularies.write_plain_tokenizer(tmp_path)
    _change(tmp_path, pre_tokenizer={"type": "Whitespace"})
    assert read_vocabulary(tmp_path, 300, pre="starcoder").pre == "starcoder"


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json and no tokenizer\.model"):
        read_vocabulary(tmp_path, 300)
    vocabularies.write_plain_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="only 100 rows"):
        read_vocabulary(tmp_path, 100)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*tokenizer\.json"):
        read_vocabulary(tmp_path, 300)
    (tmp_path / "tokenizer.json").unlink()
    for data in (b"", b"\x0a\xff", b"\x0a\x05hello", b"{}"):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(ModelError, match=r"tokenizer\.model"):
            read_vocabulary(tmp_path, 300)
