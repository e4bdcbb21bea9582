"""Breaking lines between words while the text still arrives."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len

Piece = tuple[str, str]  # text and its style
_TAB = 8


class WordWrap:
    """Turns pieces of text into pieces that never run over ``width`` columns of a terminal; it may change on the way.

    A word is held back until it is known to be complete. One that is longer than a line is left to the terminal, and
    wide characters (Chinese, Japanese, Korean) may be parted anywhere.
    """

    def __init__(self, width: int) -> None:
        self.width = max(1, width)
        self._column = 0
        self._word: list[Piece] = []
        self._length = 0  # columns of the word
        self._long = False  # the word fills a line already, so the rest of it goes straight out

    def push(self, text: str, style: str = "") -> list[Piece]:
        """Take text and return what can be shown now."""
        ready: list[Piece] = []
        for character in text:
            if character == "\n":
                ready += [*self._end_word(), ("\n", "")]
                self._column = 0
            elif character in " \t":
                ready += [*self._end_word(), *self._space(character)]
            else:
                ready += self._add(character, style)
        return _joined(ready)

    def verbatim(self, text: str, style: str = "") -> list[Piece]:
        """Take text whose lines must stay as they are, and return all there is now."""
        ready = [*self._end_word(), (text, style)]
        last = text.rpartition("\n")[2]
        self._column = (cell_len(last) + (0 if "\n" in text else self._column)) % self.width
        return ready

    def finish(self) -> list[Piece]:
        """Return the last word."""
        return _joined(list(self._end_word()))

    def _add(self, character: str, style: str) -> Iterator[Piece]:
        columns = cell_len(character)
        if columns > 1:
            yield from self._end_word()
            self._word, self._length = [(character, style)], columns
            yield from self._end_word()
            return
        if self._long:
            self._column = self._column % self.width + columns
            yield character, style
            return
        self._word.append((character, style))
        self._length += columns
        if self._length >= self.width:
            yield from self._end_word()
            self._long = True

    def _space(self, character: str) -> Iterator[Piece]:
        after = self._column + 1 if character == " " else (self._column // _TAB + 1) * _TAB
        if after > self.width:
            self._column = 0
            yield "\n", ""
        else:
            self._column = after
            yield character, ""

    def _end_word(self) -> Iterator[Piece]:
        self._long = False
        if not self._word:
            return
        if self._column and self._column + self._length > self.width:
            self._column = 0
            yield "\n", ""
        yield from self._word
        self._column += self._length
        self._word, self._length = [], 0


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one style as one piece; a line break takes the style before it."""
    joined: list[Piece] = []
    for text, style in pieces:
        if joined and (joined[-1][1] == style or text.isspace()):
            joined[-1] = (joined[-1][0] + text, joined[-1][1])
        else:
            joined.append((text, style))
    return joined
