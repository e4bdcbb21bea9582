"""Answers as text: steps in, spans of text and a finished ``Answer`` out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from frcli.decode.loop import Step
from frcli.decode.reading import Cancelled
from frcli.tokens import Span, TextStream

ALL = "all"


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    ``finish_reason`` is ``eos``, ``stop`` (a stop string), ``length`` (max tokens), ``context`` (the context is full)
    or ``cancelled``. ``experts`` counts, for each expert, the tokens that it helped to write. Times are in seconds:
    ``first_token`` from the start to the first token, ``seconds`` in all.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    experts: dict[str, int]
    spans: tuple[Span, ...] = ()
    first_token: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of generation after the first token; 0 when there was no second one."""
        rest = self.seconds - self.first_token
        return (self.completion_tokens - 1) / rest if self.completion_tokens > 1 and rest > 0 else 0.0


@dataclass(slots=True)
class Writing:
    """An answer that is being written: iterate it for spans of finished text, then read ``answer``.

    A span's tag is the expert that wrote it (``all`` where several did). ``steps`` may be any iterator of steps;
    closing or leaving the iteration ends it. ``on_step`` sees every step before its text.
    """

    steps: Iterator[Step]
    piece: Callable[[int], bytes]
    prompt_tokens: int
    stops: Sequence[str] = ()
    on_step: Callable[[Step], None] | None = None
    answer: Answer | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[Span]:
        stream = TextStream(self.stops)
        spans: list[Span] = []
        experts: Counter[str] = Counter()
        written, first, finish = 0, 0.0, "cancelled"
        began = time.perf_counter()
        try:
            for step in self.steps:
                written += 1
                first = first or time.perf_counter() - began
                experts.update(step.experts)
                if self.on_step:
                    self.on_step(step)
                tag = step.experts[0] if len(step.experts) == 1 else ALL
                ready = stream.push(b"" if step.finish == "eos" else self.piece(step.token), tag)
                spans += ready
                yield from ready
                if stream.stopped is not None:
                    finish = "stop"
                    break
                if step.finish:
                    finish = step.finish
            if stream.stopped is None:
                ready = stream.finish()
                spans += ready
                yield from ready
        except Cancelled:
            ready = stream.finish()
            spans += ready
            yield from ready
        finally:
            if isinstance(self.steps, Generator):
                self.steps.close()  # which frees its sampler, before the model can be freed
            self.answer = Answer(
                "".join(span.text for span in spans),
                finish,
                self.prompt_tokens,
                written,
                dict(experts),
                tuple(spans),
                first,
                time.perf_counter() - began,
            )

    def run(self) -> Answer:
        """Write to the end and return the answer."""
        for _ in self:
            pass
        assert self.answer is not None
        return self.answer
