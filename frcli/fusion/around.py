"""Policies around another policy: the user's say in who may be chosen, and an observer of what is fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from frcli.errors import UsageError
from frcli.fusion.policy import Policy, Prompt
from frcli.sources.source import Logits

Seen = Callable[[Mapping[str, Logits], Logits], None]


@dataclass(frozen=True)
class Around(Policy):
    """Does what ``policy`` does; what differs from it is for those that inherit."""

    policy: Policy

    @property
    def name(self) -> str:
        """The inner policy's."""
        return self.policy.name

    @property
    def drafter(self) -> str | None:
        """The inner policy's."""
        return self.policy.drafter

    @property
    def needs_router(self) -> bool:
        """What the inner policy says."""
        return self.policy.needs_router

    def for_prompt(self, prompt: Prompt) -> Policy:
        """The same around the policy for that prompt."""
        return replace(self, policy=self.policy.for_prompt(prompt))

    def gated(self, gate: float) -> Policy:
        """The same around the gated policy."""
        return replace(self, policy=self.policy.gated(gate))

    def weigh(self, weights: Logits) -> Logits:
        """The inner policy's."""
        return self.policy.weigh(weights)

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """What the inner policy chooses."""
        return self.policy.choose(weights)

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """What the inner policy makes of the rows."""
        return self.policy.fuse(rows)


@dataclass(frozen=True)
class Restricted(Around):
    """Only some of the experts may be chosen: the others' routing weights count as minus infinity.

    So the one with the largest weight among the ``allowed`` writes. ``experts`` are in the order of the weights. Make
    it with :func:`restrict`.
    """

    experts: tuple[str, ...]
    allowed: frozenset[str]

    def for_prompt(self, prompt: Prompt) -> Policy:
        """The same around the policy for that prompt, which may ask who is to write the whole answer."""
        return replace(self, policy=self.policy.for_prompt(_RestrictedPrompt(prompt, self._masked)))

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """What the inner policy chooses among the allowed."""
        return self.policy.choose(None if weights is None else self._masked(weights))

    def _masked(self, weights: Logits) -> Logits:
        banned = np.array([name not in self.allowed for name in self.experts])
        return np.where(banned, np.float32(-np.inf), weights).astype(np.float32)


@dataclass(frozen=True)
class _RestrictedPrompt:
    """A prompt whose router says what it says of the allowed experts only."""

    prompt: Prompt
    masked: Callable[[Logits], Logits]

    @property
    def greedy(self) -> bool:
        return self.prompt.greedy

    def nll(self, source: str) -> float:
        return self.prompt.nll(source)

    def routing(self) -> Logits:
        return self.masked(self.prompt.routing())


def restrict(policy: Policy, experts: Sequence[str], allowed: Sequence[str]) -> Policy:
    """The policy with only the ``allowed`` of the ``experts``; itself when that is all of them.

    Raises ``UsageError`` when nobody is left, for an expert that does not exist, and for a policy that does not route.
    """
    for name in allowed:
        if name not in experts:
            raise UsageError(f"there is no expert {name!r}", f"the experts are {', '.join(experts)}")
    if not allowed:
        raise UsageError("nobody would be left to write", "leave at least one expert")
    if set(allowed) == set(experts):
        return policy
    if not policy.needs_router:
        raise UsageError(
            f"the policy {policy.name} does not route, so no expert can be forced or banned",
            "choose fusionroute or prompt-router, or take it back with none",
        )
    return Restricted(policy, tuple(experts), frozenset(allowed))


@dataclass(frozen=True)
class Observed(Around):
    """Shows every fusion to ``see``: the rows that went in and the fused row, which hold until it returns."""

    see: Seen

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """What the inner policy makes of the rows, as it is."""
        fused = self.policy.fuse(rows)
        self.see(rows, fused)
        return fused
