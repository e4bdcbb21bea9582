"""Markdown as it arrives: what is drawn, and that it does not depend on where the pieces are cut."""

from __future__ import annotations

import random

import pytest

from frcli.chat.markdown import BOLD, DIM, ITALIC, Markdown, Styled

PARTS = ("*", "**", "_", "`", "~~", "\n", " ", "a", "b2")


def drawn(text: str, cuts: list[int] | None = None) -> list[tuple[str, str]]:
    """Text and rendition of the pieces, pushed as one text or cut at these places; neighbours are joined."""
    markdown = Markdown(code="C")
    ends = [*(cuts or []), len(text)]
    pieces: list[Styled] = []
    for start, end in zip([0, *ends], ends, strict=False):
        pieces += markdown.push(text[start:end], "x")
    pieces += markdown.finish()
    joined: list[tuple[str, str]] = []
    for piece in pieces:
        if joined and joined[-1][1] == piece.rendition:
            joined[-1] = joined[-1][0] + piece.text, piece.rendition
        else:
            joined.append((piece.text, piece.rendition))
    return joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", [("plain text", "")]),
        ("a **bold** word", [("a ", ""), ("bold", BOLD), (" word", "")]),
        ("a __bold__ word", [("a ", ""), ("bold", BOLD), (" word", "")]),
        ("*leaning* and _too_", [("leaning", ITALIC), (" and ", ""), ("too", ITALIC)]),
        ("***both***", [("both", f"{BOLD};{ITALIC}")]),
        ("**a *b* c**", [("a ", BOLD), ("b", f"{BOLD};{ITALIC}"), (" c", BOLD)]),
        ("**with `code`**", [("with ", BOLD), ("code", f"{BOLD};C")]),
        ("~~no~~", [("no", "9")]),
        ("use `a*b*c` here", [("use ", ""), ("a*b*c", "C"), (" here", "")]),
        ("``a`b``", [("a`b", "C")]),
        ("2 * 3 * 4 and 2*3*4", [("2 * 3 * 4 and 2*3*4", "")]),
        ("2**3**2", [("2**3**2", "")]),
        ("snake_case_name", [("snake_case_name", "")]),
        ("never **closed", [("never **closed", "")]),
        ("never **closed\nnor *here", [("never **closed\nnor *here", "")]),
        ("an \\*escaped\\* star and \\(math\\)", [("an *escaped* star and \\(math\\)", "")]),
        ("# Title\ntext", [("Title", BOLD), ("\ntext", "")]),
        ("### A **b** c\n", [("A ", BOLD), ("b", f"{BOLD};{BOLD}"), (" c", BOLD), ("\n", "")]),
        ("#hashtag\n#1", [("#hashtag\n#1", "")]),
        ("- one\n* two\n  + three\n", [("\u2022 one\n\u2022 two\n  \u2022 three\n", "")]),
        ("- *a*\n", [("\u2022 ", ""), ("a", ITALIC), ("\n", "")]),
        ("1. one\n-1 is less\n", [("1. one\n-1 is less\n", "")]),
        ("> said\n", [("\u2502 ", DIM), ("said\n", "")]),
        ("a\n---\nb", [("a\n", ""), ("\u2500" * 24, DIM), ("\nb", "")]),
        ("**bold** starts", [("bold", BOLD), (" starts", "")]),
        (
            "```python\nx = 2 ** 3  # *no*\n\n- no list\n```\nafter",
            [("```python\n", DIM), ("x = 2 ** 3  # *no*\n\n- no list\n", ""), ("```\n", DIM), ("after", "")],
        ),
        ("~~~\n```\n~~~", [("~~~\n", DIM), ("```\n", ""), ("~~~", DIM)]),
        ("```\nnever closed", [("```\n", DIM), ("never closed", "")]),
        ("| a | b |\n|---|---|\n", [("| a | b |\n|---|---|\n", "")]),
        ("", []),
        ("\n\n", [("\n\n", "")]),
        ("**", [("**", "")]),
        ("---", [("\u2500" * 24, DIM)]),
    ],
)
def test_what_is_drawn(text: str, expected: list[tuple[str, str]]) -> None:
    assert drawn(text) == expected
    assert drawn(text, list(range(1, len(text)))) == expected


def test_where_the_pieces_are_cut_makes_no_difference() -> None:
    random_ = random.Random(0)
    for _ in range(300):
        text = "".join(
            random_.choices(["*", "**", "_", "`", "```\n", "\n", " ", "a", "b2", "# ", "- ", "~~", "\\"], k=20)
        )
        cuts = sorted(random_.sample(range(len(text) + 1), 3))
        assert drawn(text, cuts) == drawn(text), (text, cuts)


def test_nothing_is_lost_but_markers() -> None:
    random_ = random.Random(1)
    for _ in range(300):
        text = "".join(random_.choices([*PARTS, "."], k=20))
        kept = "".join(text for text, _ in drawn(text))
        assert [c for c in kept if c.isalnum() or c in ".\n"] == [c for c in text if c.isalnum() or c in ".\n"], text


def test_plain_text_is_not_held_back() -> None:
    markdown = Markdown()
    assert [piece.text for piece in markdown.push("Hello ", "x")] == ["Hello "]
    assert [piece.text for piece in markdown.push("wor", "x")] == ["wor"]
    assert markdown.push(" **bo", "x") == [Styled(" ", "x")]
    assert markdown.push("x" * 200, "x") != []  # too long to be emphasis


def test_every_character_keeps_its_tag() -> None:
    markdown = Markdown()
    pieces = [piece for text, tag in (("# a ", "1"), ("**b", "2"), ("c**", "1")) for piece in markdown.push(text, tag)]
    pieces += markdown.finish()
    assert [(piece.text, piece.tag) for piece in pieces] == [("a ", "1"), ("b", "2"), ("c", "1")]


def test_code_is_verbatim() -> None:
    markdown = Markdown()
    pieces = [*markdown.push("a\n```\nx\n```\n", "x"), *markdown.finish()]
    assert [piece.verbatim for piece in pieces] == [False, True, True, True]
