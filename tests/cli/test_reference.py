"""Help that teaches: examples that are right, and the page that is made of all help."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from frcli.bundle import DEFAULT_BUNDLE, read_bundle
from frcli.cli import app as program
from frcli.cli.command import examples
from frcli.config import KINDS, Settings
from frcli.fusion.registry import make_policy

ROOT = Path(__file__).parents[2]
EXPERTS = ("general", "math", "code", "logic")
ONCE = {"debug", "verbose", "quiet", "help", "install_completion", "show_completion"}  # on the page, but in words
WIDTH = 78  # what is left of a terminal of 80 columns, as the rest of the help is wrapped


def commands() -> Iterator[tuple[str, Any]]:
    """Each command that a user sees, by its path."""
    yield "", typer.main.get_command(program.app)
    for name, entry in program.COMMANDS.items():
        command = program.load(name)
        yield name, command
        if entry.group:
            yield from ((f"{name} {below}", each) for below, each in command.commands.items() if not each.hidden)


COMMANDS = dict(commands())
EXAMPLES = {
    line
    for command in COMMANDS.values()
    for line in "\n".join(examples(command)).replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
}


def words(line: str) -> list[list[str]]:
    """The programs that a line of shell runs, each by its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True
    runs: list[list[str]] = [[]]
    for word in lexer:
        if word == "|":
            runs.append([])
        elif word == ">":
            next(lexer)
        else:
            runs[-1].append(word)
    return runs


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that these arguments call, and what it would be called with, by the real command line."""
    command = typer.main.get_command(program.app)
    context = command.make_context("frcli", list(arguments))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context.command_path, context.params


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_examples_that_fit_a_terminal(frcli: Callable[..., Any], path: str) -> None:
    shown = frcli(*path.split(), "--help").out.partition("\nExamples:\n")[2]
    lines = [line.removeprefix("  ") for line in shown.rstrip("\n").split("\n")]
    assert lines == examples(COMMANDS[path])  # as written: not wrapped, not joined
    assert max(map(len, shown.splitlines())) <= WIDTH
    own = [line for line in lines if f"frcli {path}".strip() in line]
    assert 2 <= len(own) <= 6


@pytest.mark.parametrize("line", sorted(EXAMPLES))
def test_an_example_is_a_command_line(line: str) -> None:
    called = [run[1:] for run in words(line) if run[0] == "frcli"]
    assert called
    for arguments in called:
        path, given = parsed(arguments)
        assert path.split()[1] == arguments[0]
        policies = given.get("policy") or ()
        for policy in [policies] if isinstance(policies, str) else policies:
            make_policy(policy, EXPERTS, gamma=1.0, sharp=False, roles={"router"})
        assert given.get("bundle") in (None, DEFAULT_BUNDLE, "./mine")
        if path in ("frcli chat", "frcli generate"):
            of_files = {"schema", "grammar_file"}
            flags = {name: given[name] for name in KINDS if given.get(name) and name not in of_files}
            Settings().with_values(flags)


def test_examples_name_experts_of_the_shipped_bundle() -> None:
    assert read_bundle(DEFAULT_BUNDLE).experts == EXPERTS


def test_the_page_says_what_the_help_says() -> None:
    """On another terminal, with settings of a user and another home."""
    environ = {**os.environ, "COLUMNS": "40", "FRCLI_THREADS": "3", "FRCLI_TEMPERATURE": "0.1", "HOME": "/nowhere"}
    environ |= {"FRCLI_MODELS": "/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "scripts/reference.py"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert done.stdout == page, "run scripts/reference.py --write"


def test_the_page_has_every_option_with_its_meaning() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for path, command in COMMANDS.items():
        part = page.partition(f"# `{f'frcli {path}'.strip()}`\n")[2].partition("\n## ")[0].partition("\n### ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in ONCE:
                assert all(f"`{name}`" in part for name in parameter.opts), (path, parameter.opts)
