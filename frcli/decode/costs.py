"""What calls of a model cost on this machine, as measured while they are made."""

from __future__ import annotations

_MEMORY = 0.1  # weight of a new measurement in what is remembered
_OUTLIER = 2.0  # a call that takes so many times what was expected was disturbed, and counts for no more than this
_GROWTH = 0.35  # cost of a further token in a call, over that of the first, before it was measured
LONGEST = 32  # tokens; longer calls read prompts, at another rate


class CallCosts:
    """Seconds that a call of a model takes: ``first`` for a call with one token, ``more`` for each further one.

    Both are running means, so that they follow a machine that slows down and a context that fills.
    """

    def __init__(self) -> None:
        self.first = 0.0
        self._growth = _GROWTH

    @property
    def more(self) -> float:
        """Seconds for each token of a call beyond the first."""
        return self.first * self._growth

    def of(self, tokens: int) -> float:
        """Seconds of a call with so many tokens; 0 for none, and before the first measurement."""
        return self.first + (tokens - 1) * self.more if tokens > 0 else 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Take note of a call with so many tokens."""
        if not 1 <= tokens <= LONGEST:
            return
        if tokens == 1:
            seen = min(seconds, _OUTLIER * self.first) if self.first else seconds
            self.first += (_MEMORY if self.first else 1.0) * (seen - self.first)
        elif self.first:
            growth = (min(seconds, _OUTLIER * self.of(tokens)) / self.first - 1) / (tokens - 1)
            self._growth += _MEMORY * (max(0.0, growth) - self._growth)
        else:
            self.first = seconds / (1 + _GROWTH * (tokens - 1))
