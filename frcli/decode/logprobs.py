"""How probable the tokens of an answer were, in the fused distribution that each was drawn from.

It is the distribution of the fused logits, before temperature, penalties, bias, filters and grammar: what the models
say, and not how it was drawn from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from frcli.decode.answer import Answer, TokenScore
from frcli.decode.window import TokenSampler
from frcli.fusion.likelihood import log_normalizer
from frcli.sources.source import Logits

IMPOSSIBLE = -9999.0  # stands for a probability of 0, which JSON has no number for


class ScoringSampler:
    """Samples as another sampler does, and takes note of the log probability of each token and its ``top`` rivals."""

    plain = False  # a policy must give whole distributions

    def __init__(self, sampler: TokenSampler, top: int) -> None:
        self._sampler, self._top = sampler, top
        self._seen: list[tuple[int, float, list[tuple[int, float]]]] = []

    def sample(self, logits: Logits) -> int:
        """A token id, given float32 [width]."""
        token = self._sampler.sample(logits)
        total = float(log_normalizer(logits[None])[0])
        best: list[int] = []
        if self._top:
            likely = np.argpartition(-logits, min(self._top, len(logits)) - 1)[: self._top]
            best = likely[np.argsort(-logits[likely], kind="stable")].tolist()
        rivals = [(other, max(float(logits[other]) - total, IMPOSSIBLE)) for other in best]
        self._seen.append((token, max(float(logits[token]) - total, IMPOSSIBLE), rivals))
        return token

    def accept(self, token: int) -> None:
        """Take note of a token that became part of the answer."""
        self._sampler.accept(token)

    def clone(self) -> TokenSampler:
        """A copy of the sampler for drafts, whose probabilities nobody asks for."""
        return self._sampler.clone()

    def close(self) -> None:
        """Free what the sampler holds."""
        self._sampler.close()

    def scores(self, answer: Answer, piece: Callable[..., bytes]) -> tuple[TokenScore, ...]:
        """The scores of the tokens that the answer's text consists of, without its end token or stop string."""
        count = answer.completion_tokens - (answer.finish_reason == "eos")
        length = len(answer.text.encode()) if answer.finish_reason == "stop" else None
        found: list[TokenScore] = []
        at = 0
        for token, logprob, rivals in self._seen[:count]:
            if length is not None and at >= length:
                break
            text = piece(token)
            top = tuple((piece(other, special=True), value) for other, value in rivals)
            found.append(TokenScore(text, logprob, top))
            at += len(text)
        return tuple(found)
