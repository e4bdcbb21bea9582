"""Which tokens of a vocabulary are no text: those that begin, end and fill one, and control tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from frcli.sources.llama import LlamaModel, library


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The texts of single tokens, empty where there is none, and the ids of those that ``end`` an answer and of those
    that ``control``: they stand for no text, and a user's text is never read as one.
    """

    beginning: str
    end: str
    end_of_turn: str
    padding: str
    ends: frozenset[int]
    controls: frozenset[int]


def special_tokens(model: LlamaModel) -> SpecialTokens:
    """Those of the model, which need not have its weights."""
    lib = library()

    def all_that(are: Callable[..., bool]) -> frozenset[int]:
        return frozenset(token for token in range(model.size) if are(model.vocab, token))

    return SpecialTokens(
        model.bos,
        model.eos,
        model.token_text(lib.llama_vocab_eot(model.vocab)),
        model.token_text(lib.llama_vocab_pad(model.vocab)),
        all_that(lib.llama_vocab_is_eog),
        all_that(lib.llama_vocab_is_control),
    )
