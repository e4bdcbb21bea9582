"""One step of decoding, for every policy and for any number of sequences at once.

The loop knows token ids and sources, nothing of text. At each step

1. **draft**: the next tokens of each sequence are guessed, as far as :mod:`frcli.decode.draft` finds it worth its time;
2. **route**: the policy's drafter, the router under FusionRoute, reads what is new, and the policy chooses experts for
   each position;
3. **extend**: an expert reads all that it has not seen of its sequences, its catch-up and the window together, in one
   batch; each runs once at most, in the order in which positions need it, and not at all when the windows that want it
   have come to their end before;
4. **fuse and sample**, position by position, while the token that was drawn is the one that was drafted;
5. **rewind** what was read beyond it.

Experts that were not chosen do nothing. Every position and every random number is the one that decoding without drafts
would use, so the tokens are the same, but for near-ties: quantized models round their inputs in other places when a
call has more tokens, and two tokens whose fused logits lie closer than that can change places (``docs/speed.md`` has
how often and by how much).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from frcli.decode.draft import Pace
from frcli.decode.evidence import PromptEvidence
from frcli.decode.reading import Reader
from frcli.decode.speculation import Speculation
from frcli.decode.stopwatch import Stopwatch, Timings
from frcli.decode.window import Continuation, TokenSampler, Window
from frcli.errors import ContextError, FrcliError, UsageError
from frcli.fusion.policy import ROUTER, Policy
from frcli.sources.source import LogitSource

_WORTH_FORKING = 8  # tokens; fewer are read faster than another sequence's cache is copied


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer.

    ``experts`` are the experts whose rows it came from, ``weights`` the routing weights by expert as its policy
    compares them (None without router), ``read`` the tokens that its expert was behind when the window began, and this
    one (1 when it was not behind, or has caught up for another token of the window). ``proposed`` is how many drafts
    the window had that this token begins, and ``calls`` how many calls of models it took part in, 0 for its other
    tokens; ``drafted`` is whether the token was one of the drafts. ``finish`` is set on the last step: ``eos``,
    ``length`` or ``context``.
    """

    token: int
    experts: tuple[str, ...]
    weights: tuple[float, ...] | None
    read: int
    timings: Timings
    proposed: int = 0
    drafted: bool = False
    finish: str | None = None
    calls: int = 1


