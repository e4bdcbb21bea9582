"""The commands of a page: what a reader would type, in order.

A page is Markdown, or a Python file whose docstrings show how it is called. Its commands are

    all lines of ```sh and ```bash blocks,
    the lines behind ``$ `` in ```console blocks (and those behind ``> `` that continue them),
    the lines of indented blocks that begin with the name of a program of ``PROGRAMS``.

Bash says where a command ends: at a line's end, unless a quote, a loop, a here-document or a backslash goes on. The
line ``<!-- exit: N -->`` right above a block says that its commands end with this code, and not with 0.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SHELL, CONSOLE = ("sh", "bash", "shell"), "console"
PROGRAMS = ("frcli", "python", "lm_eval", "make", "pip", "sh", "hf")
_FENCE = re.compile(r"(?P<margin> *)(?P<marks>```+|~~~+) *(?P<language>[\w-]*)")
_EXIT = re.compile(r" *<!-- exit: (\d+) -->")
_INDENTED = re.compile(rf" {{4,}}(?:{'|'.join(PROGRAMS)}) ")
_INLINE = re.compile(r"(?<!`)`(frcli [^`]+)`(?!`)")


@dataclass(frozen=True, slots=True)
class Command:
    """A command, the page's line in which it begins, and the exit code that it is to have."""

    line: int
    text: str
    exit: int = 0


@dataclass(frozen=True, slots=True)
class _Block:
    line: int
    language: str  # of a fenced block; "" for an indented one
    lines: tuple[str, ...]
    exit: int


def find_pages(root: Path) -> list[Path]:
    """The pages whose commands are run, in order."""
    found = [root / "README.md", root / "benchmarks" / "README.md"]
    for folder, pattern in (("docs", "*.md"), ("models", "*.md"), ("examples", "*.py"), ("examples", "*.md")):
        found += sorted((root / folder).rglob(pattern))
    return [page for page in found if page != root / "docs" / "reference.md"]  # it has a test of its own


def find_commands(text: str) -> list[Command]:
    """The commands of a page, in order; ``ValueError`` names the line of one that bash cannot read."""
    commands = []
    for block in _blocks(text):
        for line, command in _split(block.line, block.lines):
            commands.append(Command(line, command, block.exit))
    return commands


def find_inline(text: str) -> list[tuple[int, str]]:
    """What is said of frcli's commands in sentences: line and text of each ```frcli ...``."""
    found = []
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        if fence := _FENCE.match(line):
            inside = _toggled(inside, fence)
        elif not inside:
            found += [(number, match[1].replace("\\|", "|")) for match in _INLINE.finditer(line)]
    return found


def _toggled(inside: str, fence: re.Match[str]) -> str:
    """The marks of the fenced block that we are in behind this line, or nothing."""
    if not inside:
        return fence["marks"]
    return "" if fence["marks"].startswith(inside) and not fence["language"] else inside


def _blocks(text: str) -> Iterator[_Block]:
    lines = text.splitlines()
    number, exit_code = 0, 0
    while number < len(lines):
        first, line = number, lines[number]
        number += 1
        if fence := _FENCE.match(line):
            inside = fence["marks"]
            while number < len(lines) and inside:
                if end := _FENCE.match(lines[number]):
                    inside = _toggled(inside, end)
                number += 1
            body = [each.removeprefix(fence["margin"]) for each in lines[first + 1 : number - 1]]
            if fence["language"] in SHELL:
                yield _Block(first + 2, fence["language"], tuple(body), exit_code)
            elif fence["language"] == CONSOLE:
                yield _Block(first + 2, CONSOLE, tuple(_typed(body)), exit_code)
        elif line.startswith("    ") and (first == 0 or not lines[first - 1].strip() or _EXIT.match(lines[first - 1])):
            while number < len(lines) and lines[number].startswith("    "):
                number += 1
            yield _Block(first + 1, "", tuple(_called(lines[first:number])), exit_code)
        # What is said of the exit code holds for the block below it, with or without an empty line between.
        if said := _EXIT.match(line):
            exit_code = int(said[1])
        elif line.strip():
            exit_code = 0


def _typed(lines: Sequence[str]) -> Iterator[str]:
    """What was typed of a terminal's lines; empty lines stand for the rest, so that numbers stay."""
    typed = False
    for line in lines:
        typed = line.startswith("$ ") or (typed and line.startswith("> "))
        yield line[2:] if typed else ""


def _called(lines: Sequence[str]) -> Iterator[str]:
    """The commands of an indented block; empty lines stand for the rest."""
    goes_on = False
    for line in lines:
        command = goes_on or _INDENTED.match(line)
        goes_on = bool(command) and line.endswith("\\")
        yield line[4:] if command else ""


def _split(first: int, lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The block's commands and the lines in which they begin."""
    gathered: list[str] = []
    for number, line in enumerate(lines, first):
        if not gathered and (not line.strip() or line.lstrip().startswith("#")):
            continue
        gathered.append(line)
        text = "\n".join(gathered)
        if not line.endswith("\\") and _is_whole(text):
            yield number - len(gathered) + 1, text
            gathered = []
    if gathered:
        raise ValueError(f"line {first + len(lines) - len(gathered)}: bash cannot read {gathered[0]!r}")


@cache
def _is_whole(text: str) -> bool:
    """Whether bash reads this as commands that end here; a here-document without its end is only warned of."""
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    return read.returncode == 0 and not read.stderr
