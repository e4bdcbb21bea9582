"""The one interface through which the engine knows a model.

Experts, router, and later draft models and small models are all a :class:`LogitSource`: a causal language model that
holds, for each of several sequences, a prefix that can be extended, rewound and forked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from frcli.errors import ContextError, ModelError

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to read after a sequence's prefix, and for how many of the last of them a row of logits is wanted.

    ``rows`` may be 0 (read only) and is at most ``len(tokens)``.
    """

    seq: int
    tokens: Sequence[int]
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Rows:
    """What a feed gave: ``logits`` float32 [rows, width] and, from a router, ``weights`` float32 [rows, n_experts].

    ``prompt_weights`` of the same shape, from a router that has them, choose an expert for a whole answer, and ``gate``
    float32 [rows] says how much its logits count, from 0 to 1. All may be
    views into the model's own memory: they hold until the next ``extend`` of the same source.
    """

    logits: Logits
    weights: Logits | None = None
    prompt_weights: Logits | None = None
    gate: Logits | None = None


class LogitSource(Protocol):
    """One causal language model with a rewindable prefix per sequence."""

    @property
    def width(self) -> int:
        """Number of logits in a row."""

    @property
    def context(self) -> int:
        """Number of tokens that one sequence can hold."""

    def length(self, seq: int) -> int:
        """Number of tokens that the sequence has read."""

    def extend(self, feeds: Sequence[Feed]) -> list[Rows]:
        """Read the feeds' tokens, all sequences in one batch, and return one ``Rows`` for each feed, in order.

        Raises ``ContextError`` before anything is read when a sequence would outgrow ``context``, and ``ModelError``
        when the model fails; the prefixes are then as long as ``length`` says.
        """

    def rewind(self, seq: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of the sequence."""

    def fork(self, src: int, dst: int) -> None:
        """Make ``dst`` a copy of ``src``'s prefix."""

    def close(self) -> None:
        """Free the model's memory; every row it gave becomes invalid."""


def check_feeds(feeds: Sequence[Feed], lengths: Sequence[int], *, context: int, width: int, name: str) -> None:
    """Raise for feeds that a source must not begin to read, given how many tokens its sequences have read.

    ``ContextError`` for a sequence that would outgrow ``context``; ``ModelError`` for a sequence, a token or a number
    of rows that does not exist. C libraries answer some of these by ending the process.
    """
    grown = list(lengths)
    for feed in feeds:
        n = len(feed.tokens)
        if not 0 <= feed.rows <= n:
            raise ModelError(f"{feed.rows} rows were asked of {n} tokens")
        check_sequence(feed.seq, len(lengths), name)
        grown[feed.seq] += n
        if grown[feed.seq] > context:
            raise ContextError(
                f"{grown[feed.seq]} tokens do not fit in a context of {context}", "shorten the text or raise --ctx"
            )
        if n and not 0 <= min(feed.tokens) <= max(feed.tokens) < width:
            raise ModelError(f"a token is outside the vocabulary of {width} of {name}")


def check_sequence(seq: int, sequences: int, name: str) -> int:
    """``seq``, or ``ModelError`` when a source of so many sequences does not hold it."""
    if not 0 <= seq < sequences:
        raise ModelError(f"sequence {seq} does not exist: {name} holds {sequences}")
    return seq
