"""Rules that fuse rows of logits: pure functions of rows, in numpy.

A policy says which sources must give a row for the next token, in two stages (sources that are needed in any case, and
those that are chosen when the router's weights are known), and turns the rows into one fused row. A row of raw logits
and the same row as log-probs differ by a constant, which changes no probability: policies take raw logits and never
normalise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from frcli.errors import UsageError
from frcli.sources.source import Logits

ROUTER = "router"


class Policy(Protocol):
    """How the next token's distribution is made from what the sources say."""

    @property
    def name(self) -> str:
        """The policy as the user spells it."""

    @property
    def needs_router(self) -> bool:
        """Whether the router must read every position."""

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """Names of the experts whose rows are needed, given the router's ``weights`` float32 [n_experts] of this
        position.
        """

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """The fused row, float32 [width], from the rows float32 [width] of the chosen experts (and ``router``).

        It may be one of the rows itself where there is nothing to fuse.
        """


@dataclass(frozen=True, slots=True)
class FusionRoute:
    """The router picks one expert and adds its own logits (FusionRoute, arXiv 2601.05106, equation 1).

    ``i = argmax(w)`` and ``fused = (z_i + gamma * z_router) / (1 + gamma)``. The paper has gamma = 1 and no division,
    which is ``sharp``. The division leaves every greedy token as it is; sampling from the bare sum would be as from a
    model at half the temperature.
    """

    experts: tuple[str, ...]
    gamma: float = 1.0
    sharp: bool = False
    name: str = "fusionroute"
    needs_router: bool = True

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """The expert with the largest weight; the first one of equals."""
        if weights is None or len(weights) != len(self.experts):
            raise UsageError("fusionroute needs a router with one weight for each expert", "choose another --policy")
        return (self.experts[int(np.argmax(weights))],)

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """``z_i`` itself when gamma is 0, so that the routed expert alone is exact."""
        (expert,) = (row for name, row in rows.items() if name != ROUTER)
        if self.gamma == 0:
            return expert
        fused: Logits = rows[ROUTER] * np.float32(self.gamma)
        fused += expert
        if not self.sharp:
            fused *= np.float32(1 / (1 + self.gamma))
        return fused


@dataclass(frozen=True, slots=True)
class OneExpert:
    """One expert alone, as llama.cpp would run it; the router stays idle."""

    expert: str
    needs_router: bool = False

    @property
    def name(self) -> str:
        """``expert:NAME``."""
        return f"expert:{self.expert}"

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """Always the same expert."""
        return (self.expert,)

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """The expert's own row."""
        return rows[self.expert]


@dataclass(frozen=True, slots=True)
class UniformSum:
    """The mean of all experts' log-probs (a product of experts, equal exponents), or their bare sum with ``sharp``."""

    experts: tuple[str, ...]
    sharp: bool = False
    name: str = "sum"
    needs_router: bool = False

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """All experts."""
        return self.experts

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """``sum_i z_i``, over their number unless sharp."""
        first, *others = (rows[name] for name in self.experts)
        if not others:
            return first
        fused: Logits = first + others[0]
        for row in others[1:]:
            fused += row
        if not self.sharp:
            fused *= np.float32(1 / len(self.experts))
        return fused


def make_policy(name: str, experts: Sequence[str], *, gamma: float, sharp: bool, has_router: bool) -> Policy:
    """The policy that the user calls ``name``, for a bundle with these experts.

    Raises ``UsageError`` for a name, an expert or a gamma that does not exist, or when the bundle lacks the router that
    it needs.
    """
    if not 0 <= gamma <= 16:  # NaN fails the comparison too
        raise UsageError(
            f"gamma is {gamma}", "it is a number from 0 (the expert alone) to 1 (as in the paper), 16 at the most"
        )
    experts = tuple(experts)
    kind, _, expert = name.partition(":")
    if kind == "expert" and expert:
        if expert not in experts:
            raise UsageError(f"there is no expert {expert!r}", f"the experts are {', '.join(experts)}")
        return OneExpert(expert)
    if name == "sum":
        return UniformSum(experts, sharp)
    if name == "fusionroute":
        if not has_router:
            raise UsageError(
                "fusionroute needs a router, and this bundle has none", "choose --policy sum or expert:NAME"
            )
        return FusionRoute(experts, gamma, sharp)
    raise UsageError(f"there is no policy {name!r}", "the policies are fusionroute, sum and expert:NAME")
