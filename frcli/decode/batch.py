"""Many answers at once: as many sequences as the engine has, each taken over by the next request when it is free.

A request's tokens do not depend on what is written beside it, but for the last bits of sums: each has a sampler of its
own, seeded by its own settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from frcli.decode.answer import Answer, Transcript
from frcli.decode.logprobs import ScoringSampler
from frcli.decode.loop import Decoder, Step
from frcli.decode.reading import Cancelled
from frcli.decode.sampler import Sampler, Sampling
from frcli.decode.window import Continuation, TokenSampler
from frcli.errors import FrcliError


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be answered: the prompt's token ids, how to sample, and where to stop (``max_tokens`` 0: no limit).

    ``logprobs`` is how many alternatives to each token are wanted beside its own log probability; None for neither.
    """

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int = 0
    stops: Sequence[str] = ()
    logprobs: int | None = None


class BatchEngine(Protocol):
    """What a batch needs of :class:`~frcli.decode.engine.Engine`."""

    @property
    def decoder(self) -> Decoder:
        """Writes tokens."""

    @property
    def sequences(self) -> int:
        """How many answers can be written at once."""

    def sampler(self, sampling: Sampling, prompt: Sequence[int]) -> Sampler:
        """A sampler that has seen the prompt."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token stands for; those of control tokens only if ``special``."""


@dataclass(slots=True)
class _Running:
    number: int
    continuation: Continuation
    transcript: Transcript


def write_many(
    engine: BatchEngine,
    requests: Iterable[Request | FrcliError | None],
    *,
    cancelled: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, Step], None] | None = None,
) -> Iterator[tuple[int, Answer | FrcliError]]:
    """Answer the requests; yields the number of a request (from 0) and its answer, in the order in which they finish.

    A request that cannot be begun or fails on the way gives its error, and one that is an error already is passed on.
    ``requests`` is asked for the next one when a sequence is free; None, which has no number, means that there is none
    until another answer is finished. ``on_step`` sees each request's steps. When ``cancelled()`` turns true, the
    answers that are being written end as ``cancelled`` and no other begins.
    """
    coming = iter(requests)
    with _Batch(engine, on_step) as batch:
        number, more = 0, True
        while more or batch.running:
            while more and batch.free and not cancelled():
                try:
                    request = next(coming)
                except StopIteration:
                    more = False
                    break
                if request is None:
                    break
                failure = request if isinstance(request, FrcliError) else batch.begin(number, request)
                if failure is not None:
                    yield number, failure
                number += 1
            if cancelled():
                yield from batch.end()
                return
            yield from batch.step(cancelled)


class _Batch:
    """The answers that are being written, by sequence."""

    def __init__(self, engine: BatchEngine, on_step: Callable[[int, Step], None] | None) -> None:
        self._engine, self._on_step = engine, on_step
        self.running: dict[int, _Running] = {}
        self.free = list(range(engine.sequences))

    def __enter__(self) -> _Batch:
        return self

    def __exit__(self, *error: object) -> None:
        for running in self.running.values():
            running.continuation.sampler.close()

    def begin(self, number: int, request: Request) -> FrcliError | None:
        """Put a request into a free sequence; the error if it cannot be."""
        sampler: TokenSampler | None = None
        try:
            sampler = self._engine.sampler(request.sampling, request.prompt)
            if request.logprobs is not None:
                sampler = ScoringSampler(sampler, request.logprobs)
            seq = self._engine.decoder.nearest(self.free, request.prompt)
            continuation = self._engine.decoder.begin(seq, request.prompt, sampler, request.max_tokens)
        except FrcliError as error:
            if sampler is not None:
                sampler.close()
            return error
        self.free.remove(seq)
        transcript = Transcript(self._engine.piece, len(request.prompt), request.stops)
        self.running[seq] = _Running(number, continuation, transcript)
        return None

    def step(self, cancelled: Callable[[], bool]) -> Iterator[tuple[int, Answer | FrcliError]]:
        """One step of all; the answers that it has finished."""
        members = list(self.running.items())
        if not members:
            return
        try:
            steps = self._engine.decoder.step([running.continuation for _, running in members], cancelled)
        except Cancelled:
            return
        except FrcliError as error:  # a model has failed, and nobody knows whose row it was
            yield from ((number, error) for number, _ in self.end())
            return
        for (seq, running), own in zip(members, steps, strict=True):
            for step in own:
                if self._on_step:
                    self._on_step(running.number, step)
                running.transcript.push(step)
                if running.transcript.over:
                    break
            if running.transcript.over:
                yield self._end(seq)
            elif (failure := running.continuation.error) is not None:
                yield self._end(seq)[0], failure

    def end(self) -> Iterator[tuple[int, Answer]]:
        """End all as they are."""
        for seq in list(self.running):
            yield self._end(seq)

    def _end(self, seq: int) -> tuple[int, Answer]:
        running = self.running.pop(seq)
        running.continuation.sampler.close()
        self.free.append(seq)
        running.transcript.rest()
        answer = running.transcript.answer()
        sampler = running.continuation.sampler
        if isinstance(sampler, ScoringSampler):
            answer = replace(answer, logprobs=sampler.scores(answer, self._engine.piece))
        return running.number, answer
