"""Policies under which one expert writes a token: the router's choice, token by token, or always the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from frcli.errors import UsageError
from frcli.fusion.policy import ROUTER, Policy, Prompt
from frcli.sources.source import Logits


@dataclass(frozen=True)
class FusionRoute(Policy):
    """The router picks one expert and adds its own logits (FusionRoute, arXiv 2601.05106, equation 1).

    ``i = argmax(w)`` and ``fused = (z_i + gamma * z_router) / (1 + gamma)``. The paper has gamma = 1 and no division,
    which is ``sharp``. The division leaves every greedy token as it is; sampling from the bare sum would be as from a
    model at half the temperature. A router with a gate says for each token how much its logits count: that is gamma
    times the gate then, which is ours and not the paper's.

    So is ``prior``: the weights for the ``whole`` answer, as :class:`PromptRouter` has them, times ``prior`` are added
    to those of each token, ``w = w_token + prior * w_prompt``. An expert that the prompt does not call for then needs
    a clearer reason to write a token.
    """

    experts: tuple[str, ...]
    gamma: float = 1.0
    sharp: bool = False
    prior: float = 0.0
    whole: tuple[float, ...] = ()
    name = "fusionroute"
    drafter = ROUTER

    def for_prompt(self, prompt: Prompt) -> FusionRoute:
        """The policy with the weights that the prompt's experts have for the whole answer."""
        return replace(self, whole=tuple(map(float, prompt.routing()))) if self.prior else self

    def gated(self, gate: float) -> FusionRoute:
        """The policy with ``gamma * gate``."""
        return self if gate == 1 else replace(self, gamma=self.gamma * gate)

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """The expert with the largest weight; the first one of equals."""
        if weights is None or len(weights) != len(self.experts):
            raise UsageError("fusionroute needs a router with one weight for each expert", "choose another --policy")
        return (self.experts[int(np.argmax(self.weigh(weights)))],)

    def weigh(self, weights: Logits) -> Logits:
        """``w + prior * w_prompt``."""
        return weights + np.float32(self.prior) * np.array(self.whole, np.float32) if self.whole else weights

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


@dataclass(frozen=True)
class PromptRouter(Policy):
    """The router chooses one expert for the whole answer, and adds nothing to it: what mixtures at prompt level do.

    A linear head of its own reads the router's hidden state at the prompt's last token. ``chosen`` is there when the
    prompt is known.
    """

    experts: tuple[str, ...]
    chosen: str = ""
    name = "prompt-router"
    needs_router = True

    def for_prompt(self, prompt: Prompt) -> PromptRouter:
        """The policy with the expert that has the largest weight; the first one of equals."""
        weights = prompt.routing()
        if len(weights) != len(self.experts):
            raise UsageError("prompt-router needs a router with one weight for each expert", "choose another --policy")
        return PromptRouter(self.experts, self.experts[int(np.argmax(weights))])

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """The expert that was chosen."""
        return (self.chosen,)

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """Its own row."""
        return rows[self.chosen]


@dataclass(frozen=True)
class OneExpert(Policy):
    """One expert alone, as llama.cpp would run it; the router stays idle."""

    expert: str

    @property
    def name(self) -> str:
        """``expert:NAME``."""
        return f"expert:{self.expert}"

    @property
    def sources(self) -> tuple[str, ...]:
        """See :meth:`Policy.sources`."""
        return (self.expert,)

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """Always the same expert."""
        return (self.expert,)

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """The expert's own row."""
        return rows[self.expert]
