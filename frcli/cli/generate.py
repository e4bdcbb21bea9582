"""``frcli generate``: answer a file of prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frcli.cli import ui
from frcli.cli.options import DECODING, Force, with_settings
from frcli.config import Settings, read_settings
from frcli.errors import FrcliError, UsageError

if TYPE_CHECKING:
    from frcli.decode.answer import Answer
    from frcli.decode.batch import Request
    from frcli.decode.engine import Engine
    from frcli.jobs.formats import Row
    from frcli.jobs.run import Answerer, Progress

app = typer.Typer(add_completion=False)
DEFAULTS = Settings(temperature=0.0)
AUTO = "auto"
_MOST = 256

Rows = Annotated[
    str, typer.Argument(metavar="IN", help="JSON lines of prompts; - is standard input.", show_default=False)
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="File for the answers; standard output if not given.")]
Name = Annotated[str | None, typer.Option("--bundle", "-b", metavar="BUNDLE", help="Name or folder of a bundle.")]
Parallel = Annotated[str, typer.Option(metavar="N|auto", help="How many rows to answer at once.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Answer only the first rows.")]


@app.command()
@with_settings(("system", *DECODING), DEFAULTS)
def generate(
    rows: Rows,
    out: Out = None,
    bundle: Name = None,
    limit: Limit = None,
    parallel: Parallel = AUTO,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Answer a file of prompts, one JSON object a line.

    A row is {"prompt": TEXT}, {"messages": [...]} or a line of OpenAI's batch format; each gives one line of output, in
    order. What a row sets itself (temperature, max_tokens, seed, ...) wins over the flags. With --seed, row I has the
    seed SEED + I - 1. Rows that fail say so in their line, and the exit code is 3.
    """
    settings = read_settings(DEFAULTS, {**flags, "bundle": bundle})
    at_once = sequences(parallel)

    from frcli.bundle import DEFAULT_BUNDLE, read_bundle
    from frcli.chat.interrupt import StopFlag
    from frcli.decode.engine import Engine
    from frcli.jobs.run import refuse_output, run

    source = None if rows == "-" else Path(rows)
    refuse_output(source, out, force)  # before the models are opened, which may take long
    opened = read_bundle(settings.bundle or DEFAULT_BUNDLE)
    settings = settings.with_bundle(opened)
    with ui.working(f"opening {opened.name}"):
        engine = Engine(opened, replace(settings.options(), sequences=at_once))
    began = time.monotonic()
    tokens = 0
    with engine, StopFlag() as cancelled, ui.Meter() as meter:

        def progress(state: Progress) -> None:
            nonlocal tokens
            tokens = state.tokens
            done = state.done + state.failed
            speed = tokens / max(1e-9, time.monotonic() - began)
            note = f"{done} rows, {state.failed} failed, {speed:.1f} tokens/s"
            if limit:
                meter("answering", done, limit, note)
            else:
                meter("answering", state.bytes_read, state.bytes_total, note)

        result = run(
            source,
            out,
            answerer(engine, settings, cancelled),
            model=opened.name,
            force=force,
            progress=progress,
            limit=limit,
        )
    seconds = time.monotonic() - began
    ui.say(
        f"{result.done + result.failed} rows, {result.failed} failed, {tokens} tokens in {seconds:.1f} s "
        f"({tokens / max(1e-9, seconds):.1f} tokens/s)"
    )
    result.check(str(out) if out else "standard output")


def sequences(parallel: str) -> int:
    """The number of rows to answer at once that ``--parallel`` asks for, 0 for as many as fit."""
    if parallel == AUTO:
        return 0
    if parallel.isascii() and parallel.isdigit() and 1 <= int(parallel) <= _MOST:
        return int(parallel)
    raise UsageError(f"parallel is {parallel!r}", f"it is {AUTO} or a number from 1 to {_MOST}")


def answerer(engine: Engine, settings: Settings, cancelled: Callable[[], bool]) -> Answerer:
    """Answers rows with the engine: what a row says wins over the settings."""
    from frcli.decode.batch import write_many

    def answers(rows: Iterator[Row | None]) -> Iterator[tuple[int, Answer | FrcliError]]:
        return write_many(engine, map(request, rows), cancelled=cancelled)

    def request(row: Row | None) -> Request | FrcliError | None:
        try:
            return None if row is None else _request(engine, settings, row)
        except FrcliError as error:
            return error

    return answers


def _request(engine: Engine, settings: Settings, row: Row) -> Request:
    from frcli.decode.batch import Request
    from frcli.decode.sampler import MAX_SEED

    own = dict(row.sampling)
    if settings.seed is not None:
        # Each row has its own stream, which does not depend on the rows before it.
        own.setdefault("seed", (settings.seed + row.line - 1) % (MAX_SEED + 1))
    return Request(
        _tokens(engine, row, settings.system),
        settings.sampling(**own),
        settings.max_tokens if row.max_tokens is None else row.max_tokens,
        settings.stop if row.stop is None else row.stop,
    )


def _tokens(engine: Engine, row: Row, system: str | None) -> list[int]:
    """A prompt is what a user says, except for OpenAI's completions and models without a chat template."""
    if row.messages is None and (row.shape == "completion" or engine.template is None):
        return engine.base.encode(row.prompt or "", special=True, add_bos=True)
    messages = list(row.messages or [{"role": "user", "content": row.prompt or ""}])
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return engine.encode_messages(messages)
