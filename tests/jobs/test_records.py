from __future__ import annotations

import json
from typing import Any

import pytest

from frcli.decode.answer import Answer, TokenScore
from frcli.jobs.formats import BadRow, Row, read_row
from frcli.jobs.records import answered, failed

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
ANSWER = Answer("four", "eos", 11, 3, {"math": 2, "general": 1})
EURO = "\u20ac".encode()
SCORES = (
    TokenScore(b"fo", -0.5, ((b"fo", -0.5), (b"<|im_end|>", -2.0))),
    TokenScore(EURO[:1], -1.0, ((EURO[:1], -1.0),)),
    TokenScore(EURO[1:], -0.25),
    TokenScore(b"ur", -0.125),
)


def good(content: Any, *, lenient: bool = False) -> Row:
    row = read_row(json.dumps(content).encode(), 7, lenient=lenient)
    assert isinstance(row, Row), row
    return row


def openai(body: Any, url: str = CHAT, **changes: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": url, "body": body, **changes}


def test_the_answer_to_a_bare_row() -> None:
    assert answered(good({"prompt": "x", "custom_id": "q"}), [ANSWER], "quartet") == {
        "id": "q",
        "text": "four",
        "finish_reason": "eos",
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "experts": {"math": 2, "general": 1}},
    }


@pytest.mark.parametrize(
    ("ours", "theirs"), [("eos", "stop"), ("stop", "stop"), ("length", "length"), ("context", "length")]
)
def test_the_answer_to_a_chat_line_has_openais_shape(ours: str, theirs: str) -> None:
    record = answered(good(openai({"messages": HI})), [Answer("four", ours, 11, 3, {"math": 3})], "quartet")
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
    record = answered(good(openai({"prompt": "x", "model": "mine"}, COMPLETION)), [ANSWER], "quartet")
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
    nameless = read_row(json.dumps({"method": "POST", "url": CHAT, "body": {}}).encode(), 7)
    assert isinstance(nameless, BadRow)
    assert failed(nameless, "invalid_request", nameless.reason)["custom_id"] is None


def test_several_answers_are_choices() -> None:
    other = Answer("five", "length", 11, 4, {"math": 4})
    body = answered(good(openai({"messages": HI, "n": 2})), [ANSWER, other], "m")["response"]["body"]
    assert [(each["index"], each["message"]["content"], each["finish_reason"]) for each in body["choices"]] == [
        (0, "four", "stop"),
        (1, "five", "length"),
    ]
    assert body["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 7,
        "total_tokens": 18,
        "experts": {"math": 6, "general": 1},
    }


def test_log_probabilities_have_openais_shapes() -> None:
    answer = Answer("fo\u20acur", "eos", 2, 5, {}, logprobs=SCORES)
    row = good(openai({"messages": HI, "logprobs": True, "top_logprobs": 2}))
    (choice,) = answered(row, [answer], "m")["response"]["body"]["choices"]
    assert choice["logprobs"]["refusal"] is None
    first, part, *_ = choice["logprobs"]["content"]
    assert first == {
        "token": "fo",
        "logprob": -0.5,
        "bytes": [102, 111],
        "top_logprobs": [
            {"token": "fo", "logprob": -0.5, "bytes": [102, 111]},
            {"token": "<|im_end|>", "logprob": -2.0, "bytes": list(b"<|im_end|>")},
        ],
    }
    assert (part["token"], part["bytes"]) == ("bytes:\\xe2", [0xE2])
    (choice,) = answered(good(openai({"prompt": "x", "logprobs": 2}, COMPLETION)), [answer], "m")["response"]["body"][
        "choices"
    ]
    assert choice["logprobs"] == {
        "tokens": ["fo", "bytes:\\xe2", "bytes:\\x82\\xac", "ur"],
        "token_logprobs": [-0.5, -1.0, -0.25, -0.125],
        "top_logprobs": [{"fo": -0.5, "<|im_end|>": -2.0}, {"bytes:\\xe2": -1.0}, {}, {}],
        "text_offset": [0, 2, 2, 3],
    }


def test_what_a_lenient_reader_has_kept_is_written() -> None:
    assert answered(good({"prompt": "x", "gold": 4}, lenient=True), [ANSWER], "m")["extra"] == {"gold": 4}
    row = good(openai({"messages": HI}, priority=1), lenient=True)
    assert answered(row, [ANSWER], "m")["extra"] == failed(row, "server_error", "no")["extra"] == {"priority": 1}
