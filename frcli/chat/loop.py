"""The chat: read a line, do what it says, until the user leaves."""

from __future__ import annotations

from typing import Protocol

from frcli.chat.commands.command import Action
from frcli.chat.commands.table import is_command, run_command
from frcli.chat.interrupt import StopFlag
from frcli.chat.session import Session
from frcli.decode.answer import Answer
from frcli.errors import FrcliError
from frcli.tokens import Span

HOW_TO_LEAVE = "Ctrl-D or /exit leaves the chat"


class Keyboard(Protocol):
    """Where messages come from."""

    def __call__(self) -> str:
        """The next message; raises ``EOFError`` when the user leaves, and ``KeyboardInterrupt`` for Ctrl-C at an empty
        line.
        """

    def edit(self, text: str) -> str:
        """The text as the user changed it in an editor; raises ``UsageError`` when that cannot be."""


class View(Protocol):
    """Where a chat appears."""

    def begin(self) -> None:
        """An answer was asked for."""

    def span(self, span: Span) -> None:
        """A piece of the answer."""

    def end(self, answer: Answer | None) -> None:
        """The answer is complete, or (None) it failed."""

    def say(self, text: str) -> None:
        """Something that is no part of an answer."""

    def complain(self, error: FrcliError) -> None:
        """Something that did not work."""


def converse(session: Session, keyboard: Keyboard, view: View) -> None:
    """Chat until ``/exit`` or the end of input; errors of a turn or a command are told and the chat goes on."""
    while True:
        try:
            line = keyboard()
        except EOFError:
            return
        except KeyboardInterrupt:
            view.say(HOW_TO_LEAVE)
            continue
        if not line.strip():
            continue
        try:
            if is_command(line):
                reply = run_command(line, session)
                if reply.text:
                    view.say(reply.text)
                if reply.action is Action.LEAVE:
                    return
                if reply.action is Action.GO_ON:
                    continue
                if reply.action is Action.EDIT and not _edited(session, keyboard, view, reply.draft):
                    continue
            else:
                session.ask(line)
            answer_turn(session, view)
        except FrcliError as error:
            view.complain(error)


def _edited(session: Session, keyboard: Keyboard, view: View, draft: str) -> bool:
    """Whether the user made another question of the draft, which takes the last one's place."""
    text = keyboard.edit(draft).strip("\n")
    if not text.strip() or text == draft:
        view.say("nothing was changed, so nothing is asked")
        return False
    if draft:
        session.conversation.undo()
    session.ask(text)
    return True


def answer_turn(session: Session, view: View) -> Answer:
    """Write the answer to the last question and keep it; Ctrl-C ends the answer, a second one the program."""
    with StopFlag() as cancelled:
        answer: Answer | None = None
        view.begin()
        try:
            writing = session.write(cancelled)
            for span in writing:
                view.span(span)
            answer = writing.answer
        finally:
            view.end(answer)
        assert answer is not None
        session.record(answer)
        if told := session.keep():
            view.say(told)
    return answer
