"""The entry point. A command's module is imported only when that command runs or explains itself."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from frcli.cli import completion
from frcli.cli.command import Command, Group
from frcli.cli.ui import complain, manner
from frcli.errors import FrcliError, Interrupted


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: the module whose ``app`` it is, its line in the help, and whether it has commands of its own."""

    module: str
    about: str
    group: bool = False


COMMANDS = {
    "chat": Entry("frcli.cli.chat", "Talk with a bundle, or get one answer with -p."),
    "generate": Entry("frcli.cli.generate", "Answer a file of prompts."),
    "convert": Entry("frcli.cli.convert", "Turn adapters and routers into what frcli runs.", group=True),
    "train": Entry("frcli.cli.train", "Train LoRA experts and routers.", group=True),
    "eval": Entry("frcli.cli.eval", "Compare experts and policies on known answers.", group=True),
    "bench": Entry("frcli.cli.bench", "Measure speed, cost and memory of a bundle.", group=True),
    "models": Entry("frcli.cli.models", "List, show and fetch bundles.", group=True),
    "doctor": Entry("frcli.cli.doctor", "Check this machine, the installation and a bundle."),
}


class Commands(Group):
    """All commands by name, each a placeholder with its line of help until it is called."""

    def __init__(self, **attrs: Any) -> None:
        attrs["commands"] = {
            name: TyperCommand(name, help=entry.about, short_help=entry.about) for name, entry in COMMANDS.items()
        }
        super().__init__(**attrs)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the table."""
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The real command in place of its placeholder."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends it like every other error that is no bug."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("stopped") from None


def load(name: str) -> Any:
    """The command ``name``, its module imported."""
    from frcli.cli.options import with_manner

    entry = COMMANDS[name]
    part: typer.Typer = importlib.import_module(entry.module).app
    # Plain help: it starts faster, and a file or a screen reader gets the same text.
    part.rich_markup_mode = None
    for registered in part.registered_commands:
        registered.cls = Command
        if registered.callback is not None and not hasattr(registered.callback, "with_manner"):
            registered.callback = with_manner(registered.callback)
            registered.callback.with_manner = True  # type: ignore[attr-defined]
    command = typer.main.get_group(part) if entry.group else typer.main.get_command(part)
    command.name = name
    return command


def _version(wanted: bool) -> None:
    if wanted:
        from frcli import __version__

        typer.echo(f"frcli {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="""
    # fetch the shipped bundle and talk with it
    frcli models pull smollm2-quartet
    frcli chat smollm2-quartet

    # one answer, and a file of prompts
    frcli chat -p "What is 17 * 23?"
    frcli generate prompts.jsonl -o answers.jsonl

    # what this machine has, and whether the bundle fits
    frcli doctor
    """,
)


@app.callback()
def frcli(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr, llama.cpp's messages too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no statistics.")] = False,
) -> None:
    """Several specialist language models on one laptop write one answer together."""
    from frcli.cli.options import set_manner

    set_manner(debug=debug, verbose=verbose, quiet=quiet)


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; nothing is raised. A traceback is shown only with ``--debug``."""
    manner.debug = manner.verbose = manner.quiet = False
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end an answer
    try:
        typer.main.get_command(app).main(args=list(arguments), prog_name="frcli")
        sys.stdout.flush()
    except SystemExit as leave:
        code = leave.code
        return code if isinstance(code, int) else 0 if code is None else 1
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except BrokenPipeError:
        return 1
    except FrcliError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            return 1
        _trace()
        complain(error)
        return error.exit_code
    except Exception as error:  # a bug: nothing that frcli raises on purpose
        _trace()
        what = " ".join(f"{type(error).__name__}: {error}".split())
        complain(f"this is a bug: {what}; run it again with --debug and report what it shows")
        return 1
    return 0


def _trace() -> None:
    if manner.debug:
        import traceback

        traceback.print_exc()


def main() -> None:
    """The ``frcli`` program."""
    code = completion.answer(run) if completion.asked() else run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        # Whoever read it is gone, or the disk is full, which was told; Python would tell it again at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    sys.exit(code)
