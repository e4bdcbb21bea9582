"""JSON Schema as a grammar that a :class:`~frcli.decode.sampler.Sampler` can hold an answer to.

Whatever the grammar lets through is JSON and fits the schema; it may let through less than the schema does:

* properties come in the order in which the schema has them, and no others than those are written;
* white space is one blank, or a line break with up to 20 blanks behind it;
* numbers have at most 15 digits before and behind the point where the schema sets no limit, and no exponent where it
  does;
* ``oneOf`` is read as ``anyOf``, a date is never the 29th of February, and formats other than ``date``,
  ``time``, ``date-time`` and ``uuid`` say nothing, as the standard has it.

What a grammar cannot keep (``pattern``, ``uniqueItems``, ``multipleOf``, ``not``, ``if``, ...) is refused by name: a
schema that held only half of what it says would be worse than none. llama-cpp-python has a converter too; it lets raw
line breaks into strings, loses the backslashes of ``enum``, and passes over keywords that it does not know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from frcli.decode.gbnf import DIGITS, either, literal, magnitudes, naturals, repeat
from frcli.errors import UsageError

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of OpenAI's ``json_object``."""

MAX_REPEATS = 2000  # llama.cpp refuses larger counts of a repetition
MAX_DEPTH = 100
_SPACE = r'(" " | "\n" [ \t]{0,20})?'
_HEX = "[0-9a-fA-F]"
_BUILT_IN = {
    "ws": _SPACE,
    # A lone half of a surrogate pair is no text, and a pair would count as two characters of minLength.
    "char": r'[^"\\\x00-\x1f\x7f] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] '
    + f"{_HEX}{{3}} | [dD] [0-7] {_HEX}{{2}}))",
    "string": r'"\"" char* "\""',
    "integer": f'"-"? ("0" | [1-9] [0-9]{{0,{DIGITS - 1}}})',
    "number": f'integer ("." [0-9]{{1,{DIGITS}}})? ([eE] [-+]? [0-9]{{1,2}})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": r'"{" ws (member ("," ws member)*)? "}"',
    "member": 'string ":" ws value ws',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
    "date": '[1-9] [0-9]{3} "-" (("0" [13578] | "1" [02]) "-" (day | "29" | "3" [01]) '
    '| ("0" [469] | "11") "-" (day | "29" | "30") | "02-" day)',
    "day": '"0" [1-9] | "1" [0-9] | "2" [0-8]',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "date-time": 'date "T" time',
    "uuid": f'{_HEX}{{8}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{12}}',
}
_NEEDS = {
    "string": ("char",),
    "number": ("integer",),
    "value": ("object", "array", "string", "number", "boolean", "null"),
    "object": ("ws", "member"),
    "member": ("string", "ws", "value"),
    "array": ("ws", "value"),
    "date": ("day",),
    "date-time": ("date", "time"),
}
_FORMATS = ("date", "time", "date-time", "uuid")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_KEYWORDS = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "format"),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": (),
    "null": (),
}
_ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "example",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
        "definitions",
        "$schema",
        "$id",
        "$comment",
        "$defs",
        "$anchor",
    ]
)
_PYTHON: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def grammar_of(schema: Any) -> str:
    """The GBNF grammar, with a rule named ``root``, of a JSON schema as ``json.loads`` gives it.

    Raises ``UsageError`` naming the first part that is no schema, or that a grammar cannot keep.
    """
    return _Converter(schema).text()


