"""What a slash command is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from frcli.chat.session import Session


class Action(Enum):
    """What the chat does after a command."""

    GO_ON = "go on"
    ANSWER = "answer"
    EDIT = "edit"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command says, and what the chat does next: for ``EDIT``, let the user edit ``draft`` and ask that."""

    text: str = ""
    action: Action = Action.GO_ON
    draft: str = ""


def _nothing(session: Session) -> Iterable[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: how it is called, what it does in a line, the function that does it, and what more there is to
    say about it, with examples. ``words`` are what may stand behind it; ``files`` says that it may be a path.
    """

    usage: str
    about: str
    run: Callable[[Session, str], Reply]
    more: str = ""
    words: Callable[[Session], Iterable[str]] = _nothing
    files: bool = False


def near(word: str, names: Iterable[str], otherwise: str) -> str:
    """A hint for a name that does not exist: one that is like it, or what to do otherwise."""
    found = difflib.get_close_matches(word, list(names), 1)
    return f"did you mean {found[0]}?" if found else otherwise


def short(text: str, most: int = 60) -> str:
    """The text on one line, cut where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def lines(*parts: str) -> str:
    """The parts that say something, a line each."""
    return "\n".join(part for part in parts if part)


def columns(rows: Iterable[tuple[str, str]]) -> str:
    """Rows of two cells, the second one aligned."""
    rows = list(rows)
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:<{width}}  {right}".rstrip() for left, right in rows)
