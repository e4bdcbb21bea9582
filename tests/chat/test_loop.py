"""The loop of a chat, with a scripted engine, scripted input and real signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from frcli.chat.interrupt import StopFlag
from frcli.chat.loop import HOW_TO_LEAVE, converse
from frcli.chat.session import Session
from frcli.chat.store import Store, read_conversation
from frcli.decode.answer import Answer
from frcli.errors import FrcliError, ModelError
from frcli.tokens import Span

Make = Callable[..., Session]


class Transcript:
    """A view that keeps all in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.answers: list[Answer | None] = []

    def begin(self) -> None:
        self.lines.append("answer: ")

    def span(self, span: Span) -> None:
        self.lines[-1] += span.text

    def end(self, answer: Answer | None) -> None:
        self.answers.append(answer)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def complain(self, error: FrcliError) -> None:
        self.lines.append(f"error: {error}")


class Typist:
    """A keyboard on which these lines are typed (or exceptions raised) and Ctrl-D; in an editor a text becomes another
    by ``changes``.
    """

    def __init__(self, said: Sequence[str | type[BaseException]], changes: Mapping[str, str]) -> None:
        self._said: Iterator[Any] = iter([*said, EOFError])
        self._changes = changes

    def __call__(self) -> str:
        line = next(self._said)
        if isinstance(line, str):
            return line
        raise line

    def edit(self, text: str) -> str:
        return self._changes.get(text, text)


def talk(session: Session, *said: str | type[BaseException], changes: Mapping[str, str] | None = None) -> Transcript:
    """Chat with these lines (or exceptions of the reader), and leave with Ctrl-D."""
    view = Transcript()
    converse(session, Typist(said, changes or {}), view)
    return view


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_conversation(scripted: Make) -> None:
    session = scripted("Hello.", "Four.")
    view = talk(session, "hi", "", "  ", "2 + 2?")
    assert view.lines == ["answer: Hello.", "answer: Four."]
    assert session.engine.prompts == ["<u>hi", "<u>hi<a>Hello.<u>2 + 2?"]  # type: ignore[attr-defined]


def test_ctrl_d_and_exit_leave(scripted: Make) -> None:
    assert talk(scripted()).lines == []
    assert talk(scripted("never"), "/exit", "hi").lines == []


def test_ctrl_c_at_an_empty_prompt_says_how_to_leave(scripted: Make) -> None:
    assert talk(scripted("Hello."), KeyboardInterrupt, "hi").lines == [HOW_TO_LEAVE, "answer: Hello."]


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(scripted: Make) -> None:
    session = scripted("0123456789", "Next.")
    session.engine.on_token = lambda number: interrupt() if number == 3 else None  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGINT)
    view = talk(session, "count")
    assert view.lines == ["answer: 012"]
    assert view.answers[0] is not None
    assert view.answers[0].finish_reason == "cancelled"
    assert session.conversation.turns[0].stopped
    assert signal.getsignal(signal.SIGINT) is before
    session.engine.on_token = lambda number: None  # type: ignore[attr-defined]
    talk(session, "go on")
    assert session.engine.prompts[-1] == "<u>count<a>012<u>go on"  # type: ignore[attr-defined]


def test_a_second_ctrl_c_ends_the_program(scripted: Make) -> None:
    session = scripted("0123456789")

    def twice(number: int) -> None:
        interrupt()
        interrupt()

    session.engine.on_token = twice  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        talk(session, "count")
    assert signal.getsignal(signal.SIGINT) is before


def test_one_ctrl_c_in_each_of_two_answers_ends_nothing(scripted: Make) -> None:
    session = scripted("0123456789", "0123456789")
    session.engine.on_token = lambda number: interrupt() if number == 2 else None  # type: ignore[attr-defined]
    assert talk(session, "count", "/regen").lines == ["answer: 01", "answer: 01"]


