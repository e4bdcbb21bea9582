"""Lines broken between words, whatever the pieces are that the text arrives in."""

from __future__ import annotations

import itertools
import textwrap

import pytest

from frcli.chat.wrap import WordWrap


def shown(pieces: list[str], width: int) -> str:
    wrap = WordWrap(width)
    return "".join(text for piece in pieces for text, _ in wrap.push(piece)) + "".join(t for t, _ in wrap.finish())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", "one two \nthree"),
        ("12345678 x", "12345678\nx"),  # the space that would be column 9 becomes the break
        ("a\n\nb", "a\n\nb"),
        ("  indented", "  \nindented"),
        ("abcdefghijkl mn", "abcdefghijkl mn"),  # 12 > 8: the terminal breaks it
        ("漢字漢字漢字", "漢字漢字\n漢字"),
        ("a\tb", "a\t\nb"),  # the tab goes to column 8, and the b has no room
    ],
)
def test_lines_of_eight_columns(text: str, expected: str) -> None:
    assert shown([text], 8) == expected


@pytest.mark.parametrize("width", [2, 3, 5])
def test_pieces_do_not_matter_and_only_breaks_are_added(width: int) -> None:
    for letters in itertools.product("a \n", repeat=7):
        text = "".join(letters)
        wrapped = shown([text], width)
        assert shown(list(text), width) == wrapped
        assert wrapped.replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")
        if max((len(word) for word in text.split()), default=0) < width:
            assert all(len(line) <= width for line in wrapped.split("\n"))


def test_words_go_where_textwrap_puts_them() -> None:
    text = "It was a bright cold day in April, and the clocks were striking thirteen. " * 3
    ours = [line.rstrip() for line in shown(list(text), 30).rstrip().split("\n")]
    assert ours == textwrap.wrap(text, 30)


def test_a_word_waits_until_it_is_complete_and_keeps_its_styles() -> None:
    wrap = WordWrap(20)
    assert wrap.push("hel", "red") == []
    assert wrap.push("lo wor", "blue") == [("hel", "red"), ("lo ", "blue")]
    assert wrap.finish() == [("wor", "blue")]
