"""Reading with a look at the user's wish between: long texts go to a source in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from frcli.decode.costs import CallCosts
from frcli.decode.stopwatch import Stopwatch
from frcli.sources.source import Feed, LogitSource, Rows


class Cancelled(Exception):
    """The caller's ``cancelled`` said so between two batches; the sources hold what they have read."""


class Reader:
    """Feeds sources for one step, counts the time, and stops between two batches when ``cancelled()`` is true."""

    def __init__(self, watch: Stopwatch, cancelled: Callable[[], bool], chunk: int) -> None:
        self.watch, self._cancelled, self._chunk = watch, cancelled, chunk
        self.longest = 0  # tokens in the longest call so far

    def read(self, source: LogitSource, feeds: Sequence[Feed], part: str, costs: CallCosts | None) -> list[Rows]:
        """The rows of the feeds, all in one batch; what a feed has beyond a chunk is read before, chunk by chunk.

        The time counts as ``part``, and the last call is noted in ``costs`` if they are given. Raises ``Cancelled``.
        """
        rest = []
        for feed in feeds:
            at = 0
            while (left := len(feed.tokens) - at) > max(self._chunk, feed.rows):
                self._look()
                piece = min(self._chunk, left - feed.rows)  # rows come from the last call
                source.extend([Feed(feed.seq, feed.tokens[at : at + piece], 0)])
                self.longest = max(self.longest, piece)
                at += piece
            rest.append(Feed(feed.seq, feed.tokens[at:], feed.rows) if at else feed)
        self._look()
        self.watch.lap(part)
        rows = source.extend(rest)
        tokens = sum(len(feed.tokens) for feed in rest)
        self.longest = max(self.longest, tokens)
        spent = self.watch.lap(part)
        if costs is not None:
            costs.observe(tokens, spent)
        return rows

    def _look(self) -> None:
        if self._cancelled():
            raise Cancelled
