"""The probability of texts that are known, under whatever policy the engine has: nothing is drawn.

A continuation's tokens are forced upon the decoder, which reads them in windows: the same sources run at the same
positions as if the policy had written them, so a routed expert that a text does not need is not read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from frcli.decode.batch import BatchEngine
from frcli.decode.window import Continuation
from frcli.errors import ContextError, UsageError
from frcli.fusion.likelihood import token_nll
from frcli.sources.source import Logits


@dataclass(frozen=True, slots=True)
class Likelihood:
    """``logprob`` is the natural logarithm of the probability of all tokens, ``greedy`` whether each of them is the
    most likely one at its place.
    """

    logprob: float
    greedy: bool


class _Forced:
    """A sampler that has no choice, and takes note of how likely its tokens were."""

    plain = False  # a policy must give whole distributions

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens, self._at = tokens, 0
        self.logprob, self.greedy = 0.0, True

    def sample(self, logits: Logits) -> int:
        token = self._tokens[self._at]
        self._at += 1
        self.logprob -= float(token_nll(logits[None], [token])[0])
        self.greedy = self.greedy and int(np.argmax(logits)) == token
        return token

    def accept(self, token: int) -> None:
        pass

    def clone(self) -> _Forced:
        return _Forced(self._tokens[self._at :])

    def close(self) -> None:
        pass


def score_many(
    engine: BatchEngine, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Iterator[tuple[int, Likelihood]]:
    """How likely each request's second tokens are after its first ones; yields its number (from 0) and its
    :class:`Likelihood`, in the order in which they are finished.

    Prompts that are given more than once are read once. Raises ``UsageError`` when one of the two is empty, and
    ``ContextError`` when both together are longer than the context.
    """
    if any(not prompt or not continuation for prompt, continuation in requests):
        raise UsageError("a text to be scored, or what it goes on from, is empty", "both need a token at least")
    longest = max((len(prompt) + len(continuation) for prompt, continuation in requests), default=0)
    if longest > engine.decoder.context:
        raise ContextError(
            f"a text of {longest} tokens does not fit in a context of {engine.decoder.context}",
            "shorten it or raise --ctx",
        )
    waiting = _in_order([tuple(prompt) for prompt, _ in requests], engine.sequences)[::-1]
    free = list(range(engine.sequences))
    running: dict[int, tuple[int, Continuation, _Forced]] = {}
    decoder = engine.decoder
    while waiting or running:
        begun: set[tuple[int, ...]] = set()  # prompts that are read in this step: others wait for their caches
        while waiting and free and tuple(requests[waiting[-1]][0]) not in begun:
            number = waiting.pop()
            prompt, forced = requests[number]
            begun.add(tuple(prompt))
            sampler = _Forced(forced)
            seq = decoder.nearest(free, prompt)
            running[seq] = number, decoder.begin(seq, prompt, sampler, len(forced), forced), sampler
            free.remove(seq)
        decoder.step([continuation for _, continuation, _ in running.values()])
        for seq, (number, continuation, sampler) in list(running.items()):
            if continuation.error is not None:
                raise continuation.error
            if continuation.written == len(continuation.forced):
                del running[seq]
                free.append(seq)
                yield number, Likelihood(sampler.logprob, sampler.greedy)


def _in_order(prompts: Sequence[tuple[int, ...]], sequences: int) -> list[int]:
    """Numbers of the prompts, so that a prompt's second request begins when its first one has been read."""
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        places[prompt].append(number)
    groups = list(places.values())
    order = []
    for start in range(0, len(groups), sequences):
        together = groups[start : start + sequences]
        for turn in range(max(map(len, together))):
            order += [numbers[turn] for numbers in together if turn < len(numbers)]
    return order
