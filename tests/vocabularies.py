"""Tiny tokenizers that are built as those of real families, and strings that tokenizers are known to differ in.

KINDS names them by the family. ``write_tokenizer(folder, kind)`` writes tokenizer.json and tokenizer_config.json, and
returns the tokenizer. All were trained on the same few lines: merges of letters, digits, spaces and signs exist, so
that it shows where text is cut.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tiny

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD, SIGNS, SPACES = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
FIRST, SECOND = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
REGEX = {
    "llama-bpe": rf"{ENDINGS}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}",
    "qwen2": rf"{ENDINGS}|{WORD}|\p{{N}}|{SIGNS}|{SPACES}",
    "tekken": rf"{FIRST}|{SECOND}|\p{{N}}|{SLASHED}|{SPACES}",
}
BYTE_LEVEL = ("llama-bpe", "qwen2", "tekken", "smollm", "gpt-2")
BYTE_FALLBACK = ("llama-2", "llama-2-metaspace", "phi-3", "gemma")
KINDS = (*BYTE_LEVEL, *BYTE_FALLBACK)
MARKS = ("<|im_start|>", "<|im_end|>", "<|tool|>")
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"

CORPUS = (
    "The ferry left the harbour an hour late, and nobody on deck seemed to mind.  A girl counted 123456 gulls aloud.\n",
    "def f(x):\n    if x >= 10 and x != 11:\n        return {'a': [x**2, -x]}  # done!\n\n\n\t\tpass\n",
    "I'm you're we've he'll she'd it's IT'S WE'LL DON'T can't; CamelCase ALLCAPS snake_case 1999 2024 2025 3.14\n",
    'https://example.org/a?b=c&d=%20 <div class="a">&nbsp;</div> ... --- ___ !!! ??? /* */ $x->y::z() && ||\n',
    "Ünïcödé naïve café Straße Привет мир Γειά σου 你好世界 日本語の文章 한국어 مرحبا שלום नमस्ते 🙂 👩‍💻 ❤️\n",
)


def write_tokenizer(folder: Path, kind: str, **settings: Any) -> Any:
    """Write tokenizer.json of the kind and tokenizer_config.json with these settings; the tokenizer is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_level(kind) if kind in BYTE_LEVEL else _byte_fallback(kind)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    return tokenizer


def write_plain_tokenizer(folder: Path, vocabulary: tiny.TinyVocabulary | None = None, **settings: Any) -> Path:
    """Write tokenizer.json for the vocabulary of tiny models, cut as SmolLM2 cuts, without the package tokenizers."""
    vocabulary = vocabulary or tiny.TinyVocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    own = range(len(tiny.SPECIAL), len(vocabulary.tokens()) - vocabulary.padding)
    digits = {"type": "Digits", "individual_digits": True}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, "special": True} | flags for i, text in enumerate(tiny.SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, cut]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {vocabulary.tokens()[i]: i for i in own},
            "merges": [f"{a} {b}" for a, b in vocabulary.merges()],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": tiny.CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    return folder


