"""How answers are drawn: by colour, by line, by name; with Markdown and without."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import pytest

from frcli.cli import chatview
from frcli.config import Settings
from frcli.decode.answer import Answer
from frcli.tokens import Span

SPANS = [Span("One ", "math"), Span("two", "math"), Span(" three\n", "code"), Span("four", "all")]
EXPERTS = ("general", "math", "code")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Screen()


def written(spans: list[Span], screen: Screen | None = None, **options: Any) -> None:
    with contextlib.redirect_stdout(screen or sys.stdout):
        writer = chatview.AnswerWriter(EXPERTS, **options)
        for span in spans:
            writer.span(span)
        writer.close()


def test_text_is_text_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    written([Span("a\x1b[31m\tb\r\n", "math"), Span("x" * 200, "code")], show_experts=False)
    assert capsys.readouterr().out == "a\x1b[31m\tb\r\n" + "x" * 200 + "\n"


def test_experts_are_marked_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    written(SPANS, show_experts=True)
    assert capsys.readouterr().out == "[math]One two[code] three\n[all]four\n"


def test_experts_have_colours_on_a_terminal(screen: Screen) -> None:
    written(SPANS, screen, show_experts=True)
    assert screen.getvalue() == "\x1b[33mOne \x1b[0m\x1b[33mtwo \x1b[0m\x1b[32mthree\n\x1b[0mfour\n"


def test_no_color_is_honoured(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    written(SPANS, screen, show_experts=True)
    assert screen.getvalue() == "[math]One two[code] three\n[all]four\n"


def test_a_terminal_does_not_obey_the_model(screen: Screen) -> None:
    written([Span("a\x1b]0;title\x07\x9b31m\x7f b", "math")], screen, show_experts=False)
    assert screen.getvalue() == "a␛]0;title␇\ufffd31m␡ b\n"


def test_lines_are_broken_between_words_on_a_terminal(screen: Screen) -> None:
    written([Span("words " * 10, "math")], screen, show_experts=False)
    assert screen.getvalue() == "words " * 6 + "\n" + "words " * 4 + "\n"


def test_an_answer_that_ends_its_line_gets_no_second_end(capsys: pytest.CaptureFixture[str]) -> None:
    written([Span("one\n", "math")], show_experts=False)
    written([], show_experts=False)
    assert capsys.readouterr().out == "one\n"


@pytest.mark.parametrize(
    ("reason", "phrase"),
    [
        ("eos", ""),
        ("stop", " · ended by a stop text"),
        ("length", " · cut off at --max-tokens 11"),
        ("context", " · cut off: the context is full"),
        ("cancelled", " · stopped"),
    ],
)
def test_the_line_about_an_answer(reason: str, phrase: str) -> None:
    experts = {"code": 2, "math": 9}
    answer = Answer("x", reason, 5, 11, experts, first_token=0.25, seconds=1.25, proposed=8, accepted=6)
    assert chatview.status(answer, 11, 64) == (
        f"11 tokens · 10.0 tokens/s · first after 0.25 s · math 82%, code 18% · drafts 75% · context 25%{phrase}"
    )


def test_a_line_about_next_to_nothing() -> None:
    assert chatview.status(Answer("", "cancelled", 5, 0, {}), 11, 64) == "0 tokens · context 8% · stopped"


def test_every_expert_has_a_line_of_its_own_beside_its_colour(screen: Screen) -> None:
    written(SPANS, screen, show_experts=True, marks=True)
    assert screen.getvalue() == "\x1b[33;4mOne \x1b[0m\x1b[33;4mtwo \x1b[0m\x1b[32;4:3mthree\n\x1b[0mfour\n"


def test_lines_without_colour(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    written(SPANS, screen, show_experts=True, marks=True)
    assert screen.getvalue() == "\x1b[4mOne \x1b[0m\x1b[4mtwo \x1b[0m\x1b[4:3mthree\n\x1b[0mfour\n"


def test_a_dumb_terminal_gets_names_and_markdown_as_it_is(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    written([Span("**a** ", "math"), Span("b", "code")], screen, show_experts=True, marks=True, markdown=True)
    assert screen.getvalue() == "[math]**a** [code]b\n"


def test_markdown_is_drawn(screen: Screen) -> None:
    written([Span("# One\n**two** `x` ", "math"), Span("- y", "code")], screen, show_experts=False, markdown=True)
    assert screen.getvalue() == "\x1b[1mOne\n\x1b[0m\x1b[1mtwo \x1b[0m\x1b[36mx \x1b[0m- y\n"


def test_markdown_and_experts_are_drawn_together(screen: Screen) -> None:
    written([Span("a **b", "math"), Span("c** d", "code")], screen, show_experts=True, markdown=True)
    assert screen.getvalue() == ("\x1b[33ma \x1b[0m\x1b[33;1mb\x1b[0m\x1b[32;1mc \x1b[0m\x1b[32md\x1b[0m\n")


def test_names_do_not_hide_what_begins_a_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    written([Span("# One\n", "math"), Span("- two", "code")], screen, show_experts=True, markdown=True)
    assert screen.getvalue() == "\x1b[1m[math]One\n\x1b[0m[code]• two\n"


def test_code_is_not_broken_between_words(screen: Screen) -> None:
    code = "```\n" + "word " * 12 + "\n```\n"
    written([Span(code, "math")], screen, show_experts=False, markdown=True)
    assert "word " * 12 + "\n" in screen.getvalue()


def test_markdown_stays_as_it_is_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    written([Span("# **One**\n", "math")], show_experts=False, markdown=True)
    assert capsys.readouterr().out == "# **One**\n"


def test_a_terminal_that_becomes_narrower(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.redirect_stdout(screen):
        writer = chatview.AnswerWriter(EXPERTS, show_experts=False)
        writer.span(Span("words " * 6 + "\n", "math"))
        monkeypatch.setenv("COLUMNS", "20")
        writer.span(Span("words " * 6, "math"))
        writer.close()
    assert screen.getvalue() == "words " * 6 + "\n" + ("words " * 3 + "\n") * 2


@pytest.mark.parametrize(
    ("marks", "no_color", "told"),
    [
        (False, "", "\x1b[36m■ general\x1b[0m  \x1b[33m■ math\x1b[0m  \x1b[32m■ code\x1b[0m"),
        (True, "", "\x1b[36m■ general\x1b[0m  \x1b[33;4m■ math\x1b[0m  \x1b[32;4:3m■ code\x1b[0m"),
        (True, "1", "general  \x1b[4mmath\x1b[0m  \x1b[4:3mcode\x1b[0m"),
        (False, "1", "[general]  [math]  [code]"),
    ],
)
def test_the_legend_is_drawn_as_the_text_is(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, marks: bool, no_color: str, told: str
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    with contextlib.redirect_stdout(screen):
        assert chatview.Palette(EXPERTS, marks=marks).legend() == told


@pytest.mark.parametrize(("tokens", "said"), [(50, ""), (90, "nearly full"), (95, "the context is full")])
def test_a_full_context_is_told_with_what_can_be_done(
    capsys: pytest.CaptureFixture[str], tokens: int, said: str
) -> None:
    view = chatview.ChatView(EXPERTS, Settings, 100)
    view.begin()
    view.end(Answer("x", "context" if tokens == 95 else "eos", 5, tokens, {"math": tokens}))
    told = capsys.readouterr().err
    assert said in told
    assert ("/undo takes the last turn back" in told) is bool(said)
