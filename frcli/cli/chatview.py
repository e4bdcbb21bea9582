"""How a chat looks: answers on stdout with who wrote them, and on stderr what there is to say about them."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from frcli.cli import ui
from frcli.errors import FrcliError

if TYPE_CHECKING:
    from frcli.config import Settings
    from frcli.decode.answer import Answer
    from frcli.tokens import Span

# Foreground colours and underlines, as numbers of ECMA-48's select graphic rendition; the first expert has no line.
COLOURS = ("36", "33", "32", "35", "34", "31", "96", "93", "92", "95")
UNDERLINES = ("", "4", "4:3", "4:4", "4:2", "4:5")  # plain, wavy, dotted, double, dashed
CODE = "36"
_FULL = 0.9  # of the context
# A model can write any byte; a terminal must not obey it.
_VISIBLE = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class Palette:
    """How the text of an expert is told from the others' on stdout.

    By colour; where there is none, or also with ``marks``, by a line below that every expert has its own of; and where
    neither can be drawn, by ``[name]`` before what it wrote.
    """

    def __init__(self, experts: Sequence[str], *, marks: bool) -> None:
        self._experts = tuple(experts)
        self._coloured = ui.coloured(sys.stdout)
        self._underlined = marks and ui.can_draw(sys.stdout)
        self.names = not self._coloured and not self._underlined

    def of(self, name: str) -> str:
        """The rendition of an expert's text; none for what several wrote together."""
        if name not in self._experts:
            return ""
        number = self._experts.index(name)
        colour = COLOURS[number % len(COLOURS)] if self._coloured else ""
        return _both(colour, UNDERLINES[number % len(UNDERLINES)] if self._underlined else "")

    def legend(self) -> str:
        """Every expert's name as its text is drawn."""
        if self.names:
            return "  ".join(f"[{name}]" for name in self._experts)
        block = "■ " if self._coloured else ""
        return "  ".join(render(f"{block}{name}", self.of(name)) for name in self._experts)


class AnswerWriter:
    """Writes an answer to stdout; with ``show_experts`` one can see which expert wrote what.

    On a terminal lines are broken between words, control characters are made visible and, with ``markdown``, headings,
    lists, emphasis and code are drawn as such; anywhere else the text is written as it is. What the experts' colours
    say and what Markdown says do not meet: the one is colour and line, the other weight and slant.
    """

    def __init__(
        self, experts: Sequence[str], *, show_experts: bool, marks: bool = False, markdown: bool = False
    ) -> None:
        self._palette = Palette(experts, marks=marks) if show_experts else None
        self._terminal = ui.is_terminal(sys.stdout)
        self._last = ""
        self._open = False  # whether the line that was written last still waits for its end
        if self._terminal:
            from frcli.chat.wrap import WordWrap

            self._wrap = WordWrap(_columns())
        self._markdown = None
        if markdown and ui.can_draw(sys.stdout):
            from frcli.chat.markdown import BOLD, Markdown

            self._markdown = Markdown(CODE if ui.coloured(sys.stdout) and not show_experts else BOLD)

    def span(self, span: Span) -> None:
        """Write a piece of the answer."""
        if not span.text:
            return
        if not self._terminal:
            ui.write(self._marked(span.text, span.tag))
            self._open = not span.text.endswith("\n")
            return
        self._wrap.width = _columns()
        text = span.text.translate(_VISIBLE)
        if self._markdown is None:
            self._draw(text, span.tag)
            return
        for piece in self._markdown.push(text, span.tag):
            self._draw(piece.text, piece.tag, piece.rendition, verbatim=piece.verbatim)

    def close(self) -> None:
        """Write what is left and end the last line."""
        if self._markdown is not None:
            for piece in self._markdown.finish():
                self._draw(piece.text, piece.tag, piece.rendition, verbatim=piece.verbatim)
        if self._terminal:
            self._put(self._wrap.finish())
        if self._open:
            ui.write("\n")
        self._open = False

    def _draw(self, text: str, tag: str, rendition: str = "", *, verbatim: bool = False) -> None:
        own = self._palette.of(tag) if self._palette else ""
        marked = self._marked(text, tag)
        self._put((self._wrap.verbatim if verbatim else self._wrap.push)(marked, _both(own, rendition)))
        self._open = not text.endswith("\n")

    def _marked(self, text: str, tag: str) -> str:
        """The text behind its expert's name, where another expert takes over and only names tell them apart."""
        before, self._last = self._last, tag
        return f"[{tag}]{text}" if self._palette and self._palette.names and tag != before else text

    def _put(self, pieces: Sequence[tuple[str, str]]) -> None:
        if text := "".join(render(text, rendition) for text, rendition in pieces):
            ui.write(text)


