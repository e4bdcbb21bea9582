"""Line editing: history, messages of several lines, an editor of the user's choice."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frcli.chat.completion import make_completer
from frcli.chat.session import Session
from frcli.chat.store import data_folder
from frcli.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

QUOTES = '"""'
PROMPT, MORE = ">>> ", "... "
_EDITORS = ("vi", "nano", "emacs", "notepad")  # where neither VISUAL nor EDITOR says one
_REMEMBERED = 20_000  # characters: a longer message was pasted, and is no line to come back to


@dataclass(frozen=True, slots=True)
class _ToEdit:
    """The user wants to go on with this text in an editor."""

    text: str


class LineEditor:
    """Reads messages at a terminal; ``tools`` are prompt_toolkit's ``input`` and ``output``, given in tests."""

    def __init__(self, session: Session, **tools: Any) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.output import create_output
        from prompt_toolkit.styles import Style

        if "output" not in tools:
            tools["output"] = create_output(always_prefer_tty=True)  # answers may go to a file, the prompt never
        kept = session.settings.history
        self._chat = session
        self._session: PromptSession[Any] = PromptSession(
            history=open_history(data_folder() / "history") if kept else InMemoryHistory(),
            completer=make_completer(session),
            complete_while_typing=False,
            key_bindings=_bindings(),
            enable_open_in_editor=False,
            multiline=Condition(lambda: quotes_are_open(self._session.default_buffer.text)),
            prompt_continuation=MORE,
            style=Style.from_dict({"bottom-toolbar": "noreverse ansibrightblack"}),
            **tools,
        )

    def __call__(self) -> str:
        """The next message; at an empty line Ctrl-D raises ``EOFError`` and Ctrl-C ``KeyboardInterrupt``."""
        text: Any = ""
        while isinstance(text := self._line(str(text)), _ToEdit):
            try:
                text = self.edit(text.text).rstrip("\n")
            except UsageError as error:
                print(error, file=self._session.output)
        return without_quotes(text)

    def edit(self, text: str) -> str:
        """The text as it is when the user leaves the editor; see :func:`edit`."""
        return edit(text)

    def _line(self, begun: str) -> Any:
        from prompt_toolkit.formatted_text import FormattedText

        def placeholder() -> FormattedText:
            shown = not self._session.app.is_done  # it must not stay behind on the screen
            return FormattedText([("ansibrightblack", "Say something (/help for help)")] if shown else [])

        self._session.app.erase_when_done = False
        return self._session.prompt(
            PROMPT, default=begun, placeholder=placeholder, bottom_toolbar=lambda: f" {self._chat.line()}"
        )


def quotes_are_open(text: str) -> bool:
    """Whether a message between triple quotes has begun and not ended."""
    return text.lstrip().startswith(QUOTES) and QUOTES not in text.lstrip().removeprefix(QUOTES)


def without_quotes(text: str) -> str:
    """The message without the triple quotes around it, if it has them."""
    if not text.lstrip().startswith(QUOTES):
        return text
    inner, _, rest = text.lstrip().removeprefix(QUOTES).partition(QUOTES)
    return (inner + rest).strip("\n")


def edit(text: str) -> str:
    """The text as it is when the user leaves the editor that ``$VISUAL`` or ``$EDITOR`` names.

    Ctrl-C is the editor's alone meanwhile. Raises ``UsageError`` when there is no editor or it fails.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, _EDITORS), "")
    if not command:
        raise UsageError("there is no editor", "set EDITOR to one")
    with tempfile.TemporaryDirectory(prefix="frcli-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        try:
            with _no_interrupt():
                done = subprocess.run([*shlex.split(command), str(path)])
            edited = path.read_text(encoding="utf-8-sig", errors="replace")
        except (OSError, ValueError) as error:
            raise UsageError(f"the editor {command} cannot be run: {error}", "set EDITOR to another one") from None
    if done.returncode:
        raise UsageError(f"the editor {command} ended with {done.returncode}", "nothing was changed")
    return edited


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    # A handler, and not SIG_IGN, which the editor would inherit.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def open_history(path: Path) -> History:
    """The history in the file, which only its owner can read; in memory where the file cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class OwnHistory(FileHistory):
        """A history file whose disk may become full: that must not end a chat."""

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                if len(string) <= _REMEMBERED:
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

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-x", "c-e")
    def _(event: KeyPressEvent) -> None:
        event.app.erase_when_done = True  # the text comes again with the next prompt
        event.app.exit(result=_ToEdit(event.current_buffer.text))

    return bindings
