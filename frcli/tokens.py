"""The only place where text and token ids meet.

:class:`Tokenizer` is what the engine asks of a model's vocabulary, :class:`ChatTemplate` turns a conversation into the
text that a model was trained on, and :class:`TextStream` turns the bytes of tokens back into text that can be shown at
once. The rest compares vocabularies: models that write together must share one.
"""

from __future__ import annotations

import codecs
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from frcli.errors import BundleError, UsageError

if TYPE_CHECKING:
    from frcli.jinja import Sandbox

ROLES = ("system", "user", "assistant")
_MAX_SAID = 200  # characters of what a template's error says
_MAX_PROMPT = 4_000_000  # characters: far beyond any context, far below the memory of a laptop


class Tokenizer(Protocol):
    """A vocabulary: what a model's tokens stand for."""

    @property
    def size(self) -> int:
        """Number of token ids that have a text; a row of logits may be wider."""

    @property
    def bos(self) -> str:
        """Text of the token that begins a sequence, or an empty string."""

    @property
    def eos(self) -> str:
        """Text of the token that ends an answer, or an empty string."""

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja template for conversations."""

    def encode(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        """Return the text's token ids; with ``special``, a text like ``<|im_end|>`` becomes the token of that name."""

    def piece(self, token: int) -> bytes:
        """Return the token's bytes, which may be part of a character; none for a special token."""

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""

    def texts(self) -> list[bytes]:
        """Return the texts of all ``size`` tokens, by id."""


class ChatTemplate:
    """A model's chat template, rendered as transformers renders it: sandboxed Jinja with ``raise_exception``,
    ``strftime_now`` and a ``tojson`` that leaves characters as they are.

    Raises ``BundleError`` when the template does not parse.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        from jinja2 import TemplateError

        from frcli.jinja import Exhausted

        # Templates ask whether tools and documents are none, so they have to be there.
        self._given = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        self._sandbox = _sandbox()
        try:
            self._template = self._sandbox.compiled(source)
        except TemplateError as error:
            line = getattr(error, "lineno", None)  # only errors of syntax have one
            where = f" in line {line}" if line else ""
            said = _said(error.message)
            raise BundleError(f"the chat template does not parse: {said}{where}", "correct the template") from error
        except (RecursionError, MemoryError, SyntaxError) as error:  # the last two of Python, for what Jinja made of it
            raise BundleError("the chat template is nested too deeply", "use a plainer template") from error
        except (Exhausted, ValueError, OverflowError) as error:
            raise BundleError(f"the chat template cannot be used: {_said(error)}", "use a plainer template") from error

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the text of a conversation, ready for ``encode(..., special=True)``.

        ``messages`` have a ``role`` (system, user or assistant) and a ``content``; with ``add_generation_prompt`` the
        text ends where the assistant's next answer begins. Raises ``UsageError`` for messages that are none or that the
        template refuses, and ``BundleError`` for a template that fails.
        """
        from jinja2 import TemplateError

        from frcli.jinja import Exhausted

        _check_messages(messages)
        self._sandbox.refill()
        parts: list[str] = []
        length = 0
        try:
            rendering = self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._given,
            )
            for part in rendering:
                parts.append(part)
                length += len(part)
                if length > _MAX_PROMPT:
                    raise BundleError(
                        f"the chat template writes more than {_MAX_PROMPT:,} characters", "use a plainer template"
                    )
        except _Refused as error:
            raise UsageError(
                f"the chat template refuses the messages: {_said(error)}", "change them as it says"
            ) from error
        except Exhausted as error:
            raise BundleError(f"the chat template asks for too much: {error}", "use a plainer template") from error
        except (RecursionError, MemoryError) as error:
            raise BundleError("the chat template does not come to an end", "use a plainer template") from error
        # Whatever Python raises inside somebody else's template is that template's failure.
        except (
            TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RuntimeError,
        ) as error:
            raise BundleError(f"the chat template failed: {_said(error)}", "use another template") from error
        return "".join(parts)


def _said(error: object) -> str:
    """What an error says, in which a template can put any text: in one line, and not all of a long one."""
    text = " ".join(str(error).split())
    return f"{text[:_MAX_SAID]}..." if len(text) > _MAX_SAID else text


class _Refused(Exception):
    """Raised by a template that calls ``raise_exception``."""


