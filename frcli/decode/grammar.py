"""What a GBNF grammar must be before llama.cpp may read it.

llama.cpp reports a grammar that does not parse, but three kinds of grammar that do parse take the process with them:

* a rule that can begin with itself behind rules that may be empty: the parser's stacks grow until memory ends;
* brackets nested, or rules chained, deeper than the C stack;
* a rule that names tokens (``<[7]>``, ``<think>``) beside rules of characters: a token that fits the mask can still be
  refused when it is accepted, and that is a C++ exception which nothing on this side can catch.

``check_grammar`` refuses these. It reads a superset of GBNF: a mistake of syntax is left for llama.cpp to name.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from frcli.errors import UsageError

MAX_CHARACTERS = 200_000
MAX_NESTING = 200
MAX_RULES = 10_000

_LEXEME = re.compile(
    r"""
      (?P<space>  (?: [ \t\r\n]+ | \#[^\r\n]* )+ )
    | (?P<text>   " (?: [^"\\] | \\. )* " )
    | (?P<chars>  \[ (?: [^\]\\] | \\. )* \] | \. )
    | (?P<token>  !?<[^>]*> )
    | (?P<rule>   [A-Za-z0-9-]+ [ \t]* ::= )
    | (?P<name>   [A-Za-z0-9-]+ )
    | (?P<repeat> [*+?] | \{ [^}]* \} )
    | (?P<mark>   [()|] )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(slots=True)
class _Rule:
    """Alternatives of a rule: each a sequence of (symbol or None for a character, may it be left out)."""

    alternatives: list[list[tuple[str | None, bool]]] = field(default_factory=lambda: [[]])


def check_grammar(text: str) -> None:
    """Raise ``UsageError`` when the grammar would hang or end the process inside llama.cpp."""
    if "\0" in text:
        raise UsageError("the grammar holds a NUL character", "remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the grammar is not valid Unicode at character {error.start}", "save it as UTF-8") from error
    if len(text) > MAX_CHARACTERS:
        raise UsageError(
            f"the grammar has {len(text)} characters, more than the {MAX_CHARACTERS} that are allowed",
            "make it shorter",
        )
    rules = _read(text)
    if len(rules) > MAX_RULES:
        raise UsageError(
            f"the grammar has {len(rules)} rules, more than the {MAX_RULES} that are allowed", "make it smaller"
        )
    name = _left_recursive(rules, _may_be_empty(rules))
    if name is not None:
        raise UsageError(
            f"the grammar's rule {name.partition('(')[0]} can begin with itself",
            "write the repetition with * or +, or put what is repeated last",
        )


def _lexemes(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _LEXEME.match(text, at)
        if match is None:
            return  # not GBNF from here on: llama.cpp says what is wrong
        at = match.end()
        kind = match.lastgroup or ""
        if kind != "space":
            yield kind, match.group()


def _read(text: str) -> dict[str, _Rule]:
    """Every rule by name; a bracket is a rule of its own, named after the rule that it stands in."""
    rules: dict[str, _Rule] = {}
    rule = _Rule()
    name = ""
    outer: list[tuple[str, _Rule]] = []
    for kind, word in _lexemes(text):
        sequence = rule.alternatives[-1]
        if kind == "rule":
            name = word.removesuffix("::=").strip()
            rule = rules[name] = _Rule()
            outer.clear()
        elif kind == "token":
            raise UsageError(
                f"the grammar names the token {word}, which llama.cpp cannot check safely", 'write its text as "..."'
            )
        elif kind == "text":
            sequence.append((None, word == '""'))
        elif kind == "chars":
            sequence.append((None, False))
        elif kind == "name":
            sequence.append((word, False))
        elif kind == "repeat":
            if sequence and (word in "*?" or re.match(r"\{\s*0+\s*[,}]", word)):
                sequence[-1] = (sequence[-1][0], True)
        elif word == "|":
            rule.alternatives.append([])
        elif word == "(":
            if len(outer) == MAX_NESTING:
                raise UsageError(f"the grammar nests brackets deeper than {MAX_NESTING}", "give the inner parts names")
            inner = f"{name}({len(rules)}"
            sequence.append((inner, False))
            outer.append((name, rule))
            rule = rules[inner] = _Rule()
        elif outer:
            name, rule = outer.pop()
    return rules


def _may_be_empty(rules: dict[str, _Rule]) -> set[str]:
    """Names of the rules that match the empty text: the least fixed point."""
    empty: set[str] = set()
    names = list(rules)
    known = -1
    while known < len(empty):
        known = len(empty)
        names.reverse()  # a chain of rules settles in one pass in one of the two directions
        for name in names:
            if any(all(optional or symbol in empty for symbol, optional in each) for each in rules[name].alternatives):
                empty.add(name)
    return empty


def _left_recursive(rules: dict[str, _Rule], empty: set[str]) -> str | None:
    """Name of a rule that can begin with itself, or None."""
    first: dict[str, list[str]] = {}
    for name, rule in rules.items():
        heads = first[name] = []
        for sequence in rule.alternatives:
            for symbol, optional in sequence:
                if symbol in rules:
                    heads.append(symbol)
                if not (optional or symbol in empty):
                    break
    done: set[str] = set()
    for start in rules:
        if start in done:
            continue
        path = [(start, iter(first[start]))]
        on_path = {start}
        while path:
            name, heads_left = path[-1]
            head = next(heads_left, None)
            if head is None:
                path.pop()
                on_path.discard(name)
                done.add(name)
            elif head in on_path:
                return head
            elif head not in done:
                path.append((head, iter(first[head])))
                on_path.add(head)
    return None


def open_grammar(api: Any, vocab: Any, text: str) -> Any:
    """llama.cpp's sampler of a grammar that ``check_grammar`` has let through; the caller frees it.

    Raises ``UsageError`` with llama.cpp's own reason where it does not parse.
    """
    with _standard_error() as said:
        grammar = api.llama_sampler_init_grammar(vocab, text.encode(), b"root")
    if grammar:
        return grammar
    reason = said.decode(errors="replace").partition("error parsing grammar: ")[2].partition("\n")[0].strip()
    if len(reason) > 100:
        reason = reason[:100].rstrip() + " ..."
    raise UsageError(
        f"the grammar cannot be used: {reason or 'llama.cpp refuses it'}", "it must be GBNF and have a rule named root"
    )


@contextmanager
def _standard_error() -> Iterator[bytearray]:
    """Collect what C code prints to standard error, where llama.cpp writes why a grammar does not parse."""
    said = bytearray()
    with tempfile.TemporaryFile() as catch:
        try:
            kept = os.dup(2)
        except OSError:  # there is no standard error
            yield said
            return
        try:
            os.dup2(catch.fileno(), 2)
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            catch.seek(0)
            said += catch.read()
