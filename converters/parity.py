"""How well a converted model agrees with its source on the same tokens."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.llamacpp import tokenize
from converters.runner import Array, Rows, Runner
from frcli.errors import ModelError

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

_WORST = 8
_TOP = 10


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text that is read by itself: its ids, the id that follows each of them (None if none does), and at
    which token of the text it begins.
    """

    tokens: Sequence[int]
    following: Sequence[int | None]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """How two models differ at one position: the token of the text, KL in nats, the id that was read last, the id that
    follows, and the most likely id of each model with its probability.
    """

    position: int
    kl: float
    token: int
    following: int | None
    source: tuple[int, float]
    result: tuple[int, float]


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of a result with its source over ``tokens`` positions of a text.

    ``mean_kl`` and ``max_kl`` are KL(source || result) of the next-token distributions, in nats; ``top1`` is the share
    of positions with the same most likely token, ``top10`` the share of the source's ten most likely tokens that are
    among the result's; ``routing_kl`` and ``prompt_kl`` are the mean KL of the softmax of a router's weights of the
    experts, for a token and for a whole answer, ``gate_distance`` is how far its gates are apart in the mean, if it
    has these heads. ``perplexity`` is that of source and result on the text, None if nothing is known to follow;
    ``worst`` are the positions with the largest KL, the largest first.
    """

    mean_kl: float
    max_kl: float
    top1: float
    tokens: int
    routing_kl: float | None = None
    top10: float | None = None
    perplexity: tuple[float, float] | None = None
    worst: tuple[Difference, ...] = ()
    prompt_kl: float | None = None
    gate_distance: float | None = None

    def __str__(self) -> str:
        parts = [f"KL {self.mean_kl:.2e} (max {self.max_kl:.2e}) nats", f"same top token {self.top1:.1%}"]
        if self.top10 is not None:
            parts.append(f"top ten {self.top10:.1%}")
        if self.perplexity is not None:
            parts.append("perplexity {:.4g} and {:.4g}".format(*self.perplexity))
        parts.append(f"{self.tokens} tokens")
        heads = {"routing KL": self.routing_kl, "prompt routing KL": self.prompt_kl, "gates apart": self.gate_distance}
        parts += [f"{name} {value:.2e}" for name, value in heads.items() if value is not None]
        return ", ".join(parts)

    def require(self, limit: float, what: str) -> Parity:
        """Return this parity, or raise ``ModelError`` if its mean KL is above ``limit`` nats or not a number."""
        if not self.mean_kl <= limit:
            raise ModelError(
                f"{what} does not agree with its source: {self}", "nothing was written; please report this"
            )
        return self


class Tally:
    """Adds up the agreement of two models, some rows at a time."""

    def __init__(self) -> None:
        self._count = self._same = self._scored = 0
        self._kl = self._largest = self._common = 0.0
        self._surprise = np.zeros(2)
        self._heads: dict[str, float] = {}
        self._worst: list[tuple[float, int, Difference]] = []

    def add(self, window: Window, source: Rows, result: Rows, at: int = 0) -> None:
        """Count the rows that the two models gave for the tokens of the window from ``at`` on.

        Of rows of two widths the common ids count: wider ones have padding behind the vocabulary.
        """
        for index in range(len(source.logits)):
            left, right = source.logits[index], result.logits[index]
            width = min(len(left), len(right))
            self._add_row(window, at + index, left[:width], right[:width])
        for name, of in (("routing", kl), ("prompt", kl), ("gate", _distance)):
            left, right = getattr(source, name), getattr(result, name)
            if left is not None and right is not None:
                self._heads[name] = self._heads.get(name, 0.0) + float(of(left, right).sum())

    def add_blocks(self, window: Window, source: Iterable[Rows], result: Iterable[Rows]) -> None:
        """Add what both models say of a whole window, block by block; their blocks are of the same lengths."""
        at = 0
        for left, right in zip(source, result, strict=True):
            self.add(window, left, right, at)
            at += len(left.logits)

    def _add_row(self, window: Window, at: int, left: Array, right: Array) -> None:
        p, q = _log_softmax(left), _log_softmax(right)
        divergence = _kl(p, q)
        position = window.start + at
        following = window.following[at]
        tops = int(left.argmax()), int(right.argmax())
        best = min(_TOP, len(left))
        common = np.intersect1d(np.argpartition(left, -best)[-best:], np.argpartition(right, -best)[-best:])
        self._count += 1
        self._kl += divergence
        self._largest = float(np.maximum(divergence, self._largest))  # which keeps NaN
        self._same += tops[0] == tops[1]
        self._common += len(common) / best
        if following is not None and following < len(left):
            self._surprise -= p[following], q[following]
            self._scored += 1
        entry = math.inf if math.isnan(divergence) else divergence, -self._count
        if len(self._worst) < _WORST or entry > self._worst[0][:2]:
            (a, b) = tops
            found = Difference(position, divergence, window.tokens[at], following, (a, _odds(p[a])), (b, _odds(q[b])))
            (heapq.heappushpop if len(self._worst) == _WORST else heapq.heappush)(self._worst, (*entry, found))

    def parity(self) -> Parity:
        """Return the agreement over all rows; raises ``ModelError`` if there were none."""
        n = self._count
        if not n:
            raise ModelError("there are no tokens to compare the models on", "give a longer text")
        perplexity = None
        if self._scored:
            with np.errstate(over="ignore"):
                one, other = np.exp(self._surprise / self._scored).tolist()
            perplexity = one, other
        heads = {name: value / n for name, value in self._heads.items()}
        return Parity(
            self._kl / n,
            self._largest,
            self._same / n,
            n,
            heads.get("routing"),
            self._common / n,
            perplexity,
            tuple(found for *_, found in sorted(self._worst, key=lambda entry: entry[:2], reverse=True)),
            heads.get("prompt"),
            heads.get("gate"),
        )


def measure(source: Runner, result: Runner, windows: Iterable[Window]) -> Parity:
    """Return the agreement of two models over windows of a text, which both read block by block."""
    tally = Tally()
    for window in windows:
        tally.add_blocks(window, source.blocks(window.tokens), result.blocks(window.tokens))
    return tally.parity()


def compare(source: Rows, result: Rows, window: Window | None = None) -> Parity:
    """Return the parity of the rows for the tokens of ``window``; without it nothing is known of the text."""
    tally = Tally()
    tally.add(window or Window([-1] * len(source.logits), [None] * len(source.logits)), source, result)
    return tally.parity()


def kl(source: Array, result: Array) -> NDArray[np.float64]:
    """Return sum_v p_v (log p_v - log q_v) of each row in nats, float64 [rows], where p and q are the rows' softmax."""
    return np.array(
        [_kl(_log_softmax(left), _log_softmax(right)) for left, right in zip(source, result, strict=True)],
        dtype=np.float64,
    )


