"""Every message that docs/troubleshooting.md quotes is one that the source still says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
_LEAST = 9  # letters that a text must have by itself: otherwise it would be found in anything


def quoted() -> list[str]:
    """What stands between backticks in the first column, if it is a sentence and no flag, name or path."""
    cells = re.findall(r"^\| (.*?) \| ", PAGE, re.MULTILINE)
    texts = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    return [text for text in texts if text.count(" ") >= 2 and not text.startswith(("frcli ", "--"))]


@cache
def said() -> tuple[re.Pattern[str], ...]:
    """Every text in the source, and every pair of an error's sentence and its hint."""
    found = set()
    for folder in ("frcli", "converters"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found.update(_patterns(node))
    return tuple(re.compile(text, re.DOTALL) for text in found)


def _patterns(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant | ast.JoinedStr):
        yield from _known(_pattern(node))
    elif isinstance(node, ast.Call) and len(node.args) == 2:
        yield from _known("; ".join(_pattern(each) for each in node.args))


def _known(pattern: str) -> Iterator[str]:
    if len(re.findall(r"[A-Za-z]", pattern)) >= _LEAST:
        yield pattern


def _pattern(node: ast.expr) -> str:
    """A regular expression of all that a text can become."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_pattern, node.values))
    return "[^;]*" if isinstance(node, ast.FormattedValue) else ".+"


def is_said(message: str) -> bool:
    return any(pattern.fullmatch(message) for pattern in said())


def test_there_are_messages() -> None:
    assert len(quoted()) > 60


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_in_the_source(message: str) -> None:
    assert is_said(message)


@pytest.mark.parametrize(
    "message",
    [
        "the bundle NAME is on holiday",
        "there is no bundle 'NAME'; ask for another",
        "FILE exists; choose another name, or use --overwrite to replace it",
    ],
)
def test_others_are_not(message: str) -> None:
    assert not is_said(message)


def test_links_lead_somewhere() -> None:
    for page, part in re.findall(r"\]\(([\w./-]+\.md)(?:#([\w-]+))?\)", PAGE):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        heads = {
            re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
            for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        assert not part or part in heads, f"{page}#{part}"