class _Converter:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}
        self._depth = 0

    def text(self) -> str:
        root = self._visit(self._schema, "")
        return "".join(f"{name} ::= {rule}\n" for name, rule in {"root": root, **self._rules}.items())

    def _built_in(self, name: str) -> str:
        if name not in self._rules:
            self._rules[name] = _BUILT_IN[name]
            for other in _NEEDS.get(name, ()):
                self._built_in(other)
        return name

    def _named(self, rule: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = rule
        return name

    def _visit(self, schema: Any, place: str) -> str:
        """What stands for ``schema`` in a sequence: a name, a text, or an expression in brackets."""
        if self._depth >= MAX_DEPTH:
            raise UsageError(f"the schema is nested deeper than {MAX_DEPTH} at {place}", "make it flatter")
        self._depth += 1
        try:
            return self._one_of_the_kinds(schema, place)
        finally:
            self._depth -= 1

    def _one_of_the_kinds(self, schema: Any, place: str) -> str:
        if schema is True:
            return self._built_in("value")
        if not isinstance(schema, Mapping):
            raise UsageError(f"{_part(place)} is {json.dumps(schema)[:40]}", "a schema is an object in braces")
        said = {name for name in schema if name not in _ANNOTATIONS and not name.startswith("x-")}
        if "$ref" in said:
            _only(said, {"$ref"}, place)
            return self._reference(schema["$ref"], place)
        for name in ("enum", "const"):
            if name in said:
                _only(said, {name, "type"}, place)
                values = [schema["const"]] if name == "const" else _list(schema["enum"], f"{place}.enum")
                return self._values(values, schema.get("type"), place)
        for name in ("anyOf", "oneOf", "allOf"):
            if name in said:
                _only(said, {name}, place)
                parts = _list(schema[name], f"{place}.{name}")
                if name == "allOf" and len(parts) > 1:
                    raise _unkept(f"{place}.allOf", "write what all of them say as one schema")
                return either([self._visit(part, f"{place}.{name}.{i}") for i, part in enumerate(parts)])
        return self._typed(schema, said - {"type"}, place)

    def _typed(self, schema: Mapping[str, Any], said: set[str], place: str) -> str:
        types = _types(schema, said, place)
        if not types:
            _only(said, set(), place)
            return self._built_in("value")
        _only(said, {name for kind in types for name in _KEYWORDS[kind]}, place)
        makers: Mapping[str, Callable[[Mapping[str, Any], str], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
        }
        return either([makers[kind](schema, place) if kind in makers else self._built_in(kind) for kind in types])

    def _reference(self, ref: Any, place: str) -> str:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise UsageError(f"{_part(place)} refers to {ref!r}", "a $ref must point into the schema itself, as #/...")
        if ref not in self._refs:
            target = self._schema
            for step in ref.split("/")[1:]:
                key = unquote(step).replace("~1", "/").replace("~0", "~")
                if isinstance(target, list) and key.isdigit() and int(key) < len(target):
                    target = target[int(key)]
                elif isinstance(target, Mapping) and key in target:
                    target = target[key]
                else:
                    raise UsageError(f"{_part(place)} refers to {ref!r}, which is not there", "correct the $ref")
            name = self._refs[ref] = self._named("")  # before it is visited: it may contain itself
            self._rules[name] = self._visit(target, ref)
        return self._refs[ref]

    def _values(self, values: Sequence[Any], kind: Any, place: str) -> str:
        if kind is not None:
            kinds = _types({"type": kind}, set(), place)
            values = [value for value in values if any(_PYTHON[kind](value) for kind in kinds)]
        if not values:
            raise UsageError(f"{_part(place)} allows no value", "name at least one that has the type")
        return either([literal(json.dumps(value, ensure_ascii=False)) for value in values])

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        properties = schema.get("properties", {})
        if not isinstance(properties, Mapping):
            raise UsageError(f"{_part(f'{place}.properties')} is no object in braces", "correct the schema")
        required = _list(schema.get("required", []), f"{place}.required", empty=True)
        others = schema.get("additionalProperties", True)
        fields = {name: (part, f"{place}.properties.{name}") for name, part in properties.items()}
        for name in required:
            if not isinstance(name, str) or (name not in fields and others is False):
                raise UsageError(f"{_part(place)} requires {name!r} and has no such property", "correct the schema")
            fields.setdefault(name, (others, f"{place}.additionalProperties"))
        if not fields and "properties" not in schema and others is not False:
            return self._map(others, place)
        self._built_in("ws")
        members = [
            (self._named(f"{literal(json.dumps(name, ensure_ascii=False) + ':')} ws {self._visit(part, at)} ws"), name)
            for name, (part, at) in fields.items()
        ]
        rest = ""
        starts: list[str] = []
        for member, name in reversed(members):  # from the end: what may follow is known then
            starts = ([] if name in required else starts) + [f"{member} {rest}".strip()]
            more = f'"," ws {member}' if name in required else f'("," ws {member})?'
            rest = self._named(f"{more} {rest}".strip())
        optional = "" if required else "?"
        return f'"{{" ws ({" | ".join(reversed(starts))}){optional} "}}"' if starts else '"{" ws "}"'

    def _map(self, values: Any, place: str) -> str:
        if values is True or values == {}:
            return self._built_in("object")
        self._built_in("ws")
        value = self._visit(values, f"{place}.additionalProperties")
        member = self._named(f'{self._built_in("string")} ":" ws {value} ws')
        return f'"{{" ws ({member} ("," ws {member})*)? "}}"'

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        if schema.get("uniqueItems"):
            raise _unkept(f"{place}.uniqueItems")
        least, most = _counts(schema, "minItems", "maxItems", place)
        self._built_in("ws")
        if "prefixItems" in schema:
            parts = _list(schema["prefixItems"], f"{place}.prefixItems")
            if not least <= len(parts) <= (len(parts) if most is None else most):
                raise _unkept(f"{place}.prefixItems", "give it as many items as minItems and maxItems allow")
            items = [self._visit(part, f"{place}.prefixItems.{i}") for i, part in enumerate(parts)]
            return '"[" ws ' + ' "," ws '.join(f"{item} ws" for item in items) + ' "]"'
        kind = schema.get("items", True)
        if most == 0 or (kind is False and least == 0):
            return '"[" ws "]"'
        item = self._named(f"{self._visit(kind, f'{place}.items')} ws")
        more = repeat(f'("," ws {item})', max(0, least - 1), None if most is None else most - 1)
        return f'"[" ws ({item} {more}){"" if least else "?"} "]"'

    def _string(self, schema: Mapping[str, Any], place: str) -> str:
        least, most = _counts(schema, "minLength", "maxLength", place)
        bounded = least > 0 or most is not None
        if (form := schema.get("format")) in _FORMATS:
            if bounded:
                raise _unkept(f"{place}.format beside a length", "leave the length out")
            return rf'"\"" {self._built_in(form)} "\""'
        if not bounded:
            return self._built_in("string")
        return rf'"\"" {repeat(self._built_in("char"), least, most)} "\""'

    def _integer(self, schema: Mapping[str, Any], place: str) -> str:
        low, low_open, high, high_open = _limits(schema, place)
        if low is None and high is None:
            return self._built_in("integer")
        least = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
        if least is not None and most is not None and least > most:
            raise UsageError(f"{_part(place)} allows no integer", "correct its minimum and maximum")
        parts = []
        if most is None or most >= 0:
            parts.append(naturals(max(0, least or 0), most))
        if least is None or least < 0:
            parts.append(f'"-" {naturals(1 if most is None else max(1, -most), None if least is None else -least)}')
        return either(parts)

    def _number(self, schema: Mapping[str, Any], place: str) -> str:
        low, low_open, high, high_open = _limits(schema, place)
        if low is None and high is None:
            return self._built_in("number")
        for limit in (low, high):
            if limit is not None and limit != int(limit):
                raise _unkept(f"{place}'s limit {limit}", "use whole numbers as limits")
        parts = []
        if high is None or high > 0 or (high == 0 and not high_open):
            above = low is not None and low >= 0
            start = int(low) if low is not None and above else 0
            parts += magnitudes(start, high, above and low_open, high_open)
        if low is None or low < 0:
            below = high is not None and high <= 0
            start = -int(high) if high is not None and below else 0
            negative = magnitudes(start, None if low is None else -low, below and high_open, low_open)
            parts += [f'"-" {part}' for part in negative]
        if not parts:
            raise UsageError(f"{_part(place)} allows no number", "correct its minimum and maximum")
        return either(parts)


def _part(place: str) -> str:
    return f"the schema's {place.removeprefix('.')}" if place else "the schema"


def _unkept(place: str, hint: str = "leave it out and check the answers yourself") -> UsageError:
    return UsageError(f"{_part(place)} is nothing that a grammar can keep", hint)


def _only(said: set[str], known: set[str], place: str) -> None:
    if unknown := sorted(said - known):
        raise _unkept(f"{place}.{unknown[0]}")


def _list(value: Any, place: str, *, empty: bool = False) -> list[Any]:
    if not isinstance(value, list) or not (value or empty):
        raise UsageError(f"{_part(place)} is {json.dumps(value)[:40]}", "it must be a list that is not empty")
    return value


def _types(schema: Mapping[str, Any], said: set[str], place: str) -> list[str]:
    """The types that the schema names, or the one whose keywords it uses."""
    given = schema.get("type")
    if given is None:
        return [kind for kind in ("object", "array", "string", "number") if said & set(_KEYWORDS[kind])][:1]
    kinds = [given] if isinstance(given, str) else _list(given, f"{place}.type")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in _KEYWORDS:
            raise UsageError(f"{_part(place)} has the type {kind!r}", f"it is one of {', '.join(_KEYWORDS)}")
    return kinds


def _counts(schema: Mapping[str, Any], least: str, most: str, place: str) -> tuple[int, int | None]:
    low, high = schema.get(least, 0), schema.get(most)
    for name, value in ((least, low), (most, high)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise UsageError(f"{_part(f'{place}.{name}')} is {value!r}", "it must be a whole number")
        if value is not None and value > MAX_REPEATS:
            raise _unkept(f"{place}.{name} of {value}", f"a grammar counts to {MAX_REPEATS}")
    if high is not None and low > high:
        raise UsageError(f"{_part(place)} has a {least} of {low} and a {most} of {high}", "correct the schema")
    return low, high


def _limits(schema: Mapping[str, Any], place: str) -> tuple[float | None, bool, float | None, bool]:
    """Lower limit, whether it is excluded itself, and the same for the upper one."""
    for name in _BOUNDS:
        value = schema.get(name)
        if value is not None and not (_PYTHON["number"](value) and abs(value) < 10**DIGITS):
            raise UsageError(f"{_part(f'{place}.{name}')} is {value!r}", "it must be a number of at most 15 digits")
    low = max(((schema[n], n.startswith("ex")) for n in ("minimum", "exclusiveMinimum") if n in schema), default=None)
    high = min(
        ((schema[n], not n.startswith("ex")) for n in ("maximum", "exclusiveMaximum") if n in schema), default=None
    )
    return (*(low or (None, False)), *((high[0], not high[1]) if high else (None, False)))
