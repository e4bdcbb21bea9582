"""What is drawn with colour and without."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import pytest

from frcli.cli import ui
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
        writer = ui.AnswerWriter(EXPERTS, **options)
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
    answer = Answer("x", reason, 5, 11, {"code": 2, "math": 9}, (), first_token=0.25, seconds=1.25)
    assert ui.status(answer, 11) == f"11 tokens · 10.0 tokens/s · first after 0.25 s · math 82%, code 18%{phrase}"


def test_a_line_about_next_to_nothing() -> None:
    assert ui.status(Answer("", "cancelled", 5, 0, {}), 11) == "0 tokens · stopped"


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ui.manner, "quiet", True)
    ui.say("something")
    ui.legend(EXPERTS)
    with ui.Meter(every=0) as meter:
        meter("rows", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_file_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with ui.Meter(every=0) as meter:
        meter("rows", 1, 4, "1 failed")
    with ui.Meter(every=3600) as meter:
        meter("rows", 2, 4)
    assert capsys.readouterr().err == "rows 25%, 1 failed\n"


def test_progress_of_an_unknown_total(capsys: pytest.CaptureFixture[str]) -> None:
    with ui.Meter(every=0) as meter:
        meter("rows", 1, None, "1 row")
    assert capsys.readouterr().err == "rows, 1 row\n"


def test_a_table_in_a_file_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    ui.table(("name", "about"), [("a", "x" * 200), ("longer", "")])
    assert capsys.readouterr().out == f"name    about\na       {'x' * 200}\nlonger\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (98362432, "93.8 MiB"), (2**50, "1024.0 TiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert ui.size(count) == text
