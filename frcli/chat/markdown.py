"""Markdown that is drawn while it still arrives.

What was shown is never drawn again, so that nothing flickers and scrolling back stays possible. A marker is held back
until it is known what it means: a heading or a list until its first word, emphasis until it ends, or until its line
does. Every character keeps its tag, so that the experts' colours stay where they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LONGEST = 160  # characters of an emphasis that has not ended; then it is none
_RULE_WIDTH = 24
BOLD, DIM, ITALIC, STRUCK = "1", "2", "3", "9"  # of ECMA-48, select graphic rendition

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[^\n`]*(?:\n|\Z)")
_HEADING = re.compile(r" {0,3}#{1,6} +(?=\S)")
_BULLET = re.compile(r"( *)[-*+]( +)(?=\S)")
_QUOTE = re.compile(r" {0,3}> ?")
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *(?=\n|\Z)")
# What a line may begin with while it is not known yet what it will be.
_MAY_BECOME = re.compile(r" *(?:#{1,6} *|[-*_+](?: *[-*_])* *|`{1,2}|~{1,2}|(?:`{3,}|~{3,})[^\n`]*|>)?")
_MARKER = re.compile(r"[*_~`\\]")
_SPANS = (
    (re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)"), "code"),
    (re.compile(r"(\*\*\*)(?=\S)(.+?)(?<=\S)\1"), f"{BOLD};{ITALIC}"),
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), BOLD),
    (re.compile(r"(~~)(?=\S)(.+?)(?<=\S)\1"), STRUCK),
    (re.compile(r"([*_])(?=[^\s*_])(.+?)(?<=[^\s*_])\1(?![*_])"), ITALIC),
)
_ESCAPABLE = "*_~`\\#"

Character = tuple[str, str]  # and its tag


@dataclass(frozen=True, slots=True)
class Styled:
    """Text of one tag, the numbers of its graphic rendition, and whether its lines must stay as they are."""

    text: str
    tag: str
    rendition: str = ""
    verbatim: bool = False


class Markdown:
    """Takes pieces of Markdown and gives what can be drawn of them; inline code is drawn in the rendition ``code``."""

    def __init__(self, code: str = BOLD) -> None:
        self._code = code
        self._held: list[Character] = []
        self._at_start = True  # of a line
        self._line = ""  # rendition of the whole line
        self._fence = ""  # what opened the block of code that we are in
        self._before = ""  # the character before the held ones

    def push(self, text: str, tag: str) -> list[Styled]:
        """Take text and return what can be drawn now."""
        self._held += [(character, tag) for character in text]
        return list(_merged(self._draw(final=False)))

    def finish(self) -> list[Styled]:
        """Return what was held back."""
        return list(_merged(self._draw(final=True)))

    def _draw(self, *, final: bool) -> Iterator[Styled]:
        while self._held:
            text = "".join(character for character, _ in self._held)
            if self._at_start:
                line = text.partition("\n")[0]
                if not final and line == text and _MAY_BECOME.fullmatch(text):
                    return
                yield from self._begin_line(text)
            elif self._fence:
                end = text.find("\n") + 1
                yield from self._take(end or len(text), verbatim=True)
                self._at_start = bool(end)
            else:
                line, newline, _ = text.partition("\n")
                characters = self._held[: len(line)]
                pieces, read = _inline(characters, self._line, self._code, self._before, final=final or bool(newline))
                yield from pieces
                self._drop(read)
                if read < len(line):
                    return
                if newline:
                    yield from self._take(1)
                    self._at_start, self._line = True, ""

    def _begin_line(self, text: str) -> Iterator[Styled]:
        self._at_start = False
        fence = _FENCE.match(text)
        if self._fence:
            if fence and fence[1].startswith(self._fence) and not fence[0].strip().strip(self._fence[0]):
                yield from self._take(fence.end(), DIM, verbatim=True)
                self._fence, self._at_start = "", True
        elif fence:
            self._fence = fence[1]
            yield from self._take(fence.end(), DIM, verbatim=True)
            self._at_start = True
        elif heading := _HEADING.match(text):
            self._line = BOLD
            self._drop(heading.end())
        elif rule := _RULE.match(text):
            yield Styled("─" * _RULE_WIDTH, self._held[0][1], DIM)
            self._drop(rule.end())
        elif bullet := _BULLET.match(text):
            yield Styled(f"{bullet[1]}•{bullet[2]}", self._held[bullet.end() - 1][1])
            self._drop(bullet.end())
        elif quote := _QUOTE.match(text):
            yield Styled("│ ", self._held[0][1], DIM)
            self._drop(quote.end())

    def _take(self, count: int, rendition: str = "", *, verbatim: bool = False) -> Iterator[Styled]:
        for character, tag in self._held[:count]:
            yield Styled(character, tag, rendition, verbatim)
        self._drop(count)

    def _drop(self, count: int) -> None:
        if count:
            self._before = self._held[count - 1][0]
            del self._held[:count]


def _inline(
    characters: list[Character], rendition: str, code: str, before: str, *, final: bool
) -> tuple[list[Styled], int]:
    """What of a line can be drawn, and how many of its characters that is; all of them when it is ``final``."""
    text = "".join(character for character, _ in characters)
    pieces: list[Styled] = []
    at = 0

    def plain(end: int) -> None:
        nonlocal at
        pieces.extend(Styled(character, tag, rendition) for character, tag in characters[at:end])
        at = end

    while at < len(text):
        marker = _MARKER.search(text, at)
        plain(marker.start() if marker else len(text))
        if marker is None:
            break
        if text[at] == "\\":
            if at + 1 == len(text) and not final:
                break
            if text[at + 1 : at + 2] and text[at + 1] in _ESCAPABLE:
                at += 1
            plain(at + 1)
            continue
        last = text[at - 1] if at else before
        run = len(text) - at - len(text[at:].lstrip(text[at]))
        if text[at] != "`" and last.isalnum():  # 2*3*4 and snake_case mean what they say
            if at + run == len(text) and not final:
                break
            plain(at + run)
            continue
        found = _span(text, at, run)
        if found is None:
            opens = text[at] == "`" or not text[at + run : at + run + 1].isspace()
            if not final and opens and len(text) - at <= _LONGEST:
                break
            plain(at + run)
            continue
        match, style = found
        if match.end() == len(text) and not final:
            break  # what follows may make it longer, or none at all
        inner = characters[match.start(2) : match.end(2)]
        if style == "code":
            pieces += [Styled(character, tag, _both(rendition, code)) for character, tag in inner]
        else:
            pieces += _inline(inner, _both(rendition, style), code, "", final=True)[0]
        at = match.end()
    return pieces, at


def _span(text: str, at: int, run: int) -> tuple[re.Match[str], str] | None:
    """The emphasis or code that begins with ``run`` markers at that place and is complete, and its kind."""
    for pattern, style in _SPANS:
        match = pattern.match(text, at)
        if match and len(match[1]) == run and (style == "code" or not text[match.end() : match.end() + 1].isalnum()):
            return (match, style) if match.end() - at <= _LONGEST else None
    return None


def _both(one: str, other: str) -> str:
    return f"{one};{other}" if one else other


def _merged(pieces: Iterator[Styled]) -> Iterator[Styled]:
    """Neighbours that are drawn alike as one piece."""
    last: Styled | None = None
    for piece in pieces:
        if last is None:
            last = piece
        elif (last.tag, last.rendition, last.verbatim) == (piece.tag, piece.rendition, piece.verbatim):
            last = Styled(last.text + piece.text, last.tag, last.rendition, last.verbatim)
        else:
            yield last
            last = piece
    if last is not None:
        yield last
