"""Rows as requests to an engine: what a row says wins over the settings of the job."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from frcli.config import Settings
from frcli.decode.answer import Answer
from frcli.decode.batch import Request, write_many
from frcli.decode.sampler import MAX_SEED
from frcli.errors import FrcliError
from frcli.jobs.formats import Row
from frcli.journal import key_of

if TYPE_CHECKING:
    from frcli.decode.engine import Engine

_SPREAD = 0x9E3779B1  # between the seeds of a row's answers: large and odd, so that those of near rows do not meet


def row_key(row: Row, settings: Settings, setting: list[object]) -> str:
    """A name for the row and all that its answer depends on: what it says, the settings, and the engine's ``setting``;
    not where it stands in its file.
    """
    return key_of(
        setting,
        row.id if row.named else None,
        row.shape,
        row.prompt,
        row.messages,
        settings.system,
        _sampling(row, settings),
        _limits(row, settings),
        row.n,
        row.logprobs,
        row.model,
        row.extra,
    )


def requests_of(engine: Engine, settings: Settings, row: Row) -> list[Request]:
    """The requests of a row, one for each answer that it wants; raises ``FrcliError`` for what cannot be asked."""
    prompt = _tokens(engine, row, settings.system)
    own = _sampling(row, settings)
    seed = own.get("seed")
    limit, stops = _limits(row, settings)
    requests = []
    for i in range(row.n):
        if seed is not None:
            own["seed"] = seed if i == 0 else (seed + i * _SPREAD) % (MAX_SEED + 1)
        requests.append(Request(prompt, settings.sampling(**own), limit, stops, row.logprobs))
    return requests


class RowAnswers:
    """Answers rows with an engine, as many at once as it has sequences; an ``Answerer`` of :mod:`frcli.jobs.run`."""

    def __init__(self, engine: Engine, settings: Settings, cancelled: Callable[[], bool] = lambda: False) -> None:
        self._engine, self._settings, self._cancelled = engine, settings, cancelled
        self._owner: dict[int, tuple[int, int]] = {}  # row and place among its answers, by the request's number
        self._parts: dict[int, list[Answer | FrcliError | None]] = {}  # by row

    def __call__(self, rows: Iterator[Row | None]) -> Iterator[tuple[int, tuple[Answer, ...] | FrcliError]]:
        for number, outcome in write_many(self._engine, self._requests(rows), cancelled=self._cancelled):
            row, place = self._owner.pop(number)
            parts = self._parts[row]
            parts[place] = outcome
            if None not in parts:
                del self._parts[row]
                failure = next((part for part in parts if isinstance(part, FrcliError)), None)
                yield row, failure or tuple(part for part in parts if isinstance(part, Answer))

    def _requests(self, rows: Iterator[Row | None]) -> Iterator[Request | FrcliError | None]:
        number = asked = 0
        for row in rows:
            if row is None:
                yield None
                continue
            try:
                requests: list[Request | FrcliError] = [*requests_of(self._engine, self._settings, row)]
            except FrcliError as error:
                requests = [error]
            self._parts[number] = [None] * len(requests)
            for place, request in enumerate(requests):
                self._owner[asked] = number, place
                asked += 1
                yield request
            number += 1


def _sampling(row: Row, settings: Settings) -> dict[str, Any]:
    """Everything that is said about how the row is sampled, by the names of ``Sampling``; not checked."""
    general = {each.name: getattr(settings, each.name) for each in fields(Settings) if each.metadata["sampling"]}
    own: dict[str, Any] = {"logit_bias": dict(settings.biases()), **general, **row.sampling}
    if settings.seed is not None and "seed" not in row.sampling:
        # Each row has its own stream, which does not depend on the rows before it.
        offset = zlib.crc32(row.id.encode()) if isinstance(row.id, str) else row.id - 1
        own["seed"] = (settings.seed + offset) % (MAX_SEED + 1)
    return own


def _limits(row: Row, settings: Settings) -> tuple[int, tuple[str, ...]]:
    limit = settings.max_tokens if row.max_tokens is None else row.max_tokens
    return limit, settings.stop if row.stop is None else row.stop


def _tokens(engine: Engine, row: Row, system: str | None) -> list[int]:
    """A prompt is what a user says, except for OpenAI's completions and models without a chat template."""
    if row.messages is None and (row.shape == "completion" or engine.template is None):
        return engine.base.encode(row.prompt or "", special=True, add_bos=True)
    messages: list[Mapping[str, str]] = list(row.messages or [{"role": "user", "content": row.prompt or ""}])
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return engine.encode_messages(messages)
