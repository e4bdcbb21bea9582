"""One step of decoding, for every policy and for any number of sequences at once.

The loop knows token ids and sources, nothing of text. At each step the router (where the policy needs it) reads what is
new in all sequences, the policy chooses experts, each chosen expert reads all that it has not seen yet of its sequences
in one batch (its catch-up and the new token together), and the fused row of each sequence is sampled. Experts that were
not chosen do nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from frcli.errors import ContextError, UsageError
from frcli.fusion.policy import ROUTER, Policy
from frcli.sources.source import Feed, Logits, LogitSource, Rows


class TokenSampler(Protocol):
    """Chooses a token from a fused row; ``decode/sampler.py`` is the real one."""

    def sample(self, logits: Logits) -> int:
        """A token id, given float32 [width]."""

    def accept(self, token: int) -> None:
        """Take note of a token that became part of the answer."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that one step took in each part; a step shared by several sequences has the whole of it in each."""

    router: float
    experts: float
    fuse: float
    sample: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.router + self.experts + self.fuse + self.sample


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer.

    ``experts`` are the experts whose rows it came from, ``weights`` the router's raw weights by expert (None without
    router), ``read`` the tokens that the experts read for it (1 when none was behind), ``finish`` is set on the last
    step: ``eos``, ``length`` or ``context``.
    """

    token: int
    experts: tuple[str, ...]
    weights: tuple[float, ...] | None
    read: int
    timings: Timings
    finish: str | None = None


@dataclass(slots=True)
class Continuation:
    """A sequence that is being written: its tokens so far (the prompt first) and the sampler that continues it."""

    seq: int
    tokens: list[int]
    sampler: TokenSampler
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)


class Cancelled(Exception):
    """The caller's ``cancelled`` said so between two batches; the sources hold what they have read."""


class Decoder:
    """Writes sequences with the experts of a bundle under one policy.

    ``width`` is the number of token ids that can be sampled: rows are cut to it, so a source may have a wider (padded)
    vocabulary. ``expert(name)`` gives an expert's source, and is asked only when the expert is needed for the first
    time. ``chunk`` is the number of prompt tokens read between two looks at ``cancelled``.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        expert: Callable[[str], LogitSource],
        router: LogitSource | None,
        is_end: Callable[[int], bool],
        width: int,
        context: int,
        chunk: int = 128,
    ) -> None:
        self.width, self.context = width, context
        self._expert, self._is_end, self._chunk = expert, is_end, chunk
        self._running: dict[str, LogitSource] = {}
        self._history: dict[int, list[int]] = {}
        self.use(policy, router)

    def use(self, policy: Policy, router: LogitSource | None) -> None:
        """Decode under ``policy`` from the next token on; sources that it does not need keep what they have read."""
        if policy.needs_router and router is None:
            raise UsageError(f"the policy {policy.name} needs a router, and this bundle has none")
        self.policy, self._router = policy, router

    def begin(self, seq: int, prompt: Sequence[int], sampler: TokenSampler) -> Continuation:
        """Start an answer to ``prompt`` in sequence ``seq``; what its sources have read of the same prefix is kept.

        Raises ``UsageError`` for an empty prompt and ``ContextError`` for one that leaves no room for an answer.
        """
        if not prompt:
            raise UsageError("the prompt is empty", "write something")
        if len(prompt) >= self.context:
            raise ContextError(
                f"the prompt has {len(prompt)} tokens and the context {self.context}", "shorten it or raise --ctx"
            )
        old = self._history.get(seq, [])
        same = next(
            (i for i, (a, b) in enumerate(zip(old, prompt, strict=False)) if a != b), min(len(old), len(prompt))
        )
        for source in self._sources():
            source.rewind(seq, min(source.length(seq), same))
        continuation = Continuation(seq, list(prompt), sampler)
        self._history[seq] = continuation.tokens
        return continuation

    def _sources(self) -> Iterator[LogitSource]:
        yield from self._running.values()
        if self._router is not None:
            yield self._router

    def step(self, continuations: Sequence[Continuation], cancelled: Callable[[], bool] = lambda: False) -> list[Step]:
        """The next token of each continuation, accepted by its sampler and appended to its tokens."""
        clock = time.perf_counter
        began = clock()
        weights: list[Logits | None] = [None] * len(continuations)
        rows: list[dict[str, Logits]] = [{} for _ in continuations]
        if self.policy.needs_router and self._router is not None:
            for i, got in enumerate(self._read(self._router, continuations, cancelled)):
                rows[i][ROUTER] = got.logits[-1][: self.width]
                weights[i] = None if got.weights is None else got.weights[-1]
        routed = clock()
        chosen = [self.policy.choose(w) for w in weights]
        readers: dict[str, list[int]] = {}
        for i, names in enumerate(chosen):
            for name in names:
                readers.setdefault(name, []).append(i)
        read = [0] * len(continuations)
        for name, members in readers.items():
            source = self._running.get(name) or self._start(name)
            mine = [continuations[i] for i in members]
            for i in members:
                read[i] += len(continuations[i].tokens) - source.length(continuations[i].seq)
            for i, got in zip(members, self._read(source, mine, cancelled), strict=True):
                rows[i][name] = got.logits[-1][: self.width]
        decoded = clock()
        fused = [self.policy.fuse(row) for row in rows]
        mixed = clock()
        tokens = []
        for continuation, row in zip(continuations, fused, strict=True):
            token = continuation.sampler.sample(row)
            continuation.sampler.accept(token)
            continuation.tokens.append(token)
            tokens.append(token)
        timings = Timings(routed - began, decoded - routed, mixed - decoded, clock() - mixed)
        return [
            Step(
                token,
                names,
                None if w is None else tuple(w.tolist()),
                n,
                timings,
                "eos" if self._is_end(token) else "context" if len(c.tokens) >= self.context else None,
            )
            for c, token, names, w, n in zip(continuations, tokens, chosen, weights, read, strict=True)
        ]

    def _start(self, name: str) -> LogitSource:
        source = self._running[name] = self._expert(name)
        for seq in self._history:
            source.rewind(seq, 0)  # somebody else may have used it before
        return source

    def _read(
        self, source: LogitSource, continuations: Sequence[Continuation], cancelled: Callable[[], bool]
    ) -> list[Rows]:
        """One row for the last token of each continuation; what is far behind is read in chunks before."""
        for c in continuations:
            while len(c.tokens) - (at := source.length(c.seq)) > self._chunk:
                if cancelled():
                    raise Cancelled
                source.extend([Feed(c.seq, c.tokens[at : at + self._chunk], 0)])
        if cancelled():
            raise Cancelled
        for c in continuations:
            # A prompt may be a prefix of what was read before: its last token is read again to get its row.
            if source.length(c.seq) >= len(c.tokens):
                source.rewind(c.seq, len(c.tokens) - 1)
        return source.extend([Feed(c.seq, c.tokens[source.length(c.seq) :], 1) for c in continuations])

    def generate(
        self,
        prompt: Sequence[int],
        sampler: TokenSampler,
        *,
        max_tokens: int = 0,
        seq: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Step]:
        """The steps of one answer, up to an end token, ``max_tokens`` (0: no limit) or the end of the context.

        Raises ``Cancelled`` when ``cancelled()`` is true between two batches.
        """
        continuation = self.begin(seq, prompt, sampler)
        while True:
            (step,) = self.step([continuation], cancelled)
            written = len(continuation.tokens) - continuation.prompt_length
            if step.finish is None and max_tokens and written >= max_tokens:
                step = Step(step.token, step.experts, step.weights, step.read, step.timings, "length")
            yield step
            if step.finish:
                return
