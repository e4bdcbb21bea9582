"""What is written for a row: an answer, or why there is none.

A bare row gets ``{"id", "text", "finish_reason", "usage"}``, where ``id`` is its own or the number of its line, and a
line of OpenAI's batch format what OpenAI answers.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from frcli.decode.answer import Answer, TokenScore
from frcli.jobs.formats import BadRow, Row

_OPENAI_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


def answered(row: Row, answers: Sequence[Answer], model: str) -> dict[str, Any]:
    """Return the line to write for a row that has been answered, ``n`` times where it asked for that; ``model`` is
    named where the row names none.
    """
    usage: dict[str, Any] = {
        "prompt_tokens": answers[0].prompt_tokens,
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
    }
    experts = dict(sum((Counter(answer.experts) for answer in answers), Counter[str]()))
    extra = {"extra": row.extra} if row.extra else {}
    if row.shape == "bare":
        return {
            "id": row.id,
            "text": answers[0].text,
            "finish_reason": answers[0].finish_reason,
            "usage": {**usage, "experts": experts},
            **extra,
        }
    usage |= {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"], "experts": experts}
    body = {
        "id": ("chatcmpl-" if row.shape == "chat" else "cmpl-") + uuid.uuid4().hex,
        "object": "chat.completion" if row.shape == "chat" else "text_completion",
        "created": int(time.time()),
        "model": row.model or model,
        "choices": [_choice(row, index, answer) for index, answer in enumerate(answers)],
        "usage": usage,
    }
    response = {"status_code": 200, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
    return {"id": _batch_id(), "custom_id": row.id, "response": response, "error": None, **extra}


def _choice(row: Row, index: int, answer: Answer) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index}
    logprobs: dict[str, Any] | None = None
    if row.shape == "chat":
        choice["message"] = {"role": "assistant", "content": answer.text}
        if row.logprobs is not None:
            logprobs = {"content": [_chat_score(each) for each in answer.logprobs], "refusal": None}
    else:
        choice["text"] = answer.text
        if row.logprobs is not None:
            logprobs = _completion_scores(answer.logprobs)
    return {**choice, "logprobs": logprobs, "finish_reason": _OPENAI_REASONS[answer.finish_reason]}


def _chat_score(score: TokenScore) -> dict[str, Any]:
    top = [_token(text, logprob) for text, logprob in score.top]
    return {**_token(score.text, score.logprob), "top_logprobs": top}


def _token(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _shown(text), "logprob": logprob, "bytes": list(text)}


def _completion_scores(scores: Sequence[TokenScore]) -> dict[str, Any]:
    offsets = []
    before = b""
    for score in scores:
        offsets.append(len(before.decode(errors="ignore")))
        before += score.text
    return {
        "tokens": [_shown(score.text) for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [{_shown(text): logprob for text, logprob in score.top} for score in scores],
        "text_offset": offsets,
    }


def _shown(text: bytes) -> str:
    """A token as text; one that is no whole character is spelt as OpenAI does, ``bytes:\\xe2\\x82``."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def failed(row: Row | BadRow, code: str, message: str) -> dict[str, Any]:
    """Return the line to write for a row that has failed; bare rows have no place for the ``code``."""
    extra = {"extra": row.extra} if isinstance(row, Row) and row.extra else {}
    if row.shape == "bare":
        return {"id": row.id, "error": {"message": message}, **extra}
    custom_id = row.id if isinstance(row.id, str) else None
    return {
        "id": _batch_id(),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
        **extra,
    }


def _batch_id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"
