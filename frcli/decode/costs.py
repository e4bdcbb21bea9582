"""What calls of a model cost on this machine, as measured while they are made."""

from __future__ import annotations

_MEMORY = 0.1  # weight of a new measurement in what is remembered
_OUTLIER = 2.0  # a call that takes so many times what was expected was disturbed, and counts for no more than this
_GROWTH = 0.35  # cost of a further token in a call, over that of the first, before it was measured
LONGEST = 32  # tokens; longer calls read prompts, at another rate


class CallCosts:
    """Seconds that a call of a model takes, by the number of tokens in it.

    Running means, so that they follow a machine that slows down and a context that fills. They are no straight line:
    kernels that work on four rows at once read five tokens in the time of eight. A size that was never measured is put
    on the line that fits the others.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._growth = _GROWTH

    @property
    def first(self) -> float:
        """Seconds of a call with one token; 0 before the first measurement."""
        return self._seconds.get(1, 0.0)

    def of(self, tokens: int) -> float:
        """Seconds of a call with so many tokens; 0 for none, and before the first measurement."""
        if tokens <= 0:
            return 0.0
        return self._seconds.get(tokens, self.first * (1 + (tokens - 1) * self._growth))

    def observe(self, tokens: int, seconds: float) -> None:
        """Take note of a call with so many tokens."""
        if not 1 <= tokens <= LONGEST:
            return
        if not self._seconds and tokens > 1:
            self._seconds[1] = seconds / (1 + (tokens - 1) * self._growth)
        expected = self.of(tokens)
        seen = min(seconds, _OUTLIER * expected) if expected else seconds
        known = tokens in self._seconds
        self._seconds[tokens] = expected + _MEMORY * (seen - expected) if known else seen
        if tokens > 1:
            self._growth += _MEMORY * (max(0.0, seen / self.first - 1) / (tokens - 1) - self._growth)
