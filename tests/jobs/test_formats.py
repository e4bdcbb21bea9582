from __future__ import annotations

import json
import re
from typing import Any

import pytest

from frcli.decode.json_schema import ANY_OBJECT, grammar_of
from frcli.jobs.formats import BadRow, Row, read_row

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def read(content: Any, number: int = 7, *, lenient: bool = False) -> Row | BadRow:
    return read_row(json.dumps(content).encode(), number, lenient=lenient)


def good(content: Any, *, lenient: bool = False) -> Row:
    row = read(content, lenient=lenient)
    assert isinstance(row, Row), row
    return row


def reason(content: Any) -> str:
    row = read(content)
    assert isinstance(row, BadRow), row
    assert row.reason.startswith("line 7: ")
    return row.reason.removeprefix("line 7: ")


def openai(body: Any, url: str = CHAT, **changes: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": url, "body": body, **changes}


def test_a_bare_prompt() -> None:
    assert good({"prompt": "2+2?"}) == Row(7, 7, "bare", prompt="2+2?")
    assert good({"prompt": "x", "custom_id": "q1"}).id == "q1"
    assert good({"prompt": "x", "id": 41}).id == 41
    assert good({"prompt": "x", "id": None}).id == 7


def test_a_bare_conversation() -> None:
    said = [{"role": "system", "content": "Be brief."}, *HI]
    assert good({"messages": said}) == Row(7, 7, "bare", messages=tuple(said))


def test_settings_of_a_row() -> None:
    row = good(
        {
            "prompt": "x",
            "max_tokens": 5,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "seed": 1,
            "stop": "\n",
        }
    )
    assert row.max_tokens == 5
    assert row.stop == ("\n",)
    assert row.sampling == {"temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 1}
    assert good({"prompt": "x", "stop": ["a", "b"]}).stop == ("a", "b")
    plain = good({"prompt": "x", "temperature": None})
    assert (plain.max_tokens, plain.stop, plain.sampling) == (None, None, {})


def test_settings_have_the_names_of_sampling() -> None:
    from frcli.decode.sampler import Sampling

    body = {
        "messages": HI,
        "temperature": 0.5,
        "presence_penalty": 1,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": -100},
    }
    sampling = Sampling(**good(openai(body)).sampling)
    sampling.validate()
    assert sampling == Sampling(temperature=0.5, presence_penalty=1.0, frequency_penalty=0.5, logit_bias={5: -100.0})


def test_openai_lines() -> None:
    chat = good(openai({"model": "m", "messages": HI, "max_tokens": 9, "n": 1, "stream": False, "user": "u"}))
    assert chat == Row(7, "a", "chat", messages=tuple(HI), max_tokens=9, model="m", named=True)
    assert good(openai({"messages": HI, "max_completion_tokens": 4})).max_tokens == 4
    plain = good(openai({"prompt": "x", "stop": ["."]}, COMPLETION))
    assert plain == Row(7, "a", "completion", prompt="x", stop=(".",), named=True)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert good(openai({"messages": [{"role": "user", "content": parts}]})).messages == (
        {"role": "user", "content": "ab"},
    )


def test_several_answers_and_their_log_probabilities() -> None:
    assert (good(openai({"messages": HI, "n": 3, "logprobs": True})).n) == 3
    assert good(openai({"messages": HI, "logprobs": True})).logprobs == 0
    assert good(openai({"messages": HI, "logprobs": True, "top_logprobs": 5})).logprobs == 5
    assert good(openai({"messages": HI, "logprobs": False})).logprobs is None
    assert good(openai({"prompt": "x", "logprobs": 2}, COMPLETION)).logprobs == 2


def schema(of: Any) -> dict[str, Any]:
    return {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": of}}}


def test_a_response_format_is_a_grammar() -> None:
    of = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert good(openai(schema(of))).sampling == {"grammar": grammar_of(of)}
    anything = {"messages": HI, "response_format": {"type": "json_object"}}
    assert good(openai(anything)).sampling == {"grammar": grammar_of(ANY_OBJECT)}
    assert good(openai({"messages": HI, "response_format": {"type": "text"}})).sampling == {"grammar": ""}
    assert good({"prompt": "x", "response_format": {"type": "json_object"}}).sampling == {
        "grammar": grammar_of(ANY_OBJECT)
    }


def test_a_lenient_reader_keeps_what_it_does_not_know() -> None:
    assert good({"prompt": "x", "gold": 4, "max_tokens": 2}, lenient=True).extra == {"gold": 4}
    told = [{**HI[0], "name": "me"}]
    row = good(openai({"messages": told, "functions": [1]}, priority=2), lenient=True)
    assert row.messages == tuple(HI)
    assert row.extra == {"priority": 2, "body": {"functions": [1]}}
    assert isinstance(read({"prompt": "x", "max_tokens": "2"}, lenient=True), BadRow)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"prompt": "x", "tempreature": 1}, "unknown field tempreature"),
        ({"prompt": "x", "messages": HI}, "unknown field prompt"),
        ({"prompt": 5}, "prompt: input should be a valid string"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"messages": []}, "there are no messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "the last message is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: input should be 'system'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "unknown field messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text"),
        ({}, "there is no prompt and there are no messages"),
        ([], "no object in braces"),
        ("text", "no object in braces"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens: input should be a valid integer"),
        ({"prompt": "x", "temperature": "0"}, "temperature: input should be a valid number"),
        ({"prompt": "x", "seed": 1.5}, "seed: input should be a valid integer"),
        ({"prompt": "x", "stop": ["a", ""]}, "stop.1: string should have at least 1 character"),
        ({"prompt": "x", "stop": 5}, "stop: input should be a valid list"),
        ({"prompt": "x", "id": 1, "custom_id": "a"}, "give custom_id or id, not both"),
        ({"prompt": "x", "custom_id": ""}, "custom_id: it must be a string or a whole number"),
        ({"prompt": "x", "custom_id": [1]}, "custom_id: it must be a string or a whole number"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "x", "custom_id": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "x", "a": 1, "b": 1, "c": 1, "d": 1, "e": 1}, "unknown field c and 2 more"),
        (openai({"messages": HI}, method="GET"), "method: input should be 'POST'"),
        (openai({"input": "x"}, "/v1/embeddings"), "the url is '/v1/embeddings'"),
        (openai({"messages": HI, "functions": []}), "unknown field body.functions"),
        (openai({"messages": HI, "n": 0}), "body.n: input should be greater than or equal to 1"),
        (openai({"messages": HI, "top_logprobs": 2}), "top_logprobs needs logprobs true"),
        (openai({"messages": HI, "logprobs": 2}), "body.logprobs: input should be a valid boolean"),
        (openai({"messages": HI, "logprobs": True, "top_logprobs": 21}), "less than or equal to 20"),
        (openai({"messages": HI, "response_format": {"type": "xml"}}), "body.response_format.type: input should be"),
        (openai({"messages": HI, "response_format": {"type": "json_schema"}}), "json_schema belongs to the type"),
        (
            openai(schema({"type": "string", "pattern": "a+"})),
            "the schema's pattern is nothing that",
        ),
        (openai({"messages": HI, "stream": True}), "body.stream: input should be False"),
        (openai({"prompt": "x"}), "body.messages is missing"),
        (openai({"prompt": ["x", "y"]}, COMPLETION), "body.prompt: input should be a valid string"),
        (openai({"prompt": ""}, COMPLETION), "the prompt is empty"),
        (openai({"messages": HI, "logit_bias": {"x": 1}}), "logit_bias names 'x'"),
        (openai({"messages": HI, "max_tokens": 1, "max_completion_tokens": 1}), "not both"),
        (openai("x"), "body: input should be a valid dictionary"),
        ({"method": "POST", "url": CHAT, "body": {"messages": HI}}, "custom_id is missing"),
        (openai({"messages": HI}, priority=1), "unknown field priority"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(content: Any, expected: str) -> None:
    said = reason(content)
    assert expected in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"prompt": "x"', "no JSON: .* at column 15"),
        (b"prompt: x", "no JSON"),
        (b'{"prompt": "\xff"}', "byte 13 is not UTF-8"),
        (b'{"prompt": "x", "temperature": NaN}', ".*: NaN is no number"),
        (b'{"prompt": "x", "temperature": -Infinity}', ".*: -Infinity is no number"),
        (b'{"prompt": "x"} {"prompt": "y"}', "no JSON"),
        (b"[" * 100_000, "no JSON that can be read"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "no JSON that can be read"),
    ],
)
def test_lines_that_are_no_json(line: bytes, expected: str) -> None:
    row = read_row(line, 3)
    assert isinstance(row, BadRow)
    assert (row.line, row.id, row.shape) == (3, 3, "bare")
    assert re.match(f"line 3: {expected}", row.reason)


def test_a_bad_row_keeps_its_id_and_shape() -> None:
    bad = read(openai({"messages": []}))
    assert isinstance(bad, BadRow)
    assert (bad.id, bad.shape) == ("a", "chat")
    plain = read(openai({"prompt": ""}, COMPLETION, custom_id="b"))
    assert isinstance(plain, BadRow)
    assert (plain.id, plain.shape) == ("b", "completion")
    assert read({"prompt": "", "id": 5}).id == 5
