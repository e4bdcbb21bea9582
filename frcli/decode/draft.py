"""Drafts: guesses of the next tokens, which the experts check in one call instead of writing one token a call.

Two things are guessed from. The text so far (:class:`PromptLookup`) costs nothing, and helps where an answer repeats
what was said. The logits of the policy's drafter, the router under FusionRoute, cost a step of it for each draft, which
an accepted draft would have needed anyway. :class:`Pace` says how far it pays to draft, from what calls cost and how
often such drafts were right.

A draft changes no token of an answer. It is drawn by a copy of the answer's own sampler, with the random numbers that
the sampler will use there: where drafter and experts agree, so do their draws, at any temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frcli.decode.costs import CallCosts
from frcli.errors import UsageError
from frcli.sources.source import Logits

MOST_DRAFTS = 16  # in one window
AUTO, OFF = "auto", "off"

_BINS = 10
_PRIOR = 4.0  # observations that the first guess of a share is worth
_RECENT = 100.0  # observations that are remembered
_UNUSED = 16  # windows in a row without a draft after which drafting is considered only now and then
_SELDOM = 8
_AHEAD = 4  # drafts that are weighed together


def parse_draft(text: str) -> int | None:
    """The number of drafts that ``--draft`` asks for: 0 for ``off``, None for ``auto``.

    Raises ``UsageError`` for anything else.
    """
    if text == AUTO:
        return None
    if text == OFF:
        return 0
    if text.isascii() and text.isdigit() and int(text) <= MOST_DRAFTS:
        return int(text)
    raise UsageError(f"draft is {text!r}", f"it is {AUTO}, {OFF} or a number up to {MOST_DRAFTS}")


class Share:
    """A share of yes among recent observations, by bins of a confidence in [0, 1]; at first the confidence itself."""

    def __init__(self) -> None:
        self._yes = [_PRIOR * (i + 0.5) / _BINS for i in range(_BINS)]
        self._all = [_PRIOR] * _BINS

    def of(self, confidence: float) -> float:
        """The share of yes at such a confidence."""
        i = self._bin(confidence)
        return self._yes[i] / self._all[i]

    def observe(self, confidence: float, yes: bool) -> None:
        """Take note of one observation."""
        i = self._bin(confidence)
        fade = 1 - 1 / _RECENT
        self._yes[i] = self._yes[i] * fade + yes
        self._all[i] = self._all[i] * fade + 1

    @staticmethod
    def _bin(confidence: float) -> int:
        return min(_BINS - 1, max(0, int(confidence * _BINS)))


def confidence(row: Logits, token: int) -> float:
    """Probability of ``token`` under the softmax of ``row``, float32 [width]."""
    best = row.max()
    return float(np.exp(row[token] - best) / np.exp(row - best).sum())


class Pace:
    """How far to draft: while the tokens that a further draft is expected to give are worth the time that it takes.

    Time is valued at ``per_token``, the seconds a token takes at present. By the rule of renewal rewards the windows
    then give most tokens a second when drafting stops as soon as ``P(all drafts so far and this one are accepted) *
    per_token < cost of one more position``. With ``fixed`` the number of drafts is given instead.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self.drafter, self.experts = CallCosts(), CallCosts()
        self.by_drafter, self.by_lookup = Share(), Share()
        self.together = 1  # sources that run for a position, beside the drafter
        self.accepted = 0.8  # share of drafts, a mean over the last windows that had some
        self._per_token = 0.0
        self._unused = 0

    @property
    def per_token(self) -> float:
        """Seconds that a token takes at present: a mean over the last windows, never more than a plain step."""
        plain = self.drafter.first + self.together * self.experts.first
        return min(self._per_token, plain) if self._per_token else plain

    @property
    def off(self) -> bool:
        """Whether nothing is ever drafted."""
        return self.fixed == 0

    @property
    def resting(self) -> bool:
        """Whether this window goes without a look at drafts, because the last ones found none worth its time."""
        return self.fixed is None and self._unused >= _UNUSED and self._unused % _SELDOM != 0

    def step_was(self, tokens: int, seconds: float, drafts: int, accepted: int) -> None:
        """Take note of a step: tokens that it gave, seconds that it took, drafts that it tried and that were right.

        One that gave none, since no sampler found a token, tells nothing.
        """
        if not tokens:
            return
        self._unused = 0 if drafts else self._unused + 1
        if drafts:
            self.accepted += 0.05 * (accepted / drafts - self.accepted)
        share = seconds / tokens
        if not self._per_token:
            self._per_token = share
        else:
            self._per_token += 0.05 * (min(share, 2 * self._per_token) - self._per_token)

    def go_on(self, drafts: int, chance: float, *, sharing: int, free: bool = False) -> bool:
        """Whether to draft one more token than ``drafts``, which with all before it is accepted with ``chance``.

        ``sharing`` is how many sequences share the drafter's call for it; ``free`` says that its row is there already.
        It may pay only together with those after it, which are taken to be accepted as often as drafts are on the
        whole.
        """
        if self.fixed is not None:
            return drafts < self.fixed
        if not self.experts.first:
            return False
        tokens = cost = 0.0
        for more in range(1, min(_AHEAD, MOST_DRAFTS - drafts) + 1):
            tokens += chance
            chance *= self.accepted
            if not (free and more == 1):
                cost += self.drafter.of(sharing) / sharing
            checking = self.experts.of(drafts + 1 + more) - self.experts.of(drafts + 1)
            if tokens * self.per_token > cost + self.together * checking:
                return True
        return False

    def guesses(self, chance: float, room: int, *, with_drafter: bool) -> int:
        """How many tokens of a lookup are worth their place, when each is right with ``chance`` after the one before.

        A guess that is right saves the drafter a call of its own, or, without drafter, the expert.
        """
        room = min(room, MOST_DRAFTS if self.fixed is None else self.fixed)
        if self.fixed is not None:
            return room
        costs = self.drafter if with_drafter else self.experts
        best, saved, tokens, right = 0, 0.0, 0.0, chance
        for n in range(1, room + 1):
            tokens += right
            right *= chance
            gain = tokens * costs.first - (costs.of(n + 1) - costs.first)
            if gain > saved:
                best, saved = n, gain
        return best


class PromptLookup:
    """Guesses that a text goes on as it did after the last place where its last tokens stood before.

    (Prompt lookup decoding, Saxena 2023: n-grams of the text so far instead of a draft model.)
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the text went on after it
        self._read = 0

    def guess(self, tokens: Sequence[int], room: int) -> tuple[Sequence[int], float]:
        """Up to ``room`` tokens that may follow ``tokens``, and a confidence that grows with the matched length.

        ``tokens`` must begin with what the last call was given.
        """
        n = len(tokens)
        for size in self._sizes:  # the n-grams that end before the last token: something followed them
            for end in range(max(size, self._read), n):
                self._after[tuple(tokens[end - size : end])] = end
        self._read = n
        for size in self._sizes:
            if size <= n and (at := self._after.get(tuple(tokens[n - size :]))) is not None:
                return tokens[at : at + room], size / (self._sizes[0] + 1)
        return (), 0.0
