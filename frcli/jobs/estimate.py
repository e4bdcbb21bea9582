"""What a job will take, before it is begun."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from frcli.config import Settings
from frcli.decode.answer import Answer
from frcli.decode.batch import Request, write_many
from frcli.decode.engine import Engine
from frcli.errors import ContextError, DataError, FrcliError
from frcli.jobs.answering import requests_of
from frcli.jobs.files import JobFiles
from frcli.jobs.formats import BadRow, read_row

_PROBE = 16  # tokens that are written to see how fast that is


@dataclass(frozen=True, slots=True)
class Estimate:
    """Rows in all and those that would be ``refused`` (the first one's ``reason``), tokens of all prompts, tokens that
    the answers have at most, speeds in tokens per second that were measured on the first rows, and the seconds that
    follow: answers that end early take less.
    """

    rows: int
    refused: int
    reason: str
    prompt_tokens: int
    answer_tokens: int
    prompt_speed: float
    answer_speed: float

    @property
    def seconds(self) -> float:
        """Of reading all prompts and writing the longest answers."""
        reading = self.prompt_tokens / self.prompt_speed if self.prompt_speed else 0.0
        return reading + (self.answer_tokens / self.answer_speed if self.answer_speed else 0.0)


def estimate(files: JobFiles, engine: Engine, settings: Settings, *, limit: int | None, lenient: bool) -> Estimate:
    """Count the tokens of a job, and measure on its first rows how fast they go; writes nothing.

    Raises ``DataError`` for input that cannot be read or has no rows.
    """
    first: list[Request] = []
    rows = refused = prompt_tokens = answer_tokens = 0
    reason = ""
    with files.reading() as (lines, _):
        for number, line, _ in lines:
            if rows == limit:
                break
            if line is not None and not line.strip():
                continue
            rows += 1
            try:
                requests = _requests(engine, settings, line, number, lenient)
            except FrcliError as error:
                refused += 1
                reason = reason or str(error)
                continue
            if len(first) < engine.sequences:
                first += requests[: engine.sequences - len(first)]
            for request in requests:
                prompt_tokens += len(request.prompt)
                room = engine.context - len(request.prompt)
                answer_tokens += min(request.max_tokens or room, room)
    if not rows:
        raise DataError(f"{files.input_name} has no rows", "give one JSON object a line")
    reading, writing = _speeds(engine, first)
    return Estimate(rows, refused, reason, prompt_tokens, answer_tokens, reading, writing)


def _requests(engine: Engine, settings: Settings, line: bytes | None, number: int, lenient: bool) -> list[Request]:
    row = read_row(line or b"", number, lenient=lenient)
    if isinstance(row, BadRow):
        raise DataError(row.reason)
    requests = requests_of(engine, settings, row)
    if (length := len(requests[0].prompt)) >= engine.context:
        raise ContextError(f"line {number}: the prompt has {length} tokens and the context {engine.context}")
    return requests


def _speeds(engine: Engine, requests: Sequence[Request]) -> tuple[float, float]:
    """Tokens per second read and written by these requests, all at once; 0 where there is nothing to measure."""
    read, reading = _take(engine, [replace(request, max_tokens=1, stops=()) for request in requests])
    # The prompts are in the caches now, so that this is writing.
    written, writing = _take(engine, [replace(request, max_tokens=_PROBE, stops=()) for request in requests])
    return sum(answer.prompt_tokens for answer in read) / reading, (
        sum(answer.completion_tokens for answer in written) / writing
    )


def _take(engine: Engine, requests: Sequence[Request]) -> tuple[list[Answer], float]:
    began = time.perf_counter()
    answers = [outcome for _, outcome in write_many(engine, requests) if isinstance(outcome, Answer)]
    return answers, time.perf_counter() - began
