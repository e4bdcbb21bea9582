"""The chat: read a line, do what it says, until the user leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from frcli.chat.commands import Action, is_command, run_command
from frcli.chat.interrupt import StopFlag
from frcli.chat.session import Session
from frcli.decode.answer import Answer
from frcli.errors import FrcliError
from frcli.tokens import Span

HOW_TO_LEAVE = "Ctrl-D or /exit leaves the chat"


class View(Protocol):
    """Where a chat appears."""

    def begin(self, *, show_experts: bool) -> None:
        """An answer was asked for."""

    def span(self, span: Span) -> None:
        """A piece of the answer."""

    def end(self, answer: Answer | None) -> None:
        """The answer is complete, or (None) it failed."""

    def say(self, text: str) -> None:
        """Something that is no part of an answer."""

    def complain(self, error: FrcliError) -> None:
        """Something that did not work."""


def converse(session: Session, read: Callable[[], str], view: View) -> None:
    """Chat until ``/exit`` or the end of input.

    ``read`` returns a message, or raises ``EOFError`` when the user leaves and ``KeyboardInterrupt`` for Ctrl-C at an
    empty line. Errors of a turn or a command are told and the chat goes on.
    """
    while True:
        try:
            line = read()
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
            else:
                session.conversation.ask(line)
            answer_turn(session, view)
        except FrcliError as error:
            view.complain(error)


def answer_turn(session: Session, view: View) -> Answer:
    """Write the answer to the last question; Ctrl-C ends the answer, a second one the program."""
    with StopFlag() as cancelled:
        answer: Answer | None = None
        view.begin(show_experts=session.settings.show_experts)
        try:
            writing = session.write(cancelled)
            for span in writing:
                view.span(span)
            answer = writing.answer
        finally:
            view.end(answer)
    assert answer is not None
    session.record(answer)
    return answer
