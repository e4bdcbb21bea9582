from __future__ import annotations

import json
import re
from typing import Any

import pytest

from frcli.decode.answer import Answer
from frcli.jobs.formats import BadRow, Row, answered, failed, read_row

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def read(content: Any, number: int = 7) -> Row | BadRow:
    return read_row(json.dumps(content).encode(), number)


def good(content: Any) -> Row:
    row = read(content)
    assert isinstance(row, Row), row
    return row


def reason(content: Any) -> str:
    row = read(content)
    assert isinstance(row, BadRow), row
    assert row.reason.startswith("line 7: ")
    return row.reason.removeprefix("line 7: ")


def openai(body: Any, url: str = CHAT, **changes: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": url, "body": body, **changes}


ANSWER = Answer("four", "eos", 11, 3, {"math": 2, "general": 1})


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
    assert chat == Row(7, "a", "chat", messages=tuple(HI), max_tokens=9, model="m")
    assert good(openai({"messages": HI, "max_completion_tokens": 4})).max_tokens == 4
    plain = good(openai({"prompt": "x", "stop": ["."]}, COMPLETION))
    assert plain == Row(7, "a", "completion", prompt="x", stop=(".",))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert good(openai({"messages": [{"role": "user", "content": parts}]})).messages == (
        {"role": "user", "content": "ab"},
    )


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
        (openai({"messages": HI, "n": 2}), "body.n: input should be 1"),
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


def test_the_answer_to_a_bare_row() -> None:
    assert answered(good({"prompt": "x", "custom_id": "q"}), ANSWER, "quartet") == {
        "id": "q",
        "text": "four",
        "finish_reason": "eos",
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "experts": {"math": 2, "general": 1}},
    }


@pytest.mark.parametrize(
    ("ours", "theirs"), [("eos", "stop"), ("stop", "stop"), ("length", "length"), ("context", "length")]
)
def test_the_answer_to_a_chat_line_has_openais_shape(ours: str, theirs: str) -> None:
    record = answered(good(openai({"messages": HI})), Answer("four", ours, 11, 3, {"math": 3}), "quartet")
    body = record["response"].pop("body")
    assert record.pop("id").startswith("batch_req_")
    assert record["response"].pop("request_id").startswith("req_")
    assert record == {"custom_id": "a", "response": {"status_code": 200}, "error": None}
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": "quartet",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "four"},
                "logprobs": None,
                "finish_reason": theirs,
            }
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "experts": {"math": 3}},
    }


def test_the_answer_to_a_completion_line() -> None:
    record = answered(good(openai({"prompt": "x", "model": "mine"}, COMPLETION)), ANSWER, "quartet")
    body = record["response"]["body"]
    assert (body["object"], body["model"]) == ("text_completion", "mine")
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": "four", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["total_tokens"] == 14


def test_failed_rows() -> None:
    assert failed(good({"prompt": "x"}), "server_error", "no") == {"id": 7, "error": {"message": "no"}}
    record = failed(good(openai({"messages": HI})), "server_error", "no")
    assert record.pop("id").startswith("batch_req_")
    assert record == {"custom_id": "a", "response": None, "error": {"code": "server_error", "message": "no"}}
    nameless = read({"method": "POST", "url": CHAT, "body": {}})
    assert isinstance(nameless, BadRow)
    assert failed(nameless, "invalid_request", nameless.reason)["custom_id"] is None
