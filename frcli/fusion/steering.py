"""Policies under which differences of small models steer a model, without training it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from frcli.fusion.alpha import LONGEST, best_alpha, shift
from frcli.fusion.policy import BASE, LARGE, Policy, Prompt
from frcli.sources.source import Logits


@dataclass(frozen=True)
class ProxyTuning(Policy):
    """A large model moved as far as training moved a small one (proxy tuning, arXiv 2401.08565, equation 1).

    ``fused = z_large + alpha (z_expert - z_base)``, with alpha = 1 in the paper. The expert drafts for the large model.
    """

    expert: str
    alpha: float = 1.0

    @property
    def name(self) -> str:
        """``proxy:NAME``."""
        return f"proxy:{self.expert}"

    @property
    def drafter(self) -> str:
        """The expert."""
        return self.expert

    @property
    def sources(self) -> tuple[str, ...]:
        """See :meth:`Policy.sources`."""
        return self.expert, BASE, LARGE

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """The base and the large model."""
        return BASE, LARGE

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """The large model's row, moved."""
        return moved(rows[LARGE], rows[self.expert] - rows[BASE], self.alpha)


@dataclass(frozen=True)
class Acting:
    """What Dynamic Logit Fusion made of a token: the expert that acts (None for none), its alpha, and whether the
    search was skipped because no alpha could have changed the token.
    """

    expert: str | None
    alpha: float
    skipped: bool = False


@dataclass(frozen=True)
class DynamicLogitFusion(Policy):
    """A large model steered by one small expert at a time, as far as the experts are from their base there (Dynamic
    Logit Fusion, arXiv 2406.15480, sections 3.2 and 3.3).

    ``fused = z_large + alpha_t (z_t - z_base)`` for the expert t and the alpha in [0, 2] that minimise

        sum_s (KL(P_fused || P_large) - KL(Q_s || Q_base))^2 + (KL(P_large || P_fused) - KL(Q_base || Q_s))^2

    over all experts s; the minimum is sought anew for each token, by :func:`frcli.fusion.alpha.best_alpha` and not on
    the paper's grid. When ``greedy``, a token that wins for every alpha of every expert needs no search. The first
    expert drafts for the large model.
    """

    experts: tuple[str, ...]
    greedy: bool = False
    name = "dlf"

    @property
    def drafter(self) -> str:
        """The first expert."""
        return self.experts[0]

    def for_prompt(self, prompt: Prompt) -> DynamicLogitFusion:
        """The search may be skipped only where the largest logit is what counts."""
        return replace(self, greedy=prompt.greedy)

    @property
    def sources(self) -> tuple[str, ...]:
        """See :meth:`Policy.sources`."""
        return (*self.experts, BASE, LARGE)

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """The other experts, the base and the large model."""
        return (*self.experts[1:], BASE, LARGE)

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """The large model's row, moved by the expert that acts."""
        acting = self.act(rows)
        if acting.expert is None or acting.alpha == 0:
            return rows[LARGE]
        return moved(rows[LARGE], rows[acting.expert] - rows[BASE], acting.alpha)

    def act(self, rows: Mapping[str, Logits]) -> Acting:
        """Which expert acts on this token, and how strongly; the first of equals."""
        large, base = rows[LARGE], rows[BASE]
        directions = [rows[name] - base for name in self.experts]
        if self.greedy:
            # Margins between tokens are linear in alpha: who wins at both ends wins everywhere between.
            first = int(large.argmax())
            if all(int(moved(large, direction, LONGEST).argmax()) == first for direction in directions):
                return Acting(None, 0.0, skipped=True)
        shifts = [shift(rows[name], base) for name in self.experts]
        # The sum of squared distances to all targets is least where that to their mean is.
        target = sum(forth for forth, _ in shifts) / len(shifts), sum(back for _, back in shifts) / len(shifts)
        found = [best_alpha(large, direction, target) for direction in directions]
        best = min(range(len(found)), key=lambda i: found[i][1])
        return Acting(self.experts[best], found[best][0])


@dataclass(frozen=True)
class Contrast(Policy):
    """What an expert finds likelier than a weaker model does (contrastive decoding, arXiv 2210.15097, section 3).

    ``fused = log p_expert - log p_weaker`` for tokens with ``p_expert >= alpha max p_expert``, and ``-inf`` for the
    others: without that cut, tokens that are absurd to both could win. The paper has alpha = 0.1.
    """

    expert: str
    weaker: str = BASE
    alpha: float = 0.1

    @property
    def name(self) -> str:
        """``contrast:EXPERT``, with the weaker model if it is not the base."""
        return f"contrast:{self.expert}" + ("" if self.weaker == BASE else f",weaker={self.weaker}")

    @property
    def sources(self) -> tuple[str, ...]:
        """See :meth:`Policy.sources`."""
        return self.expert, self.weaker

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """Both."""
        return self.expert, self.weaker

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """The difference of the logits, which is that of the log-probs but for a constant, within the cut."""
        expert = rows[self.expert]
        fused: Logits = expert - rows[self.weaker]
        fused[expert < expert.max() + np.log(self.alpha)] = -np.inf
        return fused


def moved(row: Logits, direction: Logits, alpha: float) -> Logits:
    """``row + alpha direction``, a new row."""
    fused: Logits = direction * np.float32(alpha)
    fused += row
    return fused
