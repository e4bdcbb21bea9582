"""What Tab completes: commands, and what may stand behind each of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from frcli.chat.commands.settings import SETTABLE
from frcli.chat.commands.table import COMMANDS
from frcli.chat.session import Session
from frcli.config import KINDS, SWITCH

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer


def make_completer(session: Session) -> Completer:
    """Completes the names of commands, settings, experts, conversations and files."""
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        """See :func:`make_completer`."""

        def __init__(self) -> None:
            self._paths = PathCompleter(expanduser=True)

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            before = document.text_before_cursor
            if not before.startswith("/") or "\n" in before:
                return
            name, space, rest = before[1:].partition(" ")
            if not space:
                yield from _matching(name, COMMANDS)
                return
            command = COMMANDS.get(name)
            if command is None:
                return
            rest = rest.lstrip()
            words = command.words(session)
            if name == "set" and " " in rest:
                setting, _, rest = rest.partition(" ")
                switch = setting in SETTABLE and KINDS[setting] is SWITCH
                words = ("on", "off", "default") if switch else ("default",)
            word = rest.rpartition(" ")[2]
            yield from _matching(word, words)
            if command.files:
                yield from self._paths.get_completions(Document(rest), complete_event)

    def _matching(word: str, names: Iterable[str]) -> Iterable[Completion]:
        return [Completion(name, start_position=-len(word)) for name in names if name.startswith(word)]

    return Commands()
