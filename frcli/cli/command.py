"""Commands whose help ends with examples, shown as they are written."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose epilog is its examples: lines of shell, where ``#`` says what the next line is for."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, not wrapped: a line that is broken is no command any more."""
        _write_examples(self, formatter)


class Group(TyperGroup):
    """A group of commands whose epilog is its examples, as that of :class:`Command`."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, not wrapped."""
        _write_examples(self, formatter)


def examples(command: Any) -> list[str]:
    """The lines of a command's examples."""
    return inspect.cleandoc(command.epilog or "").splitlines()


def _write_examples(command: Any, formatter: Any) -> None:
    if lines := examples(command):
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}".rstrip() + "\n" for line in lines))
