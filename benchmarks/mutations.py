"""Changes to a file that a careless or malicious hand could make, drawn at random."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 31, 127, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 1 << 31, 1 << 64, 10**400, 0.5, -2.5, 1e308, "", "x", "../x", "\ud800", "9" * 5000,
    [], [0], ["a", 1], {}, {"type": "BPE"}, {"a": {"b": []}}, [[[[]]]],
)  # fmt: skip

_TEXTS = (
    b"", b"1", b"-1", b"1e999", b"nan", b"NaN", b"inf", b"true", b"null", b"9" * 400, b"9" * 5000, b"[]", b"{}", b'"x"',
    b'["x", 1]', b"[" * 100_000, b"\xff", b"\0", b'"\\ud800"', b"1979-05-27T07:32:00Z", b'"""a\nb"""',
)  # fmt: skip

# What templates are made of, and what one could use to do too much.
_WORDS = (
    *(b"1", b"-1", b"10**9", b"9" * 5000, b"1e308", b"none", b"''", b"'%9999999d'", b"'{:9999999}'", b"[]", b"{}"),
    *(b"range(99999)", b"messages", b"loop", b"self", b"m", b"ns", b"ns.seen", b"caller()", b"namespace", b"cycler"),
    *(
        b"*",
        b"**",
        b"~",
        b"|",
        b".",
        b"(",
        b")",
        b"[",
        b"]",
        b":",
        b",",
        b"=",
        b"==",
        b"{%",
        b"%}",
        b"{{",
        b"}}",
        b"{#",
    ),
    *(b"for", b"endfor", b"if", b"set", b"macro", b"call", b"filter", b"include", b"recursive", b"is", b"in", b"not"),
    *(b"__class__", b"format", b"replace", b"join", b"tojson", b"batch", b"sort", b"sum", b"indent", b"attr", b"map"),
)


def changed(
    data: bytes, form: str, head: int, numbers: Sequence[tuple[int, int]], random: np.random.Generator
) -> bytes:
    """The file with one change, or with a few. Its ``form`` is ``bytes``, ``json``, ``lines`` of it, ``toml`` or
    ``jinja``; its first ``head`` bytes matter most, and it has ``numbers`` at these places, as (first byte, bytes).
    """
    for _ in range(1 if random.random() < 0.7 else int(random.integers(2, 5))):
        if form == "json" and random.random() < 0.8:
            data = _changed_json(data, random)
        elif form in ("lines", "toml") and random.random() < 0.8:
            data = _changed_line(data, form, random)
        elif form == "jinja" and random.random() < 0.8:
            data = _changed_words(data, random)
        elif numbers and random.random() < 0.6:
            at, width = numbers[int(random.integers(len(numbers)))]
            data = _with_number(data, at, width, random)
        else:
            data = _changed_bytes(data, head, random)
    return data


def _with_number(data: bytes, at: int, width: int, random: np.random.Generator) -> bytes:
    """A telling number in the place of another one; in four bytes it may be a float, too."""
    number = int(_NUMBERS[int(random.integers(len(_NUMBERS)))]) & (1 << 8 * width) - 1
    value = number.to_bytes(width, "little")
    if width == 4 and random.random() < 0.3:
        value = struct.pack("<f", float(random.choice([0.0, -1.0, 1e-30, 1e30, np.inf, np.nan])))
    return data[:at] + value + data[at + width :]


def _changed_bytes(data: bytes, head: int, random: np.random.Generator) -> bytes:
    if not data:
        return data
    near = min(head, len(data)) if head and random.random() < 0.9 else len(data)
    at = int(random.integers(near))
    kind = random.random()
    if kind < 0.4:
        return data[:at] + bytes([data[at] ^ 1 << int(random.integers(8))]) + data[at + 1 :]
    if kind < 0.85:
        return _with_number(data, at, int(random.choice([1, 2, 4, 8])), random)
    if kind < 0.9:
        return data[:at]
    length = int(random.integers(1, 64))
    return data[:at] + (data[at : at + length] + data[at:] if kind < 0.95 else data[at + length :])


def _changed_line(data: bytes, form: str, random: np.random.Generator) -> bytes:
    """One line with another value, or what JSON and TOML have and a parser may stumble over."""
    lines = data.split(b"\n")
    at = int(random.integers(len(lines)))
    if form == "lines" and random.random() < 0.9:
        lines[at] = _changed_json(lines[at], random)
    else:
        key = lines[at].partition(b"=")[0] + b"= " if form == "toml" else b""
        lines[at] = key + _TEXTS[int(random.integers(len(_TEXTS)))]
    return b"\n".join(lines)


def _changed_words(data: bytes, random: np.random.Generator) -> bytes:
    """Some words of a template gone, twice there, or another one in their place or before it."""
    words = re.findall(rb"\w+|\W", data)
    if not words:
        return data
    at, length = int(random.integers(len(words))), int(random.integers(1, 9))
    choice = random.random()
    if choice < 0.2:
        words[at : at + length] = []
    elif choice < 0.4:
        words[at:at] = words[at : at + length]
    else:
        other = (_WORDS, words)[int(random.random() < 0.3)]
        words[at : at + int(choice < 0.8)] = [other[int(random.integers(len(other)))]]
    return b"".join(words)


def _changed_json(data: bytes, random: np.random.Generator) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_json_places(value))
    if not places:
        return data
    # Shallow places first, or those of a vocabulary would be all there is.
    depth = int(random.integers(1, max(len(path) for path in places) + 1))
    near = [path for path in places if len(path) == depth]
    path = near[int(random.integers(len(near)))]
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    other = _VALUES[int(random.integers(len(_VALUES)))]
    if random.random() < 0.2:
        del holder[path[-1]]
    elif random.random() < 0.2 and isinstance(holder[path[-1]], (int, float)):
        holder[path[-1]] = holder[path[-1]] * 2 + 1
    else:
        holder[path[-1]] = other
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _json_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from _json_places(each, (*path, key))
