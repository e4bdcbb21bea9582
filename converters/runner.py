"""A model of any form that gives logits for whole texts: what is compared with another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Rows that are compared at once: those of a whole text would take gigabytes.
BLOCK = 64


class Rows(NamedTuple):
    """What a model says after some tokens: logits float32 [tokens, vocab], and what a router's heads say: weights of
    the experts for a token and for a whole answer, float32 [tokens, experts], and the gate, float32 [tokens, 1].
    """

    logits: Array
    routing: Array | None = None
    prompt: Array | None = None
    gate: Array | None = None


class Runner(Protocol):
    """A model of any form that reads texts."""

    @property
    def vocab(self) -> int:
        """Number of logits in a row."""

    @property
    def context(self) -> int:
        """Number of tokens that a text may have."""

    def blocks(self, tokens: Sequence[int]) -> Iterator[Rows]:
        """Yield the rows of a text from its beginning, ``BLOCK`` at a time; a block holds until the next one."""

    def close(self) -> None:
        """Free the model."""
