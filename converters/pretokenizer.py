"""How a byte-level BPE tokenizer cuts text before it merges, and llama.cpp's name for that.

llama.cpp has the expressions in its code, and a GGUF only names them (``tokenizer.ggml.pre``). A tokenizer.json has
them written out, so the name follows from what is there, whoever made the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from frcli.errors import ModelError

Step = tuple[Any, ...]

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = tuple(rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{a}{_LOWER}{b}" for a, b in (("*", "+"), ("+", "*")))
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

_LLAMA = "|".join((_ENDINGS, _WORD, r"\p{N}{1,3}", _OTHERS, _SPACES))
_QWEN = "|".join((_ENDINGS, _WORD, r"\p{N}", _OTHERS, _SPACES))
_TEKKEN = "|".join((*_CASED, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES))

_BYTES, _BYTES_BY_GPT2 = ("bytes", False), ("bytes", True)
_KNOWN: dict[tuple[Step, ...], str] = {
    (_BYTES_BY_GPT2,): "gpt-2",
    (("digits",), _BYTES_BY_GPT2): "smollm",
    (("split", _LLAMA), _BYTES): "llama-bpe",
    (("split", _QWEN), _BYTES): "qwen2",
    (("split", _TEKKEN), _BYTES): "tekken",
}
NAMES = tuple(sorted(_KNOWN.values()))


def pre_tokenizer_name(tokenizer: Mapping[str, Any], file: object) -> str:
    """Return llama.cpp's name of the way in which a tokenizer.json cuts text.

    Raises ``ModelError``, saying what is not known, for one that llama.cpp has no name for, or none that is known here.
    """
    normalizer = tokenizer.get("normalizer")
    # llama.cpp never normalizes; NFC leaves nearly all text as it is.
    if normalizer and normalizer.get("type") != "NFC":
        raise ModelError(
            f"{file} normalizes text by {normalizer.get('type')}, which llama.cpp does not do with such a vocabulary",
            "name the nearest pre-tokenizer of llama.cpp with --pre if you accept other tokens",
        )
    steps = tuple(_steps(tokenizer.get("pre_tokenizer") or {}))
    if steps not in _KNOWN:
        raise ModelError(
            f"{file} cuts text in a way that is not known: {' then '.join(map(_shown, steps))}",
            f"known are {', '.join(NAMES)}; name llama.cpp's pre-tokenizer with --pre if it has this one",
        )
    return _KNOWN[steps]


def _steps(node: Mapping[str, Any]) -> Iterator[Step]:
    kind = node.get("type")
    if kind == "Sequence":
        for child in node.get("pretokenizers", ()):
            yield from _steps(child)
    elif kind == "ByteLevel" and not node.get("add_prefix_space"):
        yield "bytes", node.get("use_regex", True)
    elif kind == "Digits" and node.get("individual_digits"):
        yield ("digits",)
    elif kind == "Split" and _keeps_matches(node):
        yield "split", node.get("pattern", {}).get("Regex")
    else:
        yield (kind or "nothing", str({key: value for key, value in node.items() if key != "type"}))


def _keeps_matches(node: Mapping[str, Any]) -> bool:
    """Whether each match becomes a piece; the expressions leave nothing between matches."""
    manner = str(node.get("behavior")).lower(), bool(node.get("invert"))
    return manner in (("isolated", False), ("removed", True))


def _shown(step: Step) -> str:
    return " ".join(map(str, step))