def _byte_level(kind: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    by_gpt2 = kind in ("smollm", "gpt-2")
    cut = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_gpt2)]
    if kind == "smollm":
        cut.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif not by_gpt2:
        cut.insert(0, pre_tokenizers.Split(Regex(REGEX[kind]), "isolated"))
    tokenizer.pre_tokenizer = cut[0] if len(cut) == 1 else pre_tokenizers.Sequence(cut)
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    _add_marks(tokenizer)
    if kind == "llama-bpe":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _byte_fallback(kind: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    spaces = normalizers.Replace(" ", "\u2581")
    # Trained as SentencePiece trains: no merge goes over a space, but one may begin with it; only Gemma joins spaces.
    teacher = Tokenizer(models.BPE())
    teacher.normalizer = spaces
    teacher.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", *bytes_]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=120, show_progress=False)
    teacher.train_from_iterator(CORPUS * 3, trainer)
    learnt = json.loads(teacher.to_str())["model"]
    vocab, merges = dict(learnt["vocab"]), [tuple(merge) for merge in learnt["merges"]]
    if kind == "gemma":
        for count in range(2, 9):
            vocab["\u2581" * count] = len(vocab)
            merges += [("\u2581" * left, "\u2581" * (count - left)) for left in range(1, count)]
    tokenizer = Tokenizer(
        models.BPE(vocab, _all_splits(vocab, merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if kind == "gemma":
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "llama-2-metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    from tokenizers import AddedToken

    ending = AddedToken("</s>", rstrip=kind == "phi-3", normalized=False)
    tokenizer.add_special_tokens([*(AddedToken(text, normalized=False) for text in ("<unk>", "<s>")), ending])
    _add_marks(tokenizer, rstrip=kind == "phi-3")
    if kind == "phi-3":
        tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _all_splits(vocab: dict[str, int], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Every pair that makes a piece, in the order of the pieces: what converting a SentencePiece model gives."""
    order = {left + right: None for left, right in merges}
    return [
        (piece[:cut], piece[cut:])
        for piece in order
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]


def _add_marks(tokenizer: Any, rstrip: bool = False) -> None:
    from tokenizers import AddedToken

    *special, plain = MARKS
    tokenizer.add_special_tokens([AddedToken(text, rstrip=rstrip, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(plain, rstrip=rstrip, normalized=False, special=False)])


PLANES = range(17)
SPACES = ("\n", "\n\n", "\r\n", "\t", "\t\t", " \n ", "\u00a0", "\u3000", "\u2028", "\x0b", "\x1f")
NUMBERS = ("½", "²", "٣٤", "Ⅻ", "１２", "𝟙𝟚", "①")
CODE = ("'s", "'S", "'ll", "'RE", "'", "’s", "->", "!=", "::", "//", "...", "\\n", "{{", "/*")
JOINED = ("🙂", "👩‍💻", "❤️", "🏳️‍🌈", "\u200b", "\ufeff", "\u0301", "e\u0301", "नि", "กำ", "가", "\u1100\u1161")


def awkward_strings(
    comparable: Callable[[str], bool] = lambda text: True, *, form: str = "", marks: bool = True, count: int = 500
) -> list[str]:
    """So many different texts that are ``comparable``, the same every time: with every plane of Unicode, spaces,
    digits, code and, with ``marks``, tokens written out in text.

    Of a plane come characters, of the planes for private use such code points, and of those that have neither any code
    points. All are in the normal ``form``, if one is named; otherwise many are in none.
    """
    random = np.random.default_rng(7)
    common = "".join(CORPUS).split(" ")

    def some(texts: Sequence[str], most: int = 1) -> str:
        return "".join(texts[number] for number in random.integers(0, len(texts), random.integers(1, most + 1)))

    pieces = [
        lambda: some(common),
        lambda: " " * int(random.integers(1, 7)),
        lambda: some(SPACES),
        lambda: some("0123456789", 8),
        lambda: some(NUMBERS),
        lambda: some(_characters(0), 5),
        lambda: "".join(
            some(_characters(plane), 2) for plane in random.integers(1, len(PLANES), random.integers(1, 5))
        ),
        lambda: some(CODE),
        lambda: some(JOINED),
        lambda: unicodedata.normalize("NFD", some(common)),
    ]
    if marks:
        pieces.append(lambda: some(MARKS))
    texts: dict[str, None] = {}
    while len(texts) < count:
        text = "".join(pieces[random.integers(len(pieces))]() for _ in range(random.integers(1, 9)))
        if form:
            text = unicodedata.normalize(form, text)
        if comparable(text):
            texts[text] = None
    return list(texts)


@lru_cache
def _characters(plane: int) -> str:
    """What there is to draw from in a plane."""
    points = range(plane << 16, (plane + 1) << 16)
    kinds = {chr(point): unicodedata.category(chr(point)) for point in points}
    assigned = [character for character, kind in kinds.items() if kind not in ("Cn", "Cs", "Co")]
    private = [character for character, kind in kinds.items() if kind == "Co"]
    return "".join(assigned or private or kinds)
