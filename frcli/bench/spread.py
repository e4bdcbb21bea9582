"""Numbers that were measured several times, and ratios of two of them.

On a machine that does other things too, single numbers mean little. What is compared is measured in turns, a ratio is
taken within each repetition, and the median of these ratios is shown with the lowest and the highest.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of ``repetitions`` numbers."""

    median: float
    low: float
    high: float
    repetitions: int

    def plain(self) -> dict[str, Any]:
        """The spread as JSON holds it, in six significant digits."""
        return {
            "median": significant(self.median),
            "low": significant(self.low),
            "high": significant(self.high),
            "repetitions": self.repetitions,
        }


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of the numbers that are there; None when there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.median(known), min(known), max(known), len(known))


def ratio(above: Sequence[float | None], below: Sequence[float | None]) -> Spread | None:
    """The spread of ``above[i] / below[i]`` over the repetitions in which both were measured; None without any.

    A number that is not above zero was not measured.
    """
    return spread(a / b for a, b in zip(above, below, strict=True) if a and b and a > 0 and b > 0)


def significant(value: float) -> float:
    """The number in six significant digits."""
    return float(f"{value:.6g}")
