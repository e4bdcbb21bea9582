"""Sources without a model: their rows are a pure function of the prefix, so that every behaviour of the loop can be
checked exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from frcli.errors import ContextError
from frcli.sources.source import Feed, Logits, Rows

RowOf = Callable[[Sequence[int]], Logits]


def random_rows(width: int, salt: int) -> RowOf:
    """Rows drawn from a generator seeded with the prefix: two sources with the same salt are the same model."""

    def row(prefix: Sequence[int]) -> Logits:
        seed = zlib.crc32(np.array([salt, *prefix], np.int64).tobytes())
        return np.random.default_rng(seed).normal(size=width).astype(np.float32) * 3

    return row


def related_rows(width: int, salt: int, noise: float) -> RowOf:
    """Rows that all models share, with ``noise`` of a model's own: the smaller it is, the more often they agree."""
    common, own = random_rows(width, 1000), random_rows(width, salt)
    return lambda prefix: common(prefix) + np.float32(noise) * own(prefix)


class FakeSource:
    """A ``LogitSource`` that computes its rows from the tokens read, and logs every call as (seq, tokens, rows)."""

    def __init__(
        self, width: int, row: RowOf, *, context: int = 1000, sequences: int = 1, weights: RowOf | None = None
    ) -> None:
        self._width, self._context, self._row, self._weights = width, context, row, weights
        self._read: list[list[int]] = [[] for _ in range(sequences)]
        self.calls: list[list[tuple[int, tuple[int, ...], int]]] = []
        self.rewinds: list[tuple[int, int]] = []
        self.closed = False

    @property
    def width(self) -> int:
        return self._width

    @property
    def context(self) -> int:
        return self._context

    def length(self, seq: int) -> int:
        return len(self._read[seq])

    def extend(self, feeds: Sequence[Feed]) -> list[Rows]:
        assert not self.closed
        assert all(0 <= feed.rows <= len(feed.tokens) for feed in feeds)
        for feed in feeds:
            if len(self._read[feed.seq]) + len(feed.tokens) > self._context:
                raise ContextError("too long")
        self.calls.append([(feed.seq, tuple(feed.tokens), feed.rows) for feed in feeds])
        results = []
        for feed in feeds:
            logits, weights = [], []
            for i, token in enumerate(feed.tokens):
                self._read[feed.seq].append(token)
                if i >= len(feed.tokens) - feed.rows:
                    logits.append(self._row(self._read[feed.seq]))
                    if self._weights:
                        weights.append(self._weights(self._read[feed.seq]))
            shaped = np.array(logits, np.float32).reshape(feed.rows, self._width)
            results.append(Rows(shaped, np.array(weights, np.float32) if self._weights else None))
        return results

    def rewind(self, seq: int, length: int) -> None:
        assert 0 <= length <= len(self._read[seq])
        self.rewinds.append((seq, length))
        del self._read[seq][length:]

    def fork(self, src: int, dst: int) -> None:
        self._read[dst] = list(self._read[src])

    def close(self) -> None:
        self.closed = True


class Greedy:
    """The sampler of tests: the first largest logit; remembers what it accepted."""

    plain = True

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def sample(self, logits: Logits) -> int:
        return int(np.argmax(logits))

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def clone(self) -> Greedy:
        return Greedy()

    def close(self) -> None:
        pass
