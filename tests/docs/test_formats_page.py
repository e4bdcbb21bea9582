"""docs/formats.md has every key that the code reads or writes, and none besides."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from converters import router as router_converter
from frcli.bench import trace as bench_trace
from frcli.bundle import Manifest
from frcli.chat.store import SavedConversation
from frcli.config import KINDS, LAYERS, NUMBER, SWITCH, TEXT, TEXTS, WHOLE, flag
from frcli.decode.answer import Answer, TokenScore
from frcli.decode.stopwatch import PARTS
from frcli.evaluation import comparison
from frcli.jobs import formats
from frcli.jobs.records import answered, failed
from frcli.training import known, loop

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/formats.md has no part {title}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables' rows, heads and rules left out."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines if "`" in line.split("|")[0]]


def keys(text: str) -> set[str]:
    """What the first column names; ``...x`` goes on where the key before it ends."""
    found: set[str] = set()
    for first, *_ in rows(text):
        before = ""
        for key in re.findall(r"`([^`]+)`", first):
            before = f"{before.rpartition('.')[0]}.{key[3:]}" if key.startswith("...") else key
            found.add(before)
    return found


def model_keys(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, Any]]:
    """Key and field of everything in a model of nested tables, dictionaries by NAME and lists by []."""
    for name, field in model.model_fields.items():
        kind, place = field.annotation, before + name
        inner = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, BaseModel)]
        if not inner:
            yield place, field
            continue
        origin = getattr(kind, "__origin__", None)
        if origin is tuple:
            yield place, field
        yield from model_keys(inner[0], place + {dict: ".NAME.", tuple: "[]."}.get(origin, "."))


def written_keys(value: Any, before: str = "") -> Iterator[str]:
    """Every key of a document, with its place; what lists hold is behind []."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield before + name
            yield from written_keys(inner, f"{before}{name}.")
    elif isinstance(value, list):
        for inner in value:
            yield from written_keys(inner, f"{before.removesuffix('.')}[].")


