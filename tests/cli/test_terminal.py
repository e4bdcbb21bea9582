"""``frcli chat`` as a person sees it: the real program on a pseudo-terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from frcli.bundle import Bundle

Open = Callable[..., Any]
CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"
COLOUR = re.compile(r"\x1b\[3[1-6]m")
# A grammar that never ends keeps the answer going for as long as the test needs it.
BANNED = ("--logit-bias", "0=-inf", "--logit-bias", "2=-inf")  # the tokens that end an answer
# A minute's worth of a tiny model's tokens: nobody's Ctrl-C comes later.
ENDLESS = ("--grammar", 'root ::= ("la ")*', *BANNED, "-n", "0", "--ctx", "60000", "--policy", "expert:general")

pytestmark = pytest.mark.usefixtures("trio")


def prompt(chat: Any) -> None:
    chat.wait_for("Say something")


def say(chat: Any, text: str) -> None:
    prompt(chat)
    chat.type(text + ENTER)


def test_an_answer_its_line_and_ctrl_d(terminal: Open) -> None:
    chat = terminal("chat", "trio", "-n", "8", "-t", "0")
    chat.wait_for("trio: general, math, code · fusionroute, gamma 0.5 · context 256")
    say(chat, "hello")
    chat.wait_for("8 tokens")
    chat.wait_for("cut off at --max-tokens 8")
    prompt(chat)
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(terminal: Open) -> None:
    chat = terminal("chat", "trio", *ENDLESS)
    say(chat, "sing")
    chat.wait_for("la la la")
    chat.type(CTRL_C)
    chat.wait_for("stopped")
    say(chat, "/set grammar none")
    chat.wait_for("grammar")
    say(chat, "/set max_tokens 5")
    say(chat, "more")
    chat.wait_for("5 tokens")
    say(chat, "/stats")
    chat.wait_for("answers  2")
    say(chat, "/exit")
    assert chat.end() == 0


def test_keys_that_are_pressed_meanwhile_wait_for_the_prompt(terminal: Open) -> None:
    chat = terminal("chat", "trio", *ENDLESS, "-n", "400")
    say(chat, "sing")
    chat.wait_for("la la la")
    chat.type("/clear\n")
    assert "/clear" not in chat.wait_for("400 tokens")
    chat.wait_for("a new conversation begins")
    prompt(chat)
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_ctrl_c_at_an_empty_prompt_says_how_to_leave(terminal: Open) -> None:
    chat = terminal("chat", "trio")
    prompt(chat)
    chat.type(CTRL_C)
    chat.wait_for("Ctrl-D or /exit leaves the chat")
    prompt(chat)
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_regen_writes_the_answer_again(terminal: Open) -> None:
    chat = terminal("chat", "trio", "-n", "5", "--seed", "3", "-t", "1.5")
    say(chat, "hello")
    chat.wait_for("5 tokens")
    say(chat, "/regen")
    chat.wait_for("5 tokens")
    say(chat, "/stats")
    chat.wait_for("answers  2")
    say(chat, "/bye")
    assert chat.end() == 0


def test_policies_change_while_the_models_stay(terminal: Open) -> None:
    chat = terminal("chat", "trio", "-n", "6", "-t", "0", "--policy", "expert:math")
    say(chat, "hello")
    chat.wait_for("math 100%")
    say(chat, "/set policy expert:code")
    say(chat, "/regen")
    chat.wait_for("code 100%")
    say(chat, "/set policy vote")
    chat.wait_for("there is no policy 'vote'")
    say(chat, "/set policy fusionroute")
    say(chat, "/regen")
    chat.wait_for("6 tokens")
    prompt(chat)
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_mistakes_are_told_and_the_chat_goes_on(terminal: Open) -> None:
    chat = terminal("chat", "trio", "-n", "3", "-t", "0", "--ctx", "64")
    say(chat, "/nonsense")
    chat.wait_for("there is no command /nonsense")
    say(chat, "/set temperature hot")
    chat.wait_for("temperature is 'hot'; it must be a number")
    say(chat, "far too long " * 40)
    chat.wait_for("the message has")
    chat.wait_for("the context holds 64; shorten it")
    say(chat, "short")
    chat.wait_for("3 tokens")
    prompt(chat)
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_several_lines_between_quotes(terminal: Open) -> None:
    chat = terminal("chat", "trio", "-n", "3", "-t", "0")
    say(chat, '"""one')
    chat.wait_for("...")
    chat.type('two"""' + ENTER)
    chat.wait_for("3 tokens")
    prompt(chat)
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_colours_and_no_color(terminal: Open) -> None:
    coloured = terminal("chat", "trio", "-p", "hello", "--show-experts", "-n", "8")
    assert coloured.end() == 0, coloured.seen
    assert "■ math" in coloured.seen
    assert COLOUR.search(coloured.seen)
    plain = terminal("chat", "trio", "-p", "hello", "--show-experts", "-n", "8", env={"NO_COLOR": "1"})
    assert plain.end() == 0
    assert "[math]" in plain.seen
    assert not COLOUR.search(plain.seen)


def test_json_needs_a_prompt(terminal: Open) -> None:
    chat = terminal("chat", "trio", "--json")
    assert chat.end() == 2
    assert "--json is for one answer" in chat.seen


def test_ctrl_c_ends_a_single_answer_with_130(terminal: Open) -> None:
    chat = terminal("chat", "trio", "-p", "sing", *ENDLESS)
    chat.wait_for("la la la")
    chat.type(CTRL_C)
    assert chat.end() == 130
    assert chat.seen.rstrip().endswith("stopped")


def test_the_bundle_is_opened_by_its_folder(terminal: Open, trio: Bundle) -> None:
    chat = terminal("chat", str(trio.folder), "-p", "hello", "-n", "2", "-t", "0")
    assert chat.end() == 0
    assert "2 tokens" in chat.seen
