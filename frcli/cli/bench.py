"""``frcli bench``: how fast a bundle runs, and what that is worth beside llama.cpp alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from frcli.cli import completion, ui
from frcli.cli.command import Group
from frcli.cli.options import MEMORY, Bundle, Force, with_settings
from frcli.config import Settings, read_settings
from frcli.files import save

RUN = "run"


class RunByDefault(Group):
    """A group whose command ``run`` need not be named, and whose help is that of ``run`` and the list of commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` in front, unless a command or the help is asked for."""
        if not args and ctx.resilient_parsing:  # a shell asks what may come here
            return list(super().parse_args(ctx, args))
        if not args or args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = [RUN, *args]
        return list(super().parse_args(ctx, args))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The commands, and what may come behind ``run``."""
        run = self.commands[RUN]
        within = run.make_context(RUN, [], parent=ctx, resilient_parsing=True)
        if incomplete.startswith("-"):
            return list(run.shell_complete(within, incomplete))
        bundle = next(parameter for parameter in run.params if parameter.name == "bundle")
        return [*super().shell_complete(ctx, incomplete), *bundle.shell_complete(within, incomplete)]

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Both ways to call it."""
        formatter.write_usage(ctx.command_path, "[OPTIONS] [BUNDLE]")
        formatter.write_usage(ctx.command_path, "plot [OPTIONS] TRACE", prefix="       ")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options of ``run``, then the commands."""
        parameters = self.commands[RUN].get_params(ctx)
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            own = [parameter for parameter in parameters if parameter.param_type_name == kind]
            with formatter.section(title):
                formatter.write_dl([record for p in own if (record := p.get_help_record(ctx)) is not None])
        self.format_commands(ctx, formatter)


app = typer.Typer(
    add_completion=False,
    cls=RunByDefault,
    help="Measure how fast a bundle runs: the fused system with and without drafts, many answers at once, each expert "
    "alone in llama.cpp, where the time and the memory go. Takes minutes; --quick takes less.",
    epilog="""
    # the shipped bundle on built-in prompts, in some minutes and in fewer
    frcli bench smollm2-quartet
    frcli bench smollm2-quartet --quick

    # on prompts of yours, greedily and drawn, beside llama.cpp's own program
    frcli bench smollm2-quartet --data gsm8k.jsonl@0:8 -t 0 -t 0.8 \\
        --llama-bench ./llama-bench

    # every token as a picture
    frcli bench smollm2-quartet --quick --trace trace.jsonl > result.md
    frcli bench plot trace.jsonl -o trace.svg
    """,
)
DEFAULTS = Settings()


@app.command(RUN, hidden=True)
@with_settings(("policy", "gamma", "sharp", "draft", "ctx", "threads", *MEMORY), DEFAULTS)
def run(
    bundle: Bundle = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="PATH[@START:STOP]", help="JSON lines of prompts; repeatable. Built-in ones if not given."
        ),
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="How often each is measured.")] = 5,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=2, help="Most tokens of an answer.")] = 128,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature",
            "-t",
            metavar="NUMBER",
            help="Repeatable: each is measured. [default: 0]",
            show_default=False,
        ),
    ] = None,
    sequences: Annotated[
        str, typer.Option("--sequences", metavar="N,N,...", help="Answers at once; empty: not measured.")
    ] = "1,4,16",
    ignore_end: Annotated[
        bool, typer.Option("--ignore-end", help="Ban the tokens that end an answer: each has as many as --tokens.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first prompt's draws.")] = 1,
    idle: Annotated[bool, typer.Option(help="Compare eight experts with two.")] = True,
    start: Annotated[bool, typer.Option("--start", help="Measure how long fresh processes take to start.")] = False,
    llama_bench: Annotated[
        Path | None, typer.Option("--llama-bench", metavar="PATH", help="Run this llama-bench on the base, too.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="2 repetitions of at most 32 tokens, 1 and 4 answers at once.")
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="md|json|jsonl|csv",
            help="Format of the results.",
            autocompletion=completion.one_of("md", "json", "jsonl", "csv"),
        ),
    ] = "md",
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write every token to this file, as JSON lines.")
    ] = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Measure a bundle."""
    settings = read_settings(DEFAULTS, {**flags, "bundle": bundle})

    from frcli.bench.plan import Plan, read_prompts
    from frcli.bench.report import FORMATS, render
    from frcli.bench.run import run as measure
    from frcli.bench.trace import write_trace
    from frcli.bundle import DEFAULT_BUNDLE, read_bundle
    from frcli.errors import OutputError, UsageError

    if form not in FORMATS:
        raise UsageError(f"there is no format {form!r}", f"the formats are {', '.join(FORMATS)}")
    plan = Plan(
        repetitions=min(repetitions, 2) if quick else repetitions,
        tokens=min(tokens, 32) if quick else tokens,
        temperatures=tuple(dict.fromkeys(temperature or (0.0,))),
        sequences=tuple(n for n in _numbers(sequences) if n <= 4 or not quick),
        draft=settings.draft,
        ignore_end=ignore_end,
        idle=idle,
        start=start,
        llama_bench=llama_bench,
        seed=seed,
    )
    plan.check()
    if trace is not None and trace.exists() and not force:
        raise OutputError(f"{trace} exists", "choose another name, or use --force to replace it")
    if trace is not None and not trace.parent.is_dir():
        raise OutputError(f"there is no folder {trace.parent}", "make it first")
    texts = read_prompts(data or ())
    opened = read_bundle(settings.bundle or DEFAULT_BUNDLE)
    # The bundle's context is for chats: what is measured takes as much as the prompts need.
    options = replace(settings.with_bundle(opened).options(), context=settings.ctx)
    with ui.Meter() as meter:
        document, measured = measure(
            opened, options, plan, texts, lambda phase, note, done, total: meter(phase, done, total or None, note)
        )
    ui.write(render(document, form))
    if trace is not None:  # last: a full disk must not cost the results
        ui.say(f"{trace}: {write_trace(trace, measured, plan)} tokens")


@app.command(
    epilog="""
    # write a trace, and draw it
    frcli bench smollm2-quartet --quick --trace trace.jsonl
    frcli bench plot trace.jsonl -o trace.svg

    # the routing of more prompts
    frcli bench plot trace.jsonl -o trace.svg --prompts 12
    """
)
def plot(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="File that --trace has written.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="SVG file to write.", show_default=False)],
    prompts: Annotated[int, typer.Option(min=1, help="Draw the routing of so many prompts.")] = 4,
    force: Force = False,
) -> None:
    """Draw a trace as SVG: what a token costs by part, and which expert wrote which token."""
    from frcli.bench.plot import draw
    from frcli.bench.trace import read_trace
    from frcli.errors import OutputError

    if out.exists() and not force:
        raise OutputError(f"{out} exists", "choose another name, or use --force to replace it")
    save(draw(read_trace(trace), prompts), out)
    ui.say(f"{out}: {ui.size(out.stat().st_size)}")


def _numbers(text: str) -> list[int]:
    from frcli.errors import UsageError

    try:
        return list(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise UsageError(f"--sequences {text} is not a list of numbers", "for example 1,4,16") from None
