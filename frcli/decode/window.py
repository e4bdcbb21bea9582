"""A window: the positions of one sequence that one step decides, a pending token and the drafts behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from frcli.errors import FrcliError
from frcli.fusion.policy import Policy
from frcli.sources.source import Feed, Logits, Rows


class TokenSampler(Protocol):
    """Chooses a token from a fused row; ``decode/sampler.py`` is the real one."""

    @property
    def plain(self) -> bool:
        """Whether it takes the largest logit of each row, whatever came before."""

    def sample(self, logits: Logits) -> int:
        """A token id, given float32 [width]."""

    def accept(self, token: int) -> None:
        """Take note of a token that became part of the answer."""

    def clone(self) -> TokenSampler:
        """A sampler in the same state that goes its own way, for drafts."""

    def close(self) -> None:
        """Free what the sampler holds."""


@dataclass(slots=True)
class Continuation:
    """A sequence that is being written: its tokens so far (the prompt first) and the sampler that continues it.

    ``most`` is the number of tokens after which the answer ends, 0 for no such limit. ``error`` is why it cannot be
    continued, such as a grammar that allows no token. ``forced`` are the tokens that the text goes on with whatever the
    models say, so that only their probability is asked for; its sampler must give them.
    """

    seq: int
    tokens: list[int]
    sampler: TokenSampler
    most: int = 0
    error: FrcliError | None = None
    forced: Sequence[int] = ()
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    def finish(self, ended: bool, context: int) -> str | None:
        """Why the answer is over: ``eos`` if its last token ``ended`` it, ``context``, ``length``, or None."""
        if ended:
            return "eos"
        if len(self.tokens) >= context:
            return "context"
        return "length" if self.most and self.written >= self.most else None


class Window:
    """What is known of the next positions of a continuation while a step decides them.

    Position 0 follows the continuation's tokens, position j the first j ``drafts`` as well. ``room`` is the most drafts
    that can have a place. ``drafted`` has the drafter's row for each position, where the policy has a drafter, and
    ``weights`` an entry for each position that can be decided, None where the drafter is no router; ``gates`` is as
    long, 1 where there is no gate. ``calls`` counts the calls of models that the window took part in.
    """

    def __init__(self, continuation: Continuation, policy: Policy, context: int) -> None:
        self.continuation, self.policy = continuation, policy
        self.start = len(continuation.tokens)
        left = context - self.start
        if continuation.most:
            left = min(left, continuation.most - continuation.written)
        self.room = max(0, left - 1)
        self.drafts: list[int] = []
        self.drafted: list[Logits] = []
        self.weights: list[Logits | None] = []
        self.gates: list[float] = []
        self.chosen: list[tuple[str, ...]] = []
        self.at = 0  # the position that is decided next
        self.accepted = 0  # drafts that were right: always the first ones
        self.calls = 0
        self.open = True
        self._rows: dict[str, tuple[int, Logits]] = {}  # by expert: position of the first row, and rows

    def behind(self, read: int, drafts: int) -> Sequence[int]:
        """What a source that has read so many tokens has not read of the text up to the first ``drafts`` drafts."""
        return [*self.continuation.tokens[read : self.start], *self.drafts[max(0, read - self.start) : drafts]]

    def feed(self, name: str, read: int) -> Feed | None:
        """What the expert ``name``, which has read so many tokens, must read for all positions that are its own.

        None when no position from here on is.
        """
        own = self._own(name)
        return Feed(self.continuation.seq, self.behind(read, own[-1]), own[-1] - own[0] + 1) if own else None

    def give(self, name: str, rows: Rows, width: int) -> None:
        """Take the rows of a feed that :meth:`feed` asked for, cut to ``width``."""
        self._rows[name] = self._own(name)[0], rows.logits[:, :width]

    def _own(self, name: str) -> list[int]:
        return [j for j in range(self.at, len(self.chosen)) if name in self.chosen[j]]

    def missing(self) -> Sequence[str]:
        """The experts whose rows for the next position are not there yet."""
        return [name for name in self.chosen[self.at] if name not in self._rows]

    def fused(self) -> Logits:
        """The row from which the next position's token is drawn, float32 [width]."""
        return self.policy.gated(self.gates[self.at]).fuse(self._fusing())

    def take(self, rows: Rows, width: int) -> None:
        """Add a drafter's rows for the next positions; they are views, its weights are copied."""
        n = len(rows.logits)
        self.drafted += list(rows.logits[:, :width])
        self.weights += [None] * n if rows.weights is None else list(rows.weights.copy())
        self.gates += [1.0] * n if rows.gate is None else rows.gate.tolist()

    def cut(self, positions: int) -> None:
        """Drop the drafter's rows behind the first so many positions."""
        del self.drafted[positions:], self.weights[positions:], self.gates[positions:]

    def undrafted(self) -> None:
        """Make all positions of the window known where the policy has no drafter."""
        self.weights, self.gates = [None] * (len(self.drafts) + 1), [1.0] * (len(self.drafts) + 1)

    def _fusing(self) -> Mapping[str, Logits]:
        found = {name: self._rows[name][1][self.at - self._rows[name][0]] for name in self.chosen[self.at]}
        if self.policy.drafter is not None:
            found[self.policy.drafter] = self.drafted[self.at]
        return found

    def fail(self, error: FrcliError) -> None:
        """End the continuation, which has no next token because of ``error``; those before it stay."""
        self.continuation.error = error
        self.open = False

    def decide(self, token: int, over: bool) -> None:
        """Take ``token`` as the one at the next position; ``over`` ends the answer and with it the window."""
        self.continuation.tokens.append(token)
        drafted = self.at < len(self.drafts) and token == self.drafts[self.at]
        self.accepted += drafted
        self.at += 1
        self.open = drafted and not over and self.at < len(self.chosen)
