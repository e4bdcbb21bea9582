"""``frcli generate``: answer a file of prompts."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frcli.cli import completion, ui
from frcli.cli.options import DECODING, Force, with_settings
from frcli.config import Settings, read_settings
from frcli.errors import UsageError

if TYPE_CHECKING:
    from frcli.bundle import Bundle
    from frcli.decode.engine import Options
    from frcli.jobs.files import JobFiles
    from frcli.jobs.run import JobResult, Progress

app = typer.Typer(add_completion=False)
DEFAULTS = Settings(temperature=0.0)
AUTO = "auto"
_MOST = 256

Rows = Annotated[
    str, typer.Argument(metavar="IN", help="JSON lines of prompts; - is standard input.", show_default=False)
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="File for the answers; standard output if not given.")]
Name = Annotated[
    str | None,
    typer.Option(
        "--bundle", "-b", metavar="BUNDLE", help="Name or folder of a bundle.", autocompletion=completion.bundles
    ),
]
Parallel = Annotated[
    str,
    typer.Option(metavar="N|auto", help="How many rows to answer at once.", autocompletion=completion.one_of("auto")),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Answer only the first rows.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Try rows again that failed in an earlier run.")]
Restart = Annotated[bool, typer.Option("--restart", help="Forget what an earlier run has answered.")]
Lenient = Annotated[bool, typer.Option("--lenient", help="Keep unknown fields instead of refusing the row.")]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="local|ADDRESS",
        help="Answer on every node of a Ray cluster (needs the ray extra).",
        autocompletion=completion.one_of("auto", "local"),
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count tokens and estimate the time; write nothing.")]


@app.command(
    epilog="""
    # a file of prompts; the same command goes on where it was cut off
    frcli generate prompts.jsonl -o answers.jsonl -b smollm2-quartet

    # how many tokens that is and how long it may take
    frcli generate prompts.jsonl --dry-run

    # one row from a pipe
    echo '{"prompt": "What is 17 * 23?"}' | frcli generate - | jq -r .text

    # try again what failed, eight rows at once
    frcli generate prompts.jsonl -o answers.jsonl --retry-failed --parallel 8
    """
)
@with_settings(("system", *DECODING), DEFAULTS)
def generate(
    rows: Rows,
    out: Out = None,
    bundle: Name = None,
    limit: Limit = None,
    parallel: Parallel = AUTO,
    retry_failed: Retry = False,
    restart: Restart = False,
    force: Force = False,
    lenient: Lenient = False,
    dry_run: DryRun = False,
    ray: Ray = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Answer a file of prompts, one JSON object a line.

    A row is {"prompt": TEXT}, {"messages": [...]} or a line of OpenAI's batch format; each gives one line of output, in
    order. What a row sets itself (temperature, max_tokens, seed, ...) wins over the flags. With --seed each row has a
    seed of its own, made of SEED and its id. Rows that fail say so in their line, and the exit code is 3.

    Answers are kept in OUT.journal as they come: the same command goes on where it was cut off. docs/generate.md has
    the formats.
    """
    settings = read_settings(DEFAULTS, {**flags, "bundle": bundle})
    at_once = sequences(parallel)

    from frcli.bundle import DEFAULT_BUNDLE, read_bundle
    from frcli.jobs.files import JobFiles

    source = None if rows == "-" else Path(rows)
    # The files are looked at before the models are opened, which may take long.
    with JobFiles(source, None if dry_run else out, force=force, restart=restart) as files:
        opened = read_bundle(settings.bundle or DEFAULT_BUNDLE)
        settings = settings.with_bundle(opened)
        options = replace(settings.options(), sequences=at_once)
        if dry_run:
            _estimate(files, opened, settings, options, limit=limit, lenient=lenient)
        else:
            asked: dict[str, Any] = {"retry_failed": retry_failed, "limit": limit, "lenient": lenient}
            _answer(files, opened, settings, options, cluster=ray, **asked)


