"""Write docs/reference.md from the command line itself.

    python scripts/reference.py            # print the page
    python scripts/reference.py --write    # write it

The page says what ``--help`` says, whatever the terminal, the environment and the version of typer: nothing is laid out
by typer, and only what the commands declare is read.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import typer

from frcli.cli import app as program
from frcli.cli.bench import RUN, RunByDefault
from frcli.cli.command import examples

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
EVERYWHERE = ("debug", "verbose", "quiet", "help")
TYPERS = ("install_completion", "show_completion", "help")  # declared by typer, in words that change with its version
INTRODUCTION = """\
# Commands

What `frcli --help` and the help of each command say, on one page. It is made by `scripts/reference.py --write`: change
the commands, not the page.

`--debug`, `-v`, `-q` and `-h` (`--help`) may stand behind every command, too. `...` behind an option means that it may
be given several times.

What `chat`, `generate` and `bench` decode with can be set once for all: as `max-tokens = 200` in the configuration file
(`frcli doctor` says where it is), or as `FRCLI_MAX_TOKENS=200` in the environment. An option wins over the environment,
and that over the file.

Exit codes: 0 all went well, 1 something failed, 2 the command line is wrong, 3 some rows of a job failed, 130 stopped.

`frcli --install-completion` turns on completion in bash, zsh, fish and PowerShell, from the next start of the shell on:
commands, options, bundles, policies with the experts of the bundle, and files. `frcli --show-completion` shows what it
installs.
"""
_NAMES = ((bool, ""), (int, "N"), (float, "NUMBER"), (Path, "PATH"), (str, "TEXT"))


def page() -> str:
    """The whole page, as Markdown."""
    root = typer.main.get_command(program.app)
    commands = list(_commands())
    parts = [INTRODUCTION, _contents(commands)]
    parts += ["## `frcli`\n", *_body(root, "frcli", "[OPTIONS] COMMAND [ARGS]...", _table(root, "option", TYPERS))]
    for path, command, shown in commands:
        parts.append(f"{'##' if path.count(' ') == 1 else '###'} `{path}`\n")
        tables = [_table(shown, "argument"), _table(shown, "option")]
        parts += _body(command, path, _usage(command, shown), *tables)
    return "\n".join(part for part in parts if part)


def _commands() -> Iterator[tuple[str, Any, Any]]:
    """Each command's path, the command, and the one whose arguments and options it has."""
    for name, entry in program.COMMANDS.items():
        command = program.load(name)
        runs = isinstance(command, RunByDefault)
        yield f"frcli {name}", command, command.commands[RUN] if runs else command
        if entry.group:
            for below, each in command.commands.items():
                if not each.hidden:
                    yield f"frcli {name} {below}", each, each


def _contents(commands: Sequence[tuple[str, Any, Any]]) -> str:
    rows = []
    for path, command, _ in commands:
        first = _paragraphs(command)[0].partition(". ")[0].rstrip(".")
        rows.append(f"| [`{path}`](#{path.replace(' ', '-')}) | {_plain(first)} |\n")
    return f"| command | |\n|---|---|\n{''.join(rows)}"


def _body(command: Any, path: str, usage: str, *tables: str) -> list[str]:
    """What stands below a command's heading."""
    lines = examples(command)
    return [
        *(f"{_plain(paragraph)}\n" for paragraph in _paragraphs(command)),
        f"    {path} {usage}\n",
        *tables,
        "\n".join(["```sh", *lines, "```", ""]) if lines else "",
    ]


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(text.split()) for text in inspect.cleandoc(command.help or "").split("\n\n")]


def _usage(command: Any, shown: Any) -> str:
    if shown is command and hasattr(command, "commands"):
        return "COMMAND [ARGS]..."
    arguments = [p for p in shown.params if p.param_type_name == "argument"]
    return " ".join(["[OPTIONS]", *(_value(shown, p) if p.required else f"[{_value(shown, p)}]" for p in arguments)])


def _table(command: Any, kind: str, left_out: Sequence[str] = EVERYWHERE) -> str:
    """The command's parameters of a kind, ``argument`` or ``option``."""
    rows = [
        _row(command, parameter)
        for parameter in command.params
        if parameter.param_type_name == kind and parameter.name not in left_out
    ]
    return f"| {kind} | values | default | meaning |\n|---|---|---|---|\n{''.join(rows)}" if rows else ""


def _row(command: Any, parameter: Any) -> str:
    about, marker, default = (parameter.help or "").partition(" [default: ")
    default = default.removesuffix("]") if marker else _default(parameter)
    value = _code(_value(command, parameter))
    if parameter.param_type_name == "argument":
        names, values = value, ""
    else:
        names = ", ".join(map(_code, sorted([*parameter.opts, *parameter.secondary_opts], key=len)))
        values = ", ".join(filter(None, [value, _range(command, parameter)]))
    cells = (
        names + (" ..." if parameter.multiple else ""),
        values,
        "*required*" if parameter.required else _code(default),
        _plain(about),
    )
    return f"| {' | '.join(cells)} |\n"


def _declared(command: Any, parameter: Any) -> tuple[Any, Any]:
    """The type of a parameter and what was said of it, as its function declares them."""
    known = inspect.signature(command.callback).parameters.get(parameter.name) if command.callback else None
    return get_args(known.annotation) if known is not None and get_args(known.annotation) else (bool, None)


def _value(command: Any, parameter: Any) -> str:
    """How the value is called: as in the help, or else by its type; empty for switches."""
    if parameter.metavar:
        return str(parameter.metavar)
    declared = _declared(command, parameter)[0]
    types = {declared, *get_args(declared)}
    types |= {inner for each in types for inner in get_args(each)}
    return next(name for type_, name in _NAMES if type_ in types)


def _range(command: Any, parameter: Any) -> str:
    said = _declared(command, parameter)[1]
    low, high = getattr(said, "min", None), getattr(said, "max", None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"{low} or more" if low is not None else f"at most {high}" if high is not None else ""


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value == "" or (value is False and not parameter.secondary_opts):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\`*<|":
        text = text.replace(character, f"\\{character}")
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    elif sys.argv[1:]:
        sys.exit("usage: python scripts/reference.py [--write]")
    else:
        sys.stdout.write(page())
