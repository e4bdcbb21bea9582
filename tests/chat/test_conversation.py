"""Turns: what a model is shown of them."""

from __future__ import annotations

import pytest

from frcli.chat.conversation import Conversation
from frcli.errors import UsageError


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"][0], message["content"]) for message in conversation.messages()]


def test_turns_under_a_system_prompt() -> None:
    conversation = Conversation("Be brief.")
    conversation.ask("one")
    conversation.answered("1")
    conversation.ask("two")
    assert said(conversation) == [("s", "Be brief."), ("u", "one"), ("a", "1"), ("u", "two")]


def test_an_empty_system_prompt_is_one() -> None:
    assert said(Conversation("")) == [("s", "")]


def test_a_stopped_answer_stays_and_is_marked() -> None:
    conversation = Conversation()
    conversation.ask("one")
    conversation.answered("half an", stopped=True)
    assert conversation.turns[0].stopped
    conversation.ask("two")
    assert said(conversation) == [("u", "one"), ("a", "half an"), ("u", "two")]


def test_a_question_without_an_answer_makes_way() -> None:
    conversation = Conversation()
    conversation.ask("stopped at once")
    conversation.answered("", stopped=True)
    assert conversation.turns[0].answer is None
    conversation.ask("failed")
    conversation.ask("two")
    assert said(conversation) == [("u", "two")]


def test_an_answer_may_be_empty() -> None:
    conversation = Conversation()
    conversation.ask("one")
    conversation.answered("")
    conversation.ask("two")
    assert said(conversation) == [("u", "one"), ("a", ""), ("u", "two")]


def test_asking_again_takes_the_answer_back() -> None:
    conversation = Conversation()
    with pytest.raises(UsageError, match="no answer to write again"):
        conversation.ask_again()
    conversation.ask("one")
    assert conversation.attempt == 0
    conversation.answered("1", stopped=True)
    conversation.ask_again()
    assert said(conversation) == [("u", "one")]
    assert conversation.attempt == 1
    assert not conversation.turns[0].stopped


def test_clear_keeps_the_system_prompt() -> None:
    conversation = Conversation("Be brief.")
    conversation.ask("one")
    conversation.clear()
    assert said(conversation) == [("s", "Be brief.")]


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_an_empty_message_is_refused(question: str) -> None:
    conversation = Conversation()
    with pytest.raises(UsageError, match="empty"):
        conversation.ask(question)
    assert conversation.turns == []