def _answer(
    files: JobFiles, opened: Bundle, settings: Settings, options: Options, *, cluster: str | None, **asked: Any
) -> None:
    from frcli.chat.interrupt import StopFlag
    from frcli.decode.engine import Engine, setting_of
    from frcli.jobs.answering import RowAnswers, row_key
    from frcli.jobs.run import Answerer, run

    cancelled, stopping = StopFlag(), StopFlag(signal.SIGTERM)
    with ExitStack() as stack:
        answers: Answerer
        if cluster is None:
            with ui.opening(opened.name):
                engine = stack.enter_context(Engine(opened, options))
            setting = engine.setting
            answers = RowAnswers(engine, settings, cancelled)
        else:
            from frcli.bundle import DEFAULT_BUNDLE
            from frcli.jobs.cluster import Cluster

            name = settings.bundle or DEFAULT_BUNDLE
            place = str(opened.folder.resolve()) if Path(name).expanduser().exists() else name
            setting = setting_of(opened, options)
            answers = stack.enter_context(Cluster(cluster, place, settings, options, setting, cancelled))
        for flag in (cancelled, stopping):  # behind Ray, which takes signals for itself when it begins
            stack.enter_context(flag)
        progress = JobMeter(stack.enter_context(ui.Meter()), asked["limit"])
        result = run(
            files,
            answers,
            lambda row: row_key(row, settings, setting),
            model=opened.name,
            progress=progress,
            stopping=stopping,
            **asked,
        )
    ui.say(progress.summary(result))
    result.check(files)


class JobMeter:
    """Shows how far a job is: rows, failures, tokens a second and the time that is left."""

    def __init__(self, meter: ui.Meter, limit: int | None) -> None:
        self._meter, self._limit = meter, limit
        self._began = time.monotonic()
        self._tokens = 0

    def __call__(self, state: Progress) -> None:
        """Take note of how far it is. What an earlier run has done takes no time and is left out of the share."""
        self._tokens = state.tokens
        rows = state.done + state.failed
        note = f"{rows} rows, {state.failed} failed, {self._speed():.1f} tokens/s"
        if state.known:
            note = f"{note}, {state.known} known"
        if self._limit:
            self._meter("answering", rows - state.known, self._limit - state.known, note)
        else:
            total = None if state.bytes_total is None else state.bytes_total - state.bytes_known
            self._meter("answering", state.bytes_read - state.bytes_known, total, note)

    def _speed(self) -> float:
        return self._tokens / max(1e-9, time.monotonic() - self._began)

    def summary(self, result: JobResult) -> str:
        """The job in a line."""
        known = f" ({result.known} were there)" if result.known else ""
        return (
            f"{result.done + result.failed} rows{known}, {result.failed} failed, {self._tokens} tokens in "
            f"{time.monotonic() - self._began:.1f} s ({self._speed():.1f} tokens/s)"
        )


def _estimate(files: JobFiles, opened: Bundle, settings: Settings, options: Options, **asked: Any) -> None:
    from frcli.decode.engine import Engine
    from frcli.jobs.estimate import estimate

    with ui.opening(opened.name):
        engine = Engine(opened, options)
    with engine, ui.working("counting tokens"):
        found = estimate(files, engine, settings, **asked)
    ui.pairs(
        {
            "rows": f"{found.rows}",
            "refused": f"{found.refused}" + (f" ({found.reason})" if found.reason else ""),
            "prompts": f"{found.prompt_tokens} tokens",
            "answers": f"at most {found.answer_tokens} tokens",
            "speed": f"{found.prompt_speed:.0f} tokens/s read, {found.answer_speed:.1f} tokens/s written",
            "time": f"at most {datetime.timedelta(seconds=round(found.seconds))}",
        }
    )


def sequences(parallel: str) -> int:
    """The number of rows to answer at once that ``--parallel`` asks for, 0 for as many as fit."""
    if parallel == AUTO:
        return 0
    if parallel.isascii() and parallel.isdigit() and 1 <= int(parallel) <= _MOST:
        return int(parallel)
    raise UsageError(f"parallel is {parallel!r}", f"it is {AUTO} or a number from 1 to {_MOST}")
