"""Answers as text: steps in, spans of text and a finished ``Answer`` out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from frcli.decode.loop import Step
from frcli.decode.reading import Cancelled
from frcli.decode.stopwatch import Timings
from frcli.tokens import Span, TextStream

ALL = "all"

# A token's text, the experts that wrote it, and the routing weights (None without router).
Written = tuple[str, tuple[str, ...], tuple[float, ...] | None]


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's bytes, the natural logarithm of its probability, and the likeliest tokens at its place with theirs."""

    text: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    ``finish_reason`` is ``eos``, ``stop`` (a stop string), ``length`` (max tokens), ``context`` (the context is full)
    or ``cancelled``. ``experts`` counts, for each expert, the tokens that it helped to write, and ``calls`` the calls
    of models that the answer took part in; of ``proposed`` drafts ``accepted`` became tokens. Times are in seconds:
    ``first_token`` from the start to the first token, ``seconds`` in all; ``first_tokens`` are those that came together
    then, the first one and the drafts that were accepted with it. ``logprobs`` has the scores of the text's
    tokens where they were asked for.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    experts: dict[str, int]
    spans: tuple[Span, ...] = ()
    first_token: float = 0.0
    seconds: float = 0.0
    calls: int = 0
    logprobs: tuple[TokenScore, ...] = ()
    proposed: int = 0
    accepted: int = 0
    first_tokens: int = 1

    @property
    def later_tokens(self) -> int:
        """How many tokens came after the first ones."""
        return max(0, self.completion_tokens - self.first_tokens)

    @property
    def tokens_per_second(self) -> float:
        """Speed of generation after the first tokens; 0 when there were no others."""
        rest = self.seconds - self.first_token
        return self.later_tokens / rest if rest > 0 else 0.0


class Transcript:
    """The text of an answer as its steps come in, and the :class:`Answer` that it makes.

    A span's tag is the expert that wrote it (``all`` where several did).
    """

    def __init__(self, piece: Callable[[int], bytes], prompt_tokens: int, stops: Sequence[str] = ()) -> None:
        self._piece, self._prompt_tokens = piece, prompt_tokens
        self._stream = TextStream(stops)
        self._spans: list[Span] = []
        self._experts: Counter[str] = Counter()
        self._written, self._calls, self._first = 0, 0, 0.0
        self._first_timings: Timings | None = None
        self._first_tokens = 0
        self._proposed, self._accepted = 0, 0
        self._began = time.perf_counter()
        self._reason = "cancelled"

    @property
    def over(self) -> bool:
        """Whether the answer has come to its end."""
        return self._reason != "cancelled"

    def push(self, step: Step) -> Sequence[Span]:
        """Take the next step; return the text that is finished by it."""
        self._written += 1
        self._calls += step.calls
        self._proposed += step.proposed
        self._accepted += step.drafted
        if self._first_timings is None:
            self._first, self._first_timings = time.perf_counter() - self._began, step.timings
        self._first_tokens += step.timings is self._first_timings  # the tokens of one window share them
        self._experts.update(step.experts)
        tag = step.experts[0] if len(step.experts) == 1 else ALL
        ready = self._stream.push(b"" if step.finish == "eos" else self._piece(step.token), tag)
        self._spans += ready
        if self._stream.stopped is not None:
            self._reason = "stop"
        elif step.finish:
            self._reason = step.finish
        return ready

    def rest(self) -> Sequence[Span]:
        """The text that was held back, which an answer that ends now still gets."""
        ready = self._stream.finish() if self._stream.stopped is None else []
        self._spans += ready
        return ready

    def answer(self) -> Answer:
        """The answer as it is now: cancelled, unless a step has ended it."""
        return Answer(
            "".join(span.text for span in self._spans),
            self._reason,
            self._prompt_tokens,
            self._written,
            dict(self._experts),
            tuple(self._spans),
            self._first,
            time.perf_counter() - self._began,
            self._calls,
            proposed=self._proposed,
            accepted=self._accepted,
            first_tokens=self._first_tokens,
        )


@dataclass(slots=True)
class Writing:
    """An answer that is being written: iterate it for spans of finished text, then read ``answer``.

    ``steps`` may be any iterator of steps; closing or leaving the iteration ends it. ``on_step`` sees every step before
    its text.
    """

    steps: Iterator[Step]
    piece: Callable[[int], bytes]
    prompt_tokens: int
    stops: Sequence[str] = ()
    on_step: Callable[[Step], None] | None = None
    answer: Answer | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[Span]:
        transcript = Transcript(self.piece, self.prompt_tokens, self.stops)
        try:
            with suppress(Cancelled):
                for step in self.steps:
                    if self.on_step:
                        self.on_step(step)
                    yield from transcript.push(step)
                    if transcript.over:
                        break
            yield from transcript.rest()
        finally:
            if isinstance(self.steps, Generator):
                self.steps.close()  # which frees its sampler, before the model can be freed
            self.answer = transcript.answer()

    def run(self) -> Answer:
        """Write to the end and return the answer."""
        for _ in self:
            pass
        assert self.answer is not None
        return self.answer


def written_tokens(steps: Sequence[Step], piece: Callable[[int], bytes], stops: Sequence[str] = ()) -> list[Written]:
    """Each token of an answer: text that is not whole yet goes to the token that completes it; weights are rounded to
    3 digits.
    """
    stream = TextStream(stops)
    texts = [""] * len(steps)
    for number, step in enumerate(steps):
        for span in stream.push(b"" if step.finish == "eos" else piece(step.token), str(number)):
            texts[int(span.tag)] += span.text
    for span in stream.finish():
        texts[int(span.tag)] += span.text
    return [
        (text, step.experts, None if step.weights is None else tuple(round(weight, 3) for weight in step.weights))
        for text, step in zip(texts, steps, strict=True)
    ]
