"""Policies under which all experts write each token: products and averages of their distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from frcli.fusion.policy import Policy, Prompt
from frcli.sources.source import Logits


@dataclass(frozen=True)
class UniformSum(Policy):
    """The mean of all experts' log-probs (a product of experts, equal exponents), or their bare sum with ``sharp``."""

    experts: tuple[str, ...]
    sharp: bool = False
    name = "sum"

    @property
    def sources(self) -> tuple[str, ...]:
        """See :meth:`Policy.sources`."""
        return self.experts

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """All experts."""
        return self.experts

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """``sum_i z_i``, over their number unless sharp."""
        share = 1.0 if self.sharp else 1 / len(self.experts)
        return _weighted(rows, dict.fromkeys(self.experts, share))


@dataclass(frozen=True)
class PackLLM(Policy):
    """Experts weighted by how well each predicts the prompt (PackLLM, arXiv 2404.11531, its variant "sim").

    ``lambda_i = softmax_i(-log(perplexity_i) / tau)`` once for each prompt, and ``fused = sum_i lambda_i z_i``: a
    product of experts with these exponents. The logarithm of the perplexity is the mean NLL of the prompt's tokens.
    ``weights`` are there when the prompt is known.
    """

    experts: tuple[str, ...]
    tau: float = 1.0
    weights: tuple[float, ...] = ()
    name = "packllm"

    def for_prompt(self, prompt: Prompt) -> PackLLM:
        """The policy with the prompt's weights; every expert reads the prompt."""
        scores = np.array([-prompt.nll(name) for name in self.experts]) / self.tau
        odds = np.exp(scores - scores.max())
        return PackLLM(self.experts, self.tau, tuple((odds / odds.sum()).tolist()))

    @property
    def sources(self) -> tuple[str, ...]:
        """See :meth:`Policy.sources`."""
        return self.experts

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """All experts whose weight is not 0."""
        return tuple(name for name, share in zip(self.experts, self.weights, strict=True) if share)

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """``sum_i lambda_i z_i``."""
        shares = dict(zip(self.experts, self.weights, strict=True))
        return _weighted(rows, {name: shares[name] for name in self.choose(None)})


@dataclass(frozen=True)
class UnionOfTopK(Policy):
    """The mean of the experts' probabilities on what any of them finds likely (UniTE, arXiv 2410.03777).

    ``U`` is the union of each expert's ``k`` most likely tokens; each expert's softmax is taken over ``U`` alone, and
    the fused row is the logarithm of their mean there, ``-inf`` elsewhere. All experts share one vocabulary here, so
    that the paper's mapping between vocabularies has nothing to do.
    """

    experts: tuple[str, ...]
    k: int = 10
    name = "topk-union"

    @property
    def sources(self) -> tuple[str, ...]:
        """See :meth:`Policy.sources`."""
        return self.experts

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        """All experts."""
        return self.experts

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        """``log(mean_i softmax(z_i over U))`` on ``U``."""
        logits = [rows[name] for name in self.experts]
        k = min(self.k, len(logits[0]))
        union = np.unique(np.concatenate([np.argpartition(row, -k)[-k:] for row in logits]))
        odds = np.exp([row[union] - row[union].max() for row in logits])
        mean = (odds / odds.sum(axis=1, keepdims=True)).mean(axis=0)
        fused = np.full_like(logits[0], -np.inf)
        with np.errstate(divide="ignore"):  # a token that underflows for all of them is out
            fused[union] = np.log(mean)
        return fused


def _weighted(rows: Mapping[str, Logits], shares: Mapping[str, float]) -> Logits:
    """``sum_i share_i z_i``; the row itself for one expert with the whole share."""
    (first, share), *others = shares.items()
    if not others and share == 1:
        return rows[first]
    fused: Logits = rows[first] * np.float32(share)
    for name, share in others:
        fused += rows[name] * np.float32(share)
    return fused
