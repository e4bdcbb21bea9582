"""What a rule that fuses rows of logits is: pure functions of rows, in numpy.

A policy says which sources must give a row for the next token, in two stages (sources that are needed in any case, and
those that are chosen when the router's weights are known), and turns the rows into one fused row. A row of raw logits
and the same row as log-probs differ by a constant, which changes no probability: policies take raw logits and normalise
only where a rule is not linear in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

from frcli.sources.source import Logits

ROUTER = "router"
LARGE = "large"
BASE = "base"


class Prompt(Protocol):
    """What can be asked about a prompt before its answer begins; every question reads models."""

    @property
    def greedy(self) -> bool:
        """Whether the answer takes the largest logit of each fused row, whatever came before."""

    def nll(self, source: str) -> float:
        """Mean negative log-likelihood of the prompt's tokens behind the first one, in nats, by that source."""

    def routing(self) -> Logits:
        """The weights by which the router chooses one expert for the whole answer, float32 [n_experts]."""


class Policy(ABC):
    """How the next token's distribution is made from what the sources say.

    Sources are named as experts are, or ``router``, ``large`` and ``base`` (the small model that the experts were made
    from).
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The policy as the user spells it."""

    @property
    def drafter(self) -> str | None:
        """The source that reads every position before the others do, so that it can draft: its row is fused in any
        case.
        """
        return None

    @property
    def sources(self) -> tuple[str, ...] | None:
        """Every source that it may choose for some token, beside the drafter; None: any of the experts."""
        return None

    @property
    def needs_router(self) -> bool:
        """Whether the router must be open."""
        return self.drafter == ROUTER

    def for_prompt(self, prompt: Prompt) -> Policy:
        """The policy for one answer, with the same ``drafter``; itself when the prompt makes no difference."""
        return self

    def gated(self, gate: float) -> Policy:
        """The policy for one token at which the router says that its logits count ``gate`` (0 to 1; 1 for routers that
        do not say); itself unless it adds them.
        """
        return self

    def weigh(self, weights: Logits) -> Logits:
        """The weights float32 [n_experts] by which :meth:`choose` compares experts, given the router's."""
        return weights

    @abstractmethod
    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """The sources whose rows are needed beside the drafter's, given the router's ``weights`` float32 [n_experts]
        of this position (None unless the router is the drafter).
        """

    @abstractmethod
    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """The fused row, float32 [width], from the rows float32 [width] of the chosen sources and of the drafter.

        It may be one of the rows itself where there is nothing to fuse, and none of the rows is changed.
        """
