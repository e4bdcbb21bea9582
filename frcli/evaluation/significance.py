"""How sure a mean and a difference are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000


def standard_error(scores: Sequence[float]) -> float:
    """Of their mean: the sample's standard deviation by the root of its size, NaN for fewer than two (as lm-eval's)."""
    return float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan


def paired(
    differences: Sequence[Sequence[float]], seed: int, sizes: Sequence[Sequence[float]] | None = None
) -> tuple[float, float, float]:
    """The mean of the tasks' mean differences and its 95 % interval, by the bootstrap over items.

    ``differences`` holds, for each task, one system's scores minus another's on the same items. Items are drawn again
    within each task, so that every task weighs the same (Efron and Tibshirani 1993, ch. 13: percentile interval). With
    ``sizes`` a task's mean is the sum of its differences by that of its sizes: summed NLL by tokens.
    """
    random = np.random.default_rng(seed)
    means: NDArray[np.float64] = np.zeros(_RESAMPLES)
    whole = 0.0
    for number, task in enumerate(differences):
        values = np.asarray(task, np.float64)
        counts = np.ones(len(values)) if sizes is None else np.asarray(sizes[number], np.float64)
        whole += values.sum() / counts.sum()
        for start in range(0, _RESAMPLES, 1000):  # the drawn numbers of all at once would take a gigabyte
            drawn = random.integers(0, len(values), (1000, len(values)))
            means[start : start + 1000] += values[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    means /= len(differences)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(whole / len(differences)), float(low), float(high)
