"""How well a converted model agrees with its source on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.llamacpp import tokenize
from frcli.errors import ModelError

Array = NDArray[np.float32]

TEXT = """\
The ferry left the harbour an hour late, and nobody on deck seemed to mind. A girl counted gulls aloud; her father read
the same page of a newspaper twice. When the rain came they moved inside, ordered tea, and talked about the house they
had sold.

Question: A baker makes 18 trays of 24 rolls and sells 375 of them before noon. How many rolls are left?
Answer: 18 * 24 = 432 rolls in all. 432 - 375 = 57, so 57 rolls are left.

def moving_average(values, width):
    total = sum(values[:width])
    yield total / width
    for old, new in zip(values, values[width:]):
        total += new - old
        yield total / width

If every lighthouse is tall, and nothing tall is hidden, then no lighthouse is hidden. The tower at the cape is a
lighthouse. Therefore the tower at the cape is not hidden: true.

Solve x^2 - 5x + 6 = 0. The factors are (x - 2)(x - 3), hence x = 2 or x = 3.
"""


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of a result with its source over ``tokens`` positions of one text.

    ``mean_kl`` and ``max_kl`` are KL(source || result) of the next-token distributions, in nats; ``top1`` is the share
    of positions with the same most likely token; ``routing_kl`` is the mean KL of the softmax of the routing weights,
    if there are any.
    """

    mean_kl: float
    max_kl: float
    top1: float
    tokens: int
    routing_kl: float | None = None

    def __str__(self) -> str:
        line = (
            f"KL {self.mean_kl:.2e} (max {self.max_kl:.2e}) nats, same top token {self.top1:.1%}, {self.tokens} tokens"
        )
        return line if self.routing_kl is None else f"{line}, routing KL {self.routing_kl:.2e}"

    def require(self, limit: float, what: str) -> Parity:
        """Return this parity, or raise ``ModelError`` if its mean KL is above ``limit`` nats or not a number."""
        if not self.mean_kl <= limit:
            raise ModelError(
                f"{what} does not agree with its source: {self}", "nothing was written; please report this"
            )
        return self


def compare(
    source: Array, result: Array, source_routing: Array | None = None, result_routing: Array | None = None
) -> Parity:
    """Return the parity of logits, float32 [tokens, vocab], and of routing weights, float32 [tokens, experts]."""
    divergence = kl(source, result)
    routing = None
    if source_routing is not None and result_routing is not None:
        routing = float(kl(source_routing, result_routing).mean())
    same = source.argmax(axis=-1) == result.argmax(axis=-1)
    return Parity(float(divergence.mean()), float(divergence.max()), float(same.mean()), len(source), routing)


def kl(source: Array, result: Array) -> NDArray[np.float64]:
    """Return sum_v p_v (log p_v - log q_v) of each row in nats, float64 [rows], where p and q are the rows' softmax."""
    divergence = np.empty(len(source))
    for row, (left, right) in enumerate(zip(source, result, strict=True)):
        p, q = _log_softmax(left), _log_softmax(right)
        divergence[row] = np.exp(p) @ (p - q)
    return np.maximum(divergence, 0.0)  # rounding alone can take equal rows below zero


def check_tokens(base: Path, vocab: int, limit: int = 320) -> list[int]:
    """Return the ids of the built-in text in the base's own vocabulary, at most ``limit``.

    If the base is no GGUF with a vocabulary or llama.cpp is not installed, the ids are pseudo-random, the same every
    time.
    """
    ids = tokenize(base, TEXT) if base.is_file() else []
    if len(ids) < 16 or max(ids) >= vocab:
        ids = np.random.default_rng(20260).integers(0, vocab, size=limit).tolist()
    return ids[:limit]


def _log_softmax(row: Array) -> NDArray[np.float64]:
    shifted = row.astype(np.float64) - row.max()
    normal: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normal