def render(text: str, rendition: str) -> str:
    """The text drawn with these numbers of the select graphic rendition."""
    return f"\x1b[{rendition}m{text}\x1b[0m" if text and rendition else text


def _both(one: str, other: str) -> str:
    return ";".join(filter(None, (one, other)))


def _columns() -> int:
    return shutil.get_terminal_size().columns


def legend(experts: Sequence[str], *, marks: bool = False) -> None:
    """Say on stderr which colour, line or mark is which expert's."""
    if not ui.manner.quiet:
        written = ui.paint("written by", "dim", sys.stderr)
        print(f"{written}  {Palette(experts, marks=marks).legend()}", file=sys.stderr, flush=True)


def finish_phrase(answer: Answer, max_tokens: int) -> str:
    """Why the answer ended, for people; empty when it simply was complete."""
    return {
        "stop": "ended by a stop text",
        "length": f"cut off at --max-tokens {max_tokens}",
        "context": "cut off: the context is full",
        "cancelled": "stopped",
    }.get(answer.finish_reason, "")


def status(answer: Answer, max_tokens: int, context: int) -> str:
    """One line about an answer: tokens, speed, time to the first token, who wrote it, how often drafts were right, how
    full the context is, and why it ended.
    """
    total = sum(answer.experts.values())
    shares = sorted(answer.experts.items(), key=lambda item: -item[1])
    used = answer.prompt_tokens + answer.completion_tokens
    parts = [
        f"{answer.completion_tokens} tokens",
        f"{answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else "",
        f"first after {answer.first_token:.2f} s" if answer.first_token else "",
        ", ".join(f"{name} {count / total:.0%}" for name, count in shares),
        f"drafts {answer.accepted / answer.proposed:.0%}" if answer.proposed else "",
        f"context {used / context:.0%}",
        finish_phrase(answer, max_tokens),
    ]
    return " · ".join(part for part in parts if part)


def say(text: str) -> None:
    """Write about an answer to stderr; on a terminal lines are broken between words."""
    ui.say(textwrap.fill(text, _columns() - 1, break_on_hyphens=False) if ui.is_terminal(sys.stderr) else text)


class ChatView:
    """A chat on a terminal: answers on stdout, what is about them on stderr.

    ``settings`` tells the settings as they are, ``context`` is how many tokens the context holds.
    """

    def __init__(self, experts: Sequence[str], settings: Callable[[], Settings], context: int) -> None:
        self._experts, self._settings, self._context = tuple(experts), settings, context
        self._legend: tuple[bool, bool] | None = None  # what was drawn the last time
        self._waiting, self._keyboard = ExitStack(), ExitStack()
        self._writer = AnswerWriter(experts, show_experts=False)

    def begin(self) -> None:
        """Show that an answer is being thought of."""
        settings = self._settings()
        look = settings.show_experts, settings.marks
        if settings.show_experts and look != self._legend:
            legend(self._experts, marks=settings.marks)
        self._legend = look
        self._writer = AnswerWriter(
            self._experts, show_experts=settings.show_experts, marks=settings.marks, markdown=settings.markdown
        )
        self._keyboard.enter_context(ui.silent_keyboard())
        self._waiting.enter_context(ui.working(""))

    def span(self, span: Span) -> None:
        """Write a piece of the answer."""
        self._waiting.close()
        self._writer.span(span)

    def end(self, answer: Answer | None) -> None:
        """End the answer's line and say what there is to say about it."""
        self._waiting.close()
        self._keyboard.close()
        self._writer.close()
        if answer is None:
            return
        say(status(answer, self._settings().max_tokens, self._context))
        used = (answer.prompt_tokens + answer.completion_tokens) / self._context
        if used >= _FULL:
            from frcli.chat.session import WAYS_OUT

            say(f"the context is {'full' if used >= 1 else 'nearly full'}: {WAYS_OUT}")
        ui.say("")

    def say(self, text: str) -> None:
        """Write lines that the user asked for; also when there should be silence otherwise."""
        shown = text.translate(_VISIBLE) if ui.is_terminal(sys.stderr) else text
        print(shown, file=sys.stderr, flush=True)

    def complain(self, error: FrcliError) -> None:
        """Write an error."""
        ui.complain(error)