class Decoder:
    """Writes sequences with the models of a bundle under one policy.

    ``width`` is the number of token ids that can be sampled: rows are cut to it, so a source may have a wider (padded)
    vocabulary. ``expert(name)`` gives the source of an expert or of another model than the router, and is asked only
    when it is needed for the first time. ``chunk`` is the number of prompt tokens read between two looks at
    ``cancelled``. ``drafts`` is how many tokens are drafted at a time: 0 for none, None for as many as pay.
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
        drafts: int | None = 0,
    ) -> None:
        self.context, self._chunk = context, chunk
        self._expert, self._is_end = expert, is_end
        self._running: dict[str, LogitSource] = {}
        self._history: dict[int, list[int]] = {}
        self._drafts, self.policy = drafts, policy
        self._policies: dict[int, Policy] = {}  # by sequence, for its prompt
        self._speculation = Speculation(Pace(drafts), is_end, width)
        self.use(policy, router, width)

    def use(self, policy: Policy, router: LogitSource | None, width: int) -> None:
        """Decode under ``policy`` from the next token on; sources that it does not need keep what they have read."""
        if policy.needs_router and router is None:
            raise UsageError(f"the policy {policy.name} needs a router, and this bundle has none")
        if policy.drafter != self.policy.drafter:  # another model costs and agrees differently
            self._speculation.pace = Pace(self._drafts)
        self.policy, self._router, self.width = policy, router, width
        self._policies.clear()
        self._speculation.part = ROUTER if policy.drafter == ROUTER else "experts"
        self._speculation.width = width

    def begin(
        self, seq: int, prompt: Sequence[int], sampler: TokenSampler, most: int = 0, forced: Sequence[int] = ()
    ) -> Continuation:
        """Start an answer to ``prompt`` in sequence ``seq``; what its sources have read of the same prefix is kept.

        ``most`` is its number of tokens at most, 0 for no limit, ``forced`` what it must be, if that is known. Raises
        ``UsageError`` for an empty prompt and ``ContextError`` for one that leaves no room for an answer.
        """
        if not prompt:
            raise UsageError("the prompt is empty", "write something")
        if len(prompt) >= self.context:
            raise ContextError(
                f"the prompt has {len(prompt)} tokens and the context {self.context}", "shorten it or raise --ctx"
            )
        # The last token is read in any case: its row is the first that is wanted.
        shared = {other: min(_common(old, prompt), len(prompt) - 1) for other, old in self._history.items()}
        for source in self._sources():
            kept = {other: min(source.length(other), same) for other, same in shared.items()}
            best = max(kept, key=lambda other: kept[other], default=seq)
            if kept.get(best, 0) >= kept.get(seq, 0) + _WORTH_FORKING:
                source.fork(best, seq)
                source.rewind(seq, kept[best])
            else:
                source.rewind(seq, kept.get(seq, 0))
        continuation = Continuation(seq, list(prompt), sampler, most, forced=forced)
        self._history[seq] = continuation.tokens
        self._policies.pop(seq, None)
        self._speculation.begin(seq)
        return continuation

    def forget(self) -> None:
        """Let no answer from here on profit from what was read before."""
        self._history.clear()

    def nearest(self, sequences: Sequence[int], prompt: Sequence[int]) -> int:
        """The one of ``sequences`` whose last text has the longest beginning in common with ``prompt``."""
        return max(sequences, key=lambda seq: _common(self._history.get(seq, ()), prompt))

    def _sources(self) -> Iterator[LogitSource]:
        yield from self._running.values()
        if self._router is not None:
            yield self._router

    def step(
        self, continuations: Sequence[Continuation], cancelled: Callable[[], bool] = lambda: False
    ) -> list[list[Step]]:
        """The next tokens of each continuation, one or more, accepted by its sampler and appended to its tokens.

        Either all continuations are forced or none is. A continuation whose sampler finds no token gets its ``error``
        set instead. Raises ``Cancelled`` when ``cancelled()`` is true between two batches, and ``ModelError`` when a
        model fails.
        """
        reader = Reader(Stopwatch(), cancelled, self._chunk)
        windows = [Window(each, self._policy_of(each, reader), self.context) for each in continuations]
        drafter = self._source(self.policy.drafter) if self.policy.drafter is not None else None
        forced = any(each.forced for each in continuations)
        if forced:
            self._speculation.force(windows, drafter, reader)
        else:
            drafts = self._speculation.draft(windows, drafter, reader)
        for window in windows:
            window.chosen = [window.policy.choose(weights) for weights in window.weights]
        self._speculation.pace.together = len(windows[0].chosen[0]) if windows else 1
        read: list[dict[str, int]] = [{} for _ in windows]
        while name := _most_wanted(windows):
            self._extend(name, windows, read, reader)
            for window in windows:
                while window.open and not window.missing():
                    self._decide(window, reader.watch)
        for window in windows:
            for source in self._sources():
                seq, end = window.continuation.seq, len(window.continuation.tokens) - 1
                if source.length(seq) > end:
                    source.rewind(seq, end)
        if not forced:
            self._speculation.learn(drafts, reader)
        timings = reader.watch.share(max(1, sum(window.at for window in windows)))
        return [self._steps(window, counts, timings) for window, counts in zip(windows, read, strict=True)]

    def _policy_of(self, continuation: Continuation, reader: Reader) -> Policy:
        seq = continuation.seq
        if seq not in self._policies:
            evidence = PromptEvidence(continuation, self._source, self.width, reader)
            self._policies[seq] = self.policy.for_prompt(evidence)
        return self._policies[seq]

    def _source(self, name: str) -> LogitSource:
        if name == ROUTER:
            assert self._router is not None  # use() has refused the policy otherwise
            return self._router
        return self._running.get(name) or self._start(name)

    def _extend(self, name: str, windows: Sequence[Window], read: Sequence[dict[str, int]], reader: Reader) -> None:
        """Run one expert for all windows that want it, now or at a later position."""
        source = self._source(name)
        wanting, feeds = [], []
        for window, counts in zip(windows, read, strict=True):
            if window.open and (feed := window.feed(name, source.length(window.continuation.seq))):
                wanting.append(window)
                feeds.append(feed)
                window.calls += 1
                counts[name] = window.start - source.length(window.continuation.seq)
        rows = reader.read(source, feeds, "experts", self._speculation.pace.experts)
        for window, got in zip(wanting, rows, strict=True):
            window.give(name, got, self.width)

    def _start(self, name: str) -> LogitSource:
        source = self._running[name] = self._expert(name)
        for seq in self._history:
            source.rewind(seq, 0)  # somebody else may have used it before
        return source

    def _decide(self, window: Window, watch: Stopwatch) -> None:
        continuation = window.continuation
        row = window.fused()
        watch.lap("fuse")
        try:
            token = continuation.sampler.sample(row)
            continuation.sampler.accept(token)
        except FrcliError as error:  # the others go on
            window.fail(error)
        else:
            window.decide(token, over=self._is_end(token))
        watch.lap("sample")

    def _steps(self, window: Window, read: dict[str, int], timings: Timings) -> list[Step]:
        tokens = window.continuation.tokens[window.start :]
        steps = []
        for j, token in enumerate(tokens):
            names, weights = window.chosen[j], window.weights[j]
            steps.append(
                Step(
                    token,
                    names,
                    None if weights is None else tuple(window.policy.weigh(weights).tolist()),
                    max((read.pop(name, 1) for name in names), default=1),
                    timings,
                    len(window.drafts) if j == 0 else 0,
                    j < window.accepted,
                    window.continuation.finish(self._is_end(token), self.context) if j + 1 == len(tokens) else None,
                    window.calls if j == 0 else 0,
                )
            )
        return steps

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

        Raises ``Cancelled`` when ``cancelled()`` is true between two batches, and what keeps the answer from going on.
        """
        continuation = self.begin(seq, prompt, sampler, max_tokens)
        while True:
            (steps,) = self.step([continuation], cancelled)
            yield from steps
            if continuation.error is not None:
                raise continuation.error
            if steps[-1].finish:
                return


def _most_wanted(windows: Sequence[Window]) -> str | None:
    """The expert without which most windows cannot go on; the first one of equals, None when all are decided."""
    wanted = Counter(name for window in windows if window.open for name in window.missing())
    return wanted.most_common(1)[0][0] if wanted else None


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
