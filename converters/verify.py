"""Two models of any form on the same text: how far apart they are."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.llamacpp import beginning, pieces, token_texts, tokenize_all
from converters.parity import TEXT, Difference, Parity, measure, windows_of
from converters.subject import Subject, needs_base, open_subject
from frcli.errors import DataError, ModelError, UsageError
from frcli.tokens import explain_difference, vocabulary_hash

WINDOW = 512  # as llama-perplexity has it
_BEFORE = 8  # tokens that are shown before a position


@dataclass(frozen=True, slots=True)
class Place:
    """A position where two models differ, in words: the text before it, what follows (None at the end of the text),
    and what each model would write.
    """

    difference: Difference
    before: str
    following: str | None
    source: str
    result: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The parity of two models, the positions where they differ most, the length of the windows that the text was read
    in, and what there is to know of the comparison.
    """

    parity: Parity
    places: tuple[Place, ...]
    window: int
    notices: tuple[str, ...] = ()


def verify(
    source: Path,
    result: Path,
    text: str = TEXT,
    *,
    base: Path | None = None,
    result_base: Path | None = None,
    vocabulary: Path | None = None,
    window: int | None = None,
) -> Verification:
    """Return how far ``result`` is from ``source`` on a text, read in windows of ``window`` tokens.

    Both are what :func:`converters.subject.open_subject` opens; ``base`` is that of adapters and trained routers among
    them, ``result_base`` that of the result if it is another one. ``vocabulary`` is a GGUF that has the tokenizer of
    two models without one. A window has 512 tokens if not given, or as many as both models read.

    Raises ``ModelError`` for models that cannot be read or do not share a vocabulary, ``UsageError`` for a base that is
    missing or of no use and for a window that is too long, ``DataError`` for a text without tokens.
    """
    _check_bases(source, result, base, result_base)
    with ExitStack() as stack:
        a = stack.enter_context(open_subject(source, base))
        b = stack.enter_context(open_subject(result, result_base or base))
        words, notices = _shared_vocabulary(a, b, vocabulary)
        length = _window(a, b, window)
        begin = beginning(words)
        ids = tokenize_all(words, [text], add_special=False, parse_special=False)[0]
        if len(ids) + len(begin) < 2:
            raise DataError("the text has no tokens to compare the models on", "give a longer text")
        length = min(length, len(ids) + len(begin))
        parity = measure(a.runner, b.runner, windows_of(ids, begin, length))
        return Verification(parity, _places(words, ids, parity), length, notices)


def as_json(source: str, result: str, done: Verification, max_kl: float | None = None) -> dict[str, Any]:
    """Return what was found, for JSON: numbers that are none are null."""
    parity = done.parity

    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    ends = parity.perplexity or (None, None)
    return {
        "source": source,
        "result": result,
        "tokens": parity.tokens,
        "window": done.window,
        "kl": {"mean": number(parity.mean_kl), "max": number(parity.max_kl)},
        "top1": parity.top1,
        "top10": parity.top10,
        "perplexity": {"source": number(ends[0]), "result": number(ends[1])},
        "routing_kl": number(parity.routing_kl),
        "prompt_kl": number(parity.prompt_kl),
        "gate_distance": number(parity.gate_distance),
        "max_kl": max_kl,
        "exceeded": max_kl is not None and not parity.mean_kl <= max_kl,
        "notices": list(done.notices),
        "worst": [
            {
                "position": place.difference.position,
                "kl": number(place.difference.kl),
                "before": place.before,
                "following": place.following,
                "source": {"text": place.source, "probability": number(place.difference.source[1])},
                "result": {"text": place.result, "probability": number(place.difference.result[1])},
            }
            for place in done.places
        ],
    }


def _check_bases(source: Path, result: Path, base: Path | None, result_base: Path | None) -> None:
    needed = [needs_base(path) for path in (source, result)]
    if result_base is not None and not needed[1]:
        raise UsageError(f"{result} is a whole model and has no base", "leave --base-b out")
    if base is not None and not needed[0] and (not needed[1] or result_base is not None):
        raise UsageError("neither model needs a base", "leave --base out")


def _shared_vocabulary(a: Subject, b: Subject, given: Path | None) -> tuple[Path, tuple[str, ...]]:
    """The vocabulary to read the text by, and notes; raises ``ModelError`` if the two models have different ones."""
    words = [subject.vocabulary or given for subject in (a, b)]
    chosen = words[0] or words[1]
    if chosen is None:
        raise UsageError(f"neither {a.name} nor {b.name} has a tokenizer", "name a GGUF that has it with --vocab")
    texts = token_texts(chosen)
    for subject in (a, b):
        if subject.vocabulary is not None and subject.vocabulary != chosen:
            problem = explain_difference(
                a.name if a.vocabulary else str(chosen), texts, subject.name, token_texts(subject.vocabulary)
            )
            if problem:
                raise ModelError(problem, "compare models of one family")
        if subject.digest and subject.digest != vocabulary_hash(texts):
            raise ModelError(
                f"{subject.name} was made for another tokenizer than that of {chosen}: its hash is "
                f"{subject.digest[:12]}..., not {vocabulary_hash(texts)[:12]}...",
                "compare it with the model that it was made of",
            )
        if subject.runner.vocab < len(texts):
            raise ModelError(
                f"{subject.name} has logits for {subject.runner.vocab} ids, and the tokenizer has {len(texts)}: "
                f"ids from {subject.runner.vocab} on are missing",
                "compare models that share a tokenizer",
            )
    unsaid = [each.name for each in (a, b) if each.vocabulary is None and not each.digest]
    return chosen, tuple(f"{name} does not say which tokenizer it has, so that was not compared" for name in unsaid)


def _window(a: Subject, b: Subject, asked: int | None) -> int:
    most = min(a.runner.context, b.runner.context)
    if asked is not None and not 2 <= asked <= most:
        raise UsageError(f"a window of {asked} tokens cannot be read", f"choose one from 2 to {most}")
    return asked or min(WINDOW, most)


def _places(words: Path, ids: list[int], parity: Parity) -> tuple[Place, ...]:
    found = []
    for each in parity.worst:
        before = ids[max(0, each.position + 1 - _BEFORE) : each.position + 1]
        shown = [each.source[0], each.result[0]] + ([] if each.following is None else [each.following])
        texts = [part.decode("utf-8", "replace") for part in pieces(words, shown)]
        start = b"".join(pieces(words, before)).decode("utf-8", "replace")
        found.append(Place(each, start, texts[2] if each.following is not None else None, texts[0], texts[1]))
    return tuple(found)