def _sandbox() -> Sandbox:
    from frcli.jinja import Sandbox

    sandbox = Sandbox()
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = _strftime_now
    sandbox.add_filter("tojson", _tojson)
    return sandbox


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    if not messages:
        raise UsageError("there are no messages", "give at least one")
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UsageError(f"message {number} has the role {role!r}", f"use one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UsageError(f"message {number} has no text as content", "give a string")


@dataclass(frozen=True, slots=True)
class Span:
    """Text that was written under one tag, such as the name of an expert."""

    text: str
    tag: str


class TextStream:
    """Turns the bytes of tokens into text to show, never half a character and never a part of a stop string.

    Bytes that may still become a character, and characters that may still become a stop string, are held back until it
    is known. A character belongs to the tag of the bytes that completed it.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise UsageError("a stop string is empty", "give at least one character")
        self._stops = tuple(dict.fromkeys(stops))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._tags: list[tuple[int, str]] = []  # runs of the held text: number of characters, tag
        self._tag = ""
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text; nothing is written any more."""
        return self._stopped

    def push(self, piece: bytes, tag: str) -> list[Span]:
        """Take the bytes of a token and return the text that is certain now.

        When a stop string is complete, the text before it is returned, and it and all that follows are dropped. Of
        several stop strings the one that is complete first counts, and of those that end together the longest.
        """
        self._tag = tag
        return self._add(self._decoder.decode(piece), tag)

    def finish(self) -> list[Span]:
        """Return what was held back; half a character becomes U+FFFD."""
        spans = self._add(self._decoder.decode(b"", final=True), self._tag)
        if self._stopped is None:
            spans += self._release(len(self._held))
        return _joined(spans)

    def _add(self, text: str, tag: str) -> list[Span]:
        if self._stopped is not None or not text:
            return []
        scanned = len(self._held)
        self._held += text
        self._tags.append((len(text), tag))
        if not self._stops:
            return self._release(len(self._held))
        found = self._first_stop(scanned)
        if found is not None:
            start, self._stopped = found
            spans = self._release(start)
            self._held = ""
            self._tags.clear()
            return spans
        return self._release(len(self._held) - self._could_become_stop())

    def _first_stop(self, scanned: int) -> tuple[int, str] | None:
        """Where in the held text the first complete stop string starts, and which it is.

        No stop string ends within the first ``scanned`` characters, or it would have been found before.
        """
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = self._held.find(stop, max(0, scanned - len(stop) + 1))
            if start >= 0:
                candidate = (start + len(stop), start, stop)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[1], best[2])

    def _could_become_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _release(self, count: int) -> list[Span]:
        """Take the first ``count`` characters out of the held text."""
        text, self._held = self._held[:count], self._held[count:]
        spans: list[Span] = []
        while text:
            length, tag = self._tags[0]
            spans.append(Span(text[:length], tag))
            if length > len(text):
                self._tags[0] = (length - len(text), tag)
            else:
                self._tags.pop(0)
            text = text[length:]
        return _joined(spans)


def _joined(spans: list[Span]) -> list[Span]:
    """Neighbours of the same tag as one span."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].tag == span.tag:
            joined[-1] = Span(joined[-1].text + span.text, span.tag)
        else:
            joined.append(span)
    return joined


def vocabulary_hash(texts: Sequence[bytes]) -> str:
    """Return the sha256 (hex) over all token texts by id, each behind its length (8 bytes, little-endian)."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()


def differing_ids(first: Sequence[bytes], second: Sequence[bytes], limit: int = 5) -> list[int]:
    """Return the first ``limit`` ids whose texts differ, or that only the longer of the two vocabularies has."""
    differing: list[int] = []
    shorter, longer = sorted((len(first), len(second)))
    for token in range(longer):
        if len(differing) == limit:
            break
        if token >= shorter or first[token] != second[token]:
            differing.append(token)
    return differing


def explain_difference(
    first_name: str, first: Sequence[bytes], second_name: str, second: Sequence[bytes], limit: int = 5
) -> str | None:
    """Return a sentence that says in which ids two vocabularies differ, or None when they are the same."""
    ids = differing_ids(first, second, limit + 1)
    if not ids:
        return None
    shown = ", ".join(f"{token} ({_text(first, token)} and {_text(second, token)})" for token in ids[:limit])
    more = ", and more" if len(ids) > limit else ""
    sizes = f" ({len(first)} and {len(second)} tokens)" if len(first) != len(second) else ""
    return f"{first_name} and {second_name} have different tokenizers{sizes}: they differ in token {shown}{more}"


def _text(texts: Sequence[bytes], token: int) -> str:
    if token >= len(texts):
        return "missing"
    return ascii(texts[token].decode("utf-8", errors="backslashreplace"))[:40]
