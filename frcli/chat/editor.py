"""Line editing: history, several lines between triple quotes, completion of slash commands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frcli.chat.commands import COMMANDS, SETTABLE

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

QUOTES = '"""'
PROMPT, MORE = ">>> ", "... "


def history_file() -> Path:
    """Where what the user typed is kept, in the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("frcli", appauthor=False) / "history"


def read_message(read_line: Callable[[str], str]) -> str:
    """A message: one line, or all lines between triple quotes; ``read_line`` is given the prompt to show."""
    line = read_line(PROMPT)
    if not line.lstrip().startswith(QUOTES):
        return line
    lines = [line.lstrip().removeprefix(QUOTES)]
    while QUOTES not in lines[-1]:
        lines.append(read_line(MORE))
    end, _, rest = lines[-1].partition(QUOTES)
    lines[-1] = end + rest
    return "\n".join(lines).strip("\n")


class LineEditor:
    """Reads messages at a terminal; ``tools`` are prompt_toolkit's ``input`` and ``output``, given in tests."""

    def __init__(self, **tools: Any) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output

        if "output" not in tools:
            tools["output"] = create_output(always_prefer_tty=True)  # answers may go to a file, the prompt never
        self._session: PromptSession[str] = PromptSession(
            history=open_history(history_file()),
            completer=make_completer(),
            complete_while_typing=False,
            key_bindings=_bindings(),
            enable_open_in_editor=False,
            **tools,
        )

    def __call__(self) -> str:
        """The next message; at an empty line Ctrl-D raises ``EOFError`` and Ctrl-C ``KeyboardInterrupt``."""
        return read_message(self._line)

    def _line(self, prompt: str) -> str:
        from prompt_toolkit.formatted_text import FormattedText

        def placeholder() -> FormattedText:
            shown = prompt == PROMPT and not self._session.app.is_done  # it must not stay behind on the screen
            return FormattedText([("ansibrightblack", "Say something (/help for help)")] if shown else [])

        return self._session.prompt(prompt, placeholder=placeholder)


def open_history(path: Path) -> History:
    """The history in the file, which only its owner can read; in memory where the file cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class OwnHistory(FileHistory):
        """A history file whose disk may become full: that must not end a chat."""

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return OwnHistory(str(path))


def _bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("c-c")
    @bindings.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    return bindings


def make_completer() -> Completer:
    """Completes the names of commands and, behind ``/set``, of settings."""
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Commands(Completer):
        """See :func:`make_completer`."""

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            before = document.text_before_cursor
            if before.startswith("/set "):
                word, names = before.removeprefix("/set "), list(SETTABLE)
            elif before.startswith("/"):
                word, names = before[1:], list(COMMANDS)
            else:
                return
            yield from (Completion(name, start_position=-len(word)) for name in names if name.startswith(word))

    return Commands()