def test_a_failed_turn_is_told_and_the_chat_goes_on(scripted: Make) -> None:
    session = scripted(ModelError("the model failed", "try again"), "Fine.", "Again.")
    view = talk(session, "one", "two", "/regen")
    assert view.lines == ["answer: ", "error: the model failed; try again", "answer: Fine.", "answer: Again."]
    assert view.answers[0] is None
    assert session.engine.prompts == ["<u>one", "<u>two", "<u>two"]  # type: ignore[attr-defined]


def test_a_failed_turn_can_be_asked_again(scripted: Make) -> None:
    view = talk(scripted(ModelError("the model failed"), "Fine."), "one", "/regen")
    assert view.lines[-1] == "answer: Fine."


def test_a_bug_is_not_swallowed(scripted: Make) -> None:
    with pytest.raises(IndexError):  # the script is empty
        talk(scripted(), "hi")


def test_a_full_context_is_told_with_the_way_out(scripted: Make) -> None:
    session = scripted("0123456789", "short", context=22)
    view = talk(session, "one", "and another one", "/clear", "new")
    assert "the conversation has 37 tokens and the context holds 22; /edit shortens the message, /undo" in view.lines[2]
    assert view.lines[-1] == "answer: short"


def test_a_message_that_is_too_long_for_any_context(scripted: Make) -> None:
    view = talk(scripted("x", context=20), "a message of thirty characters")
    assert "the message has 33 tokens and the context holds 20; shorten it" in view.lines[1]


def test_settings_change_between_answers(scripted: Make) -> None:
    view = talk(scripted("a", "b"), "one", "/set max_tokens 3", "/set temperature 9999", "two")
    assert (view.lines[0], view.lines[-1]) == ("answer: a", "answer: b")
    assert "error: temperature is 9999.0" in view.lines[2]


def test_the_last_question_is_edited_and_asked_again(scripted: Make) -> None:
    session = scripted("first", "second", "third")
    view = talk(session, "one", "two", "/edit", changes={"two": "2\n"})
    assert view.lines[-1] == "answer: third"
    assert session.engine.prompts[-1] == "<u>one<a>first<u>2"  # type: ignore[attr-defined]
    assert [turn.question for turn in session.conversation.turns] == ["one", "2"]


def test_an_edit_that_changes_nothing_asks_nothing(scripted: Make) -> None:
    session = scripted("first")
    assert talk(session, "one", "/edit").lines[-1] == "nothing was changed, so nothing is asked"
    assert [turn.answer for turn in session.conversation.turns] == ["first"]


def test_a_first_message_can_be_written_in_the_editor(scripted: Make) -> None:
    assert talk(scripted("Hello."), "/edit", changes={"": "hi"}).lines == ["answer: Hello."]
    assert talk(scripted(), "/edit", changes={"": " \n"}).lines == ["nothing was changed, so nothing is asked"]


def test_every_turn_is_on_disk_at_once(scripted: Make, tmp_path: Path) -> None:
    session = scripted("0123", "next", store=Store(tmp_path))
    (kept,) = [path for _ in talk(session, "one").lines for path in tmp_path.glob("*.json")]
    assert read_conversation(kept).turns[0].answer == "0123"
    talk(session, "two", "/undo")
    assert [turn.question for turn in read_conversation(kept).turns] == ["one"]
    assert list(tmp_path.iterdir()) == [kept]


def test_a_disk_that_cannot_be_written_is_told_once(scripted: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    view = talk(scripted("a", "b", store=Store(tmp_path / "file" / "sessions")), "one", "two")
    assert [line for line in view.lines if "not kept" in line] == [view.lines[1]]
    assert view.lines[-1] == "answer: b"


def test_a_stop_flag_outside_the_main_thread_takes_no_signals() -> None:
    import threading

    seen: list[bool] = []

    def work() -> None:
        with StopFlag() as flag:
            flag.stop()
            seen.append(flag())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