def literal_keys(function: Callable[..., Any]) -> set[str]:
    """The keys of all dictionaries that a function spells out."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    return {key.value for node in dicts for key in node.keys if isinstance(key, ast.Constant)}


def test_manifest() -> None:
    code = dict(model_keys(Manifest))
    told = {re.sub("`", "", row[0]): row[2] for row in rows(section("Manifest")) if len(row) == 4}
    assert told.keys() == code.keys()
    for key, field in code.items():
        if key == "router.base.file":
            continue  # required in its table, which may be left out
        if field.is_required():
            assert told[key].startswith("required"), key
        elif field.default is None:
            assert told[key].startswith("none"), key
        else:
            assert told[key] == f"`{json.dumps(field.default)}`", key


@pytest.mark.parametrize(
    ("column", "models"),
    [
        (2, (formats._PromptRow,)),
        (3, (formats._MessagesRow,)),
        (4, (formats._OpenAIRow,)),
        (5, (formats._ChatBody,)),
        (6, (formats._CompletionBody,)),
    ],
)
def test_batch_input(column: int, models: tuple[type[BaseModel], ...]) -> None:
    table = [row for row in rows(section("Batch input")) if len(row) >= 7]
    told = {row[0].strip("`"): row[column].strip("| ") for row in table}
    for model in models:
        code = {name: "required" if field.is_required() else "yes" for name, field in model.model_fields.items()}
        assert {name: word for name, word in told.items() if word} == code


def test_parts_of_batch_input() -> None:
    text = section("Batch input")
    for model in (formats._Message, formats._Format, formats._NamedSchema):
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}`" in text


@pytest.mark.parametrize("shape", ["bare", "chat", "completion"])
def test_batch_output(shape: formats.Shape) -> None:
    score = TokenScore(b"a", -0.5, ((b"b", -1.0),))
    answer = Answer("a", "eos", 3, 1, {"math": 1}, logprobs=(score,))
    row = formats.Row(1, "q", shape, prompt="q", logprobs=1, extra={"solution": "b"})
    told, text = keys(section("Batch output")), section("Batch output")
    for record in (answered(row, [answer], "bundle"), failed(row, "server_error", "it broke")):
        for key in written_keys(record):
            if key.startswith(("extra.", "usage.experts.", "response.body.usage.experts.")):
                continue  # names of the row and of the bundle
            place = key.replace("response.body.usage.", "usage.")
            if place.startswith("response.body.choices[].logprobs.content[]."):
                place = place.rpartition(".")[2]  # told in words
                assert f"`{place}`" in text
            elif re.search(r"top_logprobs\[\]\.", place) or place == "usage.total_tokens":
                assert "`total_tokens`" in text
            elif place not in told:
                assert any(each.startswith((f"{place}.", f"{place}[]")) for each in told), key


def test_conversations() -> None:
    code = dict(model_keys(SavedConversation))
    told = {row[0].strip("`"): row[2] for row in rows(section("Conversations"))}
    assert told.keys() == code.keys()
    for key, field in code.items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert told[key] == ("required" if field.is_required() else f"`{json.dumps(default)}`"), key


def test_traces() -> None:
    code = literal_keys(bench_trace._recorded) | literal_keys(bench_trace._lines)
    assert keys(section("Traces")) == code
    assert all(f"`{part}`" in section("Traces") for part in PARTS)


def test_configuration() -> None:
    names = {
        "text": TEXT,
        "text or list of texts": TEXTS,
        "true or false": SWITCH,
        "whole number": WHOLE,
        "number": NUMBER,
        "whole number or text": LAYERS,
    }
    table = re.findall(r"^\| ([a-z ]+) \| (`.*) \|$", section("Configuration"), re.MULTILINE)
    told = {key: names[kind] for kind, cells in table for key in re.findall(r"`([^`]+)`", cells)}
    assert told == {flag(name): kind for name, kind in KINDS.items()}


def test_comparisons() -> None:
    told = keys(section("Comparisons"))
    document = json.loads((ROOT / "benchmarks" / "comparison.json").read_text(encoding="utf-8"))
    document["samples"] = document["samples"][:1]
    assert not document.pop("groups") and "groups.GROUP" in told  # only LogiGLUE has some
    for sample in document["samples"]:
        for answer in sample["written"].values():
            answer["tokens"] = []
    names = {**dict.fromkeys(document["tasks"], "TASK"), **dict.fromkeys(document["systems"], "SYSTEM")}
    found = set()
    for key in written_keys(document):
        for name in sorted(names, key=len, reverse=True):
            key = re.sub(rf"(?<=\.){re.escape(name)}(?=\.|$)", names[name], key)
        found.add(key)
    found -= {key for key in found if any(other.startswith((f"{key}.", f"{key}[]")) for other in found)}
    found = {re.sub(r"^(differences\.SYSTEM)\.mean$", r"\1.TASK", key) for key in found}
    assert found - told == set()
    spelt = literal_keys(comparison._run) | literal_keys(comparison._cell) | literal_keys(comparison._Recorder._note)
    for key in spelt:
        assert any(f".{key}." in f"{each}." for each in told), key


def test_routers() -> None:
    tree = ast.parse(inspect.getsource(router_converter))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert keys(section("Routers")) == {text for text in texts if re.fullmatch(r"frcli\.[a-z_]+", text)}


def test_training() -> None:
    arrays = {f"{field.name}.npy" for field in fields(known.KnownRows)}
    assert keys(section("Training")) == {*arrays, "done.json"} | literal_keys(loop.fit)


def test_what_is_refused() -> None:
    """The version table is true of the two formats that have a number which users may meet."""
    from frcli.chat.store import FORMAT

    assert f"`format` {FORMAT};" in PAGE
    with pytest.raises(ValueError, match="format"):
        Manifest.model_validate({"format": 2, "name": "a", "base": {"file": "b"}, "experts": {"c": {}}})
