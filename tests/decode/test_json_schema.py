"""JSON schemas as grammars, asked of llama.cpp's own grammar sampler: what it lets through must be JSON that fits."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tiny import TinyShape, TinyVocabulary, write_gguf

from frcli.decode.json_schema import ANY_OBJECT, MAX_DEPTH, grammar_of
from frcli.decode.sampler import Sampler, Sampling
from frcli.errors import UsageError
from frcli.sources.llama import LlamaModel

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a\n", 'q"', "\\", "\u00e9"]}, "maxItems": 3},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
    },
    "$ref": "#/$defs/node",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """A vocabulary of single bytes and a few words."""
    path = write_gguf(tmp_path_factory.mktemp("schema") / "tiny.gguf", TinyShape(vocabulary=TinyVocabulary()))
    opened = LlamaModel(path, vocab_only=True)
    yield opened
    opened.close()


def accepts(model: LlamaModel, schema: Any, text: str) -> bool:
    """Whether the whole text is let through."""
    with Sampler(Sampling(temperature=0, grammar=grammar_of(schema)), model.size, model.vocab) as sampler:
        try:
            for byte in text.encode():
                sampler.accept(3 + byte)
            sampler.accept(0)  # the end of the text
        except UsageError:
            return False
    return True


def written(model: LlamaModel, schema: Any, seed: int) -> str | None:
    """What a model that knows nothing writes under the schema; None when it came to no end."""
    random = np.random.default_rng(seed)
    data = b""
    with Sampler(Sampling(temperature=0, grammar=grammar_of(schema)), model.size, model.vocab) as sampler:
        for _ in range(400):
            row = random.normal(size=model.size).astype(np.float32)
            row[:3] += 3  # it likes to end, and wins soon where it may
            row[3 + ord('"')] += 2
            row[3 + 128 : 3 + 256] = -9  # llama.cpp looks at characters, and lets bytes through that are none
            token = sampler.sample(row)
            if model.is_end(token):
                return data.decode()
            sampler.accept(token)
            data += model.piece(token)
    return None


def person(value: Any) -> bool:
    return (
        isinstance(value["name"], str)
        and 1 <= len(value["name"]) <= 5
        and all(tag in ("a\n", 'q"', "\\", "\u00e9") for tag in value["tags"])
        and len(value["tags"]) <= 3
        and 0 <= value.get("age", 0) <= 130
        and set(value) <= {"name", "age", "tags"}
    )


def is_tree(value: Any) -> bool:
    return value is None or (set(value) <= {"next"} and is_tree(value.get("next")))


FITS: list[tuple[Any, Callable[[Any], bool]]] = [
    (ANY_OBJECT, lambda value: isinstance(value, dict)),
    (True, lambda value: True),
    (PERSON, person),
    (TREE, is_tree),
    ({"type": "string"}, lambda value: isinstance(value, str)),
    ({"type": ["integer", "null"], "exclusiveMinimum": 5}, lambda value: value is None or value > 5),
    ({"type": "integer", "minimum": -120, "maximum": 37}, lambda value: -120 <= value <= 37 and value == int(value)),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, lambda value: 0 < value <= 1),
    ({"type": "number", "minimum": -3, "exclusiveMaximum": 12}, lambda value: -3 <= value < 12),
    ({"type": "number", "exclusiveMaximum": -7}, lambda value: value < -7),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
        lambda value: len(value) >= 2 and {*value} <= {True, False},
    ),
    ({"prefixItems": [{"const": 1}, {"type": "null"}]}, lambda value: value == [1, None]),
    ({"type": "string", "format": "date"}, lambda value: bool(datetime.date.fromisoformat(value))),
    ({"type": "string", "format": "date-time"}, lambda value: bool(datetime.datetime.fromisoformat(value))),
    ({"type": "string", "format": "uuid"}, lambda value: bool(uuid.UUID(value))),
    (
        {"additionalProperties": {"type": "integer"}},
        lambda value: all(isinstance(each, int) for each in value.values()),
    ),
    (
        {"properties": {"a": {"const": {"b": [1]}}}, "required": ["c"]},
        lambda value: "c" in value and value.get("a", {"b": [1]}) == {"b": [1]},
    ),
]


@pytest.mark.parametrize(("schema", "fits"), FITS)
def test_what_is_let_through_is_json_and_fits(model: LlamaModel, schema: Any, fits: Callable[[Any], bool]) -> None:
    texts = [text for seed in range(12) if (text := written(model, schema, seed)) is not None]
    assert texts
    assert [text for text in texts if not fits(json.loads(text))] == []


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (
            PERSON,
            ['{"name":"x","tags":[]}', '{"name": "x", "age": 7, "tags": ["\\\\", "\u00e9"]}'],
            ['{"tags":[]}', '{"name":"","tags":[]}'],
        ),
        (
            PERSON,
            ['{\n  "name": "x",\n  "tags": []\n}'],
            ['{"name":"x","tags":[],"b":1}', '{"name":"toolong","tags":[]}'],
        ),
        (TREE, ["{}", '{"next":{"next":null}}'], ['{"next":1}', "null"]),
        ({"type": "string"}, ['"\\ud7ff\u20ac"', '""'], ['"\n"', '"\\ud800"', '"a', "a"]),
        ({"enum": ["a", 1, None], "type": ["string", "null"]}, ['"a"', "null"], ["1"]),
        ({"type": "array", "maxItems": 1}, ["[]", "[[]]"], ["[1,2]"]),
        ({"type": "object", "properties": {}, "additionalProperties": False}, ["{}"], ['{"a":1}']),
        ({"type": "string", "maxLength": 0}, ['""'], ['"a"']),
        ({"type": "string", "format": "date"}, ['"2026-12-31"'], ['"2026-02-30"', '"2026-04-31"']),
    ],
)
def test_texts(model: LlamaModel, schema: Any, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not accepts(model, schema, text)] == []
    assert [text for text in wrong if accepts(model, schema, text)] == []


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 9), (7, 12), (10, 19), (15, 17), (98, 105), (199, 1000), (-25, -3), (-4, 30)]
)
def test_whole_numbers_between_two_limits_are_exactly_these(model: LlamaModel, low: int, high: int) -> None:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    near = {*range(low - 12, low + 12), *range(high - 12, high + 12), 0, -1, 1, 5, 50, 101, 500, 2000}
    assert {n for n in near if accepts(model, schema, str(n))} == {n for n in near if low <= n <= high}
    assert not accepts(model, schema, f"0{max(low, 1)}")


def deep(levels: int) -> dict[str, Any]:
    return {"items": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([], "the schema is [];"),
        ({"type": "strin"}, "the schema has the type 'strin'; it is one of object"),
        ({"type": [[]]}, "the schema has the type []; it is one of object"),
        (
            {"properties": {"a": {"pattern": "x"}}},
            "the schema's properties.a.pattern is nothing that a grammar can keep",
        ),
        ({"type": "string", "minLenght": 1}, "minLenght"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "maxLength": 5000}, "maxLength of 5000"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength of 3 and a maxLength of 2"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "allows no integer"),
        ({"type": "number", "minimum": 0.5}, "limit 0.5"),
        ({"allOf": [{}, {}]}, "allOf"),
        ({"anyOf": []}, "anyOf is []"),
        ({"enum": ["a"], "type": "integer"}, "allows no value"),
        ({"$ref": "https://example.org"}, "must point into the schema itself"),
        ({"$ref": "#/$defs/x"}, "which is not there"),
        ({"properties": {}, "required": ["x"], "additionalProperties": False}, "requires 'x'"),
        (deep(MAX_DEPTH + 1), "nested deeper than"),
    ],
)
def test_what_a_grammar_cannot_keep_is_refused_by_name(schema: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        grammar_of(schema)
    assert said in str(caught.value)


def test_a_schema_that_is_only_itself_is_refused(model: LlamaModel) -> None:
    with pytest.raises(UsageError, match="can begin with itself"):
        accepts(model, {"$ref": "#"}, "1")
