"""How far to move one distribution along a difference of logits: Dynamic Logit Fusion's objective, in closed form.

With ``A(a) = logsumexp(z + a d)`` and ``P_a = softmax(z + a d)``, for a row z and a direction d,

    KL(P_a || P_0) = a E_{P_a}[d] - (A(a) - A(0))        forth
    KL(P_0 || P_a) = (A(a) - A(0)) - a E_{P_0}[d]        back

Both are 0 at a = 0 and grow with a >= 0: their derivatives are ``a Var_{P_a}(d)`` and ``E_{P_a}[d] - E_{P_0}[d]``, and
``E_{P_a}[d]`` grows with a. Dynamic Logit Fusion (arXiv 2406.15480, equation 5) asks for the a in [0, 2] at which they
come nearest to a target, the divergences of a small expert from its base, by the sum of squares. Each square falls up
to the a that meets its part of the target and grows behind it, so that the best a lies between these two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frcli.sources.source import Logits

LONGEST = 2.0  # the largest alpha that is considered
_CLOSE = 1e-3  # of alpha
_WIDE = 0.2  # of alpha: more is looked over before one valley is searched
_NEGLIGIBLE = 30.0  # nats below the likeliest token: a vocabulary of such tokens weighs less than 1e-7
_GOLDEN = (5**0.5 - 1) / 2

# Divergences in nats: of the moved distribution from where it was, and the other way round.
Shift = tuple[float, float]


def shift(row: Logits, before: Logits) -> Shift:
    """``KL(softmax(row) || softmax(before))`` and ``KL(softmax(before) || softmax(row))``, in nats, of rows float32
    [width].
    """
    likely = (row > row.max() - _NEGLIGIBLE) | (before > before.max() - _NEGLIGIBLE)
    p, q = _log_softmax(row[likely]), _log_softmax(before[likely])
    gap = p - q
    return float(np.exp(p) @ gap), float(-(np.exp(q) @ gap))


def best_alpha(row: Logits, direction: Logits, target: Shift) -> tuple[float, float]:
    """The alpha in [0, 2] at which ``row``, float32 [width], moved along ``direction`` is shifted most nearly by
    ``target``, to within 1e-3; and the squared distance that is left.

    The smaller one of equals: 0 for a direction that changes nothing.
    """
    curve = _Curve(row, direction)
    if curve.flat:
        return 0.0, _loss((0.0, 0.0), target)

    def loss(alpha: float) -> float:
        return _loss(curve.at(alpha), target)

    low, high = sorted(curve.reach(part, target[part]) for part in (0, 1))
    if high - low > _WIDE:  # one square falls and the other grows here, so that their sum may have two valleys
        points = np.linspace(low, high, 7).tolist()
        best = min(range(7), key=lambda i: loss(points[i]))
        low, high = points[max(0, best - 1)], points[min(6, best + 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    while high - low > _CLOSE:
        if loss(left) <= loss(right):
            high, right = right, left
            left = high - _GOLDEN * (high - low)
        else:
            low, left = left, right
            right = low + _GOLDEN * (high - low)
    return min(((alpha, loss(alpha)) for alpha in (low, left, right, high)), key=lambda found: found[1])


def grid_alpha(row: Logits, direction: Logits, target: Shift) -> tuple[float, float]:
    """The paper's own search: 21 alphas from 0 to 2, divergences computed directly; the first of equals wins."""
    losses = [
        (float(alpha), _loss(shift(row + np.float32(alpha) * direction, row), target))
        for alpha in np.linspace(0, LONGEST, 21)
    ]
    return min(losses, key=lambda found: found[1])


class _Curve:
    """Divergences along a direction, each alpha computed once."""

    def __init__(self, row: Logits, direction: Logits) -> None:
        # A token's logit is linear in alpha, so one that is negligible at both ends is so everywhere between. In double
        # precision, since small differences of large sums count.
        end = row + np.float32(LONGEST) * direction
        winners = row.argmax(), end.argmax()
        floor = max(min(row[i], end[i]) for i in winners) - _NEGLIGIBLE
        likely = (row > floor) | (end > floor)
        self._row, self._direction = row[likely].astype(np.float64), direction[likely].astype(np.float64)
        self._row -= self._row.max()
        odds = np.exp(self._row)
        total = float(odds.sum())
        self._start = float(np.log(total))
        self._direction -= float(odds @ self._direction) / total  # so that E_{P_0}[d] is 0
        self.flat = not np.abs(self._direction).max(initial=0.0) > 1e-6
        self._known: dict[float, Shift] = {0.0: (0.0, 0.0)}

    def at(self, alpha: float) -> Shift:
        """Divergences forth and back at ``alpha``."""
        if alpha not in self._known:
            logits = self._row + alpha * self._direction
            top = logits.max()
            odds = np.exp(logits - top)
            total = float(odds.sum())
            grown = float(np.log(total) + top) - self._start
            mean = float(odds @ self._direction) / total
            self._known[alpha] = max(0.0, alpha * mean - grown), max(0.0, grown)
        return self._known[alpha]

    def reach(self, part: int, target: float) -> float:
        """The alpha at which one of the divergences is ``target``, 2 if it is beyond; by false position."""
        if target <= 0:
            return 0.0
        low, high = 0.0, LONGEST
        below, above = -target, self.at(high)[part] - target
        if above <= 0:
            return LONGEST
        while high - low > _CLOSE:
            # The divergences grow about as alpha squared at first, so that their roots lie on a straighter line.
            alpha = low + (high - low) * _fraction(below, above, target)
            value = self.at(alpha)[part] - target
            if abs(value) <= 1e-9 * target:
                return alpha
            if value < 0:
                low, below = alpha, value
            else:
                high, above = alpha, value
        return (low + high) / 2


def _fraction(below: float, above: float, target: float) -> float:
    """Where between two alphas the target is expected, kept away from both ends, given what is missing and too much."""
    here, wanted, there = (max(0.0, value) ** 0.5 for value in (target + below, target, target + above))
    share = (wanted - here) / (there - here) if there > here else 0.5
    return min(0.9, max(0.1, share))


def _loss(found: Sequence[float], target: Shift) -> float:
    return float((found[0] - target[0]) ** 2 + (found[1] - target[1]) ** 2)


def _log_softmax(row: Logits) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    shifted = row.astype(np.float64) - float(row.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
