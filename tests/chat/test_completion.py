"""What Tab completes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from frcli.chat.commands.settings import SETTABLE
from frcli.chat.completion import make_completer
from frcli.chat.session import Session
from frcli.chat.store import Store


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        ("/re", ["regen", "read"]),
        ("/set tempe", ["temperature"]),
        ("/set d", [name for name in SETTABLE if name[0] == "d"]),
        ("/set markdown o", ["on", "off"]),
        ("/set temperature d", ["default"]),
        ("/force ", ["math", "code", "none"]),
        ("/ban math c", ["code"]),
        ("/help un", ["undo"]),
        ("/show s", ["settings", "system"]),
        ("/load hol", ["holidays"]),
        ("/nonsense a", []),
        ("re", []),
        ("/re\n", []),
    ],
)
def test_what_may_stand_there(
    scripted: Callable[..., Session], tmp_path: Path, text: str, completed: list[str]
) -> None:
    (tmp_path / "holidays.json").touch()
    session = scripted(store=Store(tmp_path))
    found = list(make_completer(session).get_completions(Document(text), CompleteEvent()))
    assert [completion.text for completion in found] == completed
    assert all((text[: len(text) + c.start_position] + c.text).startswith(text) for c in found)


def test_files(scripted: Callable[..., Session], tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").touch()
    completer = make_completer(scripted())
    for command in ("read", "export", "load", "trace"):
        found = completer.get_completions(Document(f"/{command} {tmp_path}/my n"), CompleteEvent())
        assert [completion.text for completion in found] == ["otes.txt"]
