"""Where the time of a step goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of a token's parts: its equal share of the step that gave it, so that sums over tokens are true.

    ``draft`` is the time for guessing, without the router's own calls.
    """

    draft: float = 0.0
    router: float = 0.0
    experts: float = 0.0
    fuse: float = 0.0
    sample: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.draft + self.router + self.experts + self.fuse + self.sample


PARTS = tuple(field.name for field in fields(Timings))


class Stopwatch:
    """Seconds by part of one step; it runs from when it is made."""

    def __init__(self) -> None:
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def lap(self, part: str) -> float:
        """Count the time since the last lap as ``part``, and return it."""
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        self._parts[part] += spent
        return spent

    @property
    def seconds(self) -> float:
        """Sum of all laps."""
        return sum(self._parts.values())

    def share(self, tokens: int) -> Timings:
        """The part of each of so many tokens."""
        return Timings(**{part: seconds / tokens for part, seconds in self._parts.items()})