def _distance(source: Array, result: Array) -> NDArray[np.float64]:
    return np.abs(np.subtract(source, result, dtype=np.float64))


def windows_of(ids: Sequence[int], begin: Sequence[int], length: int) -> Iterator[Window]:
    """Yield a text's ids in windows of at most ``length`` tokens, each with the ids ``begin`` before it, as a model
    expects them at the beginning of a text.
    """
    step = max(length - len(begin), 1)
    for start in range(0, len(ids), step):
        tokens = [*begin, *ids[start : start + step]]
        after = ids[start + step] if start + step < len(ids) else None
        yield Window(tokens, [*tokens[1:], after], start - len(begin))


def check_window(base: Path, vocab: int, limit: int = 320) -> Window:
    """Return the built-in text as one window of at most ``limit`` tokens, in the ids of the base's own vocabulary.

    If the base is no GGUF with a vocabulary or llama.cpp is not installed, the ids are pseudo-random, the same every
    time, and what follows them is not known.
    """
    ids = tokenize(base, TEXT) if base.is_file() else []
    if len(ids) >= 16 and max(ids) < vocab:
        return Window(ids[:limit], [*ids[1:], None][:limit])
    return Window(np.random.default_rng(20260).integers(0, vocab, size=limit).tolist(), [None] * limit)


def _log_softmax(row: Array) -> NDArray[np.float64]:
    shifted = row.astype(np.float64) - row.max()
    normal: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normal


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    divergence = float(np.exp(p) @ (p - q))
    return 0.0 if divergence < 0 else divergence  # rounding alone can take equal rows below zero


def _odds(logarithm: float) -> float:
    return math.exp(logarithm)
