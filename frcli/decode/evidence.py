"""What a policy may ask about a prompt before its answer begins."""

from __future__ import annotations

from collections.abc import Callable

from frcli.decode.reading import Reader
from frcli.decode.window import Continuation
from frcli.errors import UsageError
from frcli.fusion.likelihood import token_nll
from frcli.fusion.policy import ROUTER
from frcli.sources.source import Feed, Logits, LogitSource, Rows

_BLOCK = 64  # tokens whose rows are asked for at once


class PromptEvidence:
    """Answers a policy's questions (:class:`~frcli.fusion.policy.Prompt`) about the text that an answer goes on from.

    A source that is asked has read the text without its last token afterwards, as if it had been chosen.
    """

    def __init__(
        self, continuation: Continuation, source: Callable[[str], LogitSource], width: int, reader: Reader
    ) -> None:
        self._continuation, self._source, self._width, self._reader = continuation, source, width, reader

    @property
    def greedy(self) -> bool:
        """Whether the answer takes the largest logit of each fused row, whatever came before."""
        return self._continuation.sampler.plain

    def nll(self, source: str) -> float:
        """Mean negative log-likelihood of the tokens behind the first one, in nats; 0 for a text of one token."""
        tokens, seq = self._continuation.tokens, self._continuation.seq
        if len(tokens) < 2:
            return 0.0
        model = self._source(source)
        model.rewind(seq, 0)
        total = 0.0
        for start in range(0, len(tokens) - 1, _BLOCK):
            block = tokens[start : min(start + _BLOCK, len(tokens) - 1)]
            rows = self._read(model, source, Feed(seq, block, len(block))).logits[:, : self._width]
            total += float(token_nll(rows, tokens[start + 1 : start + 1 + len(block)]).sum())
        return total / (len(tokens) - 1)

    def routing(self) -> Logits:
        """The weights that the router's head for whole prompts gives at the last token, float32 [n_experts].

        Raises ``UsageError`` when it has no such head.
        """
        tokens, seq = self._continuation.tokens, self._continuation.seq
        router = self._source(ROUTER)
        router.rewind(seq, min(router.length(seq), len(tokens) - 1))
        weights = self._read(router, ROUTER, Feed(seq, tokens[router.length(seq) :], 1)).prompt_weights
        router.rewind(seq, len(tokens) - 1)
        if weights is None:
            raise UsageError(
                "the router of this bundle has no head for whole prompts",
                "train it again with frcli train router or choose another --policy",
            )
        last: Logits = weights[-1].copy()
        return last

    def _read(self, model: LogitSource, name: str, feed: Feed) -> Rows:
        (rows,) = self._reader.read(model, [feed], ROUTER if name == ROUTER else "experts", None)
        return rows
