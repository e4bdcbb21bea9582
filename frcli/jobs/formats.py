"""Lines of batch files: the three forms that a row may have, and what is written for each.

    {"prompt": TEXT}                                          with custom_id (or id) and sampling settings at will
    {"messages": [{"role": ..., "content": ...}, ...]}        the same
    {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    {"custom_id": ..., "method": "POST", "url": "/v1/completions", "body": {"prompt": TEXT}}

The first two are answered by ``{"id", "text", "finish_reason", "usage"}``, where ``id`` is the row's own or the number
of its line, and the last two in the shape of OpenAI's batch output. Fields that are not known are refused by name, so
that a setting with a typing error does not silently do nothing.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

if TYPE_CHECKING:
    from frcli.decode.answer import Answer

Shape = Literal["bare", "chat", "completion"]
CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"
_OPENAI_KEYS = frozenset({"method", "url", "body"})
_OPENAI_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
_SHOWN_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One request. Either ``prompt`` or ``messages`` is given.

    ``sampling`` holds what the row sets itself, by the names of :class:`frcli.decode.sampler.Sampling`; ``max_tokens``
    and ``stop`` are None where the row says nothing. ``line`` counts from 1.
    """

    line: int
    id: str | int
    shape: Shape
    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    model: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is no request, with the reason; ``id`` is the row's own where it could be read."""

    line: int
    id: str | int
    shape: Shape
    reason: str


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _joined_parts(value: Any) -> Any:
    """The text of a message's content, which may come in parts."""
    if not isinstance(value, list):
        return value
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
    if any(not isinstance(text, str) for text in texts):
        raise ValueError("it may be a string or a list of parts of type text")
    return "".join(str(text) for text in texts)


def _check_id(value: Any) -> Any:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)) or (value and isinstance(value, str)):
        return value
    raise ValueError("it must be a string or a whole number")


_Text = Annotated[str, StringConstraints(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_Id = Annotated[Any, AfterValidator(_check_id)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined_parts)]


class _Settings(_Strict):
    max_tokens: _Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: Annotated[list[_Text] | None, BeforeValidator(_as_list)] = None

    def settings(self) -> dict[str, Any]:
        """The fields of a Row that these say."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        stop = None if self.stop is None else tuple(self.stop)
        return {"max_tokens": self.max_tokens, "stop": stop, "sampling": given}


class _Bare(_Settings):
    custom_id: _Id = None
    id: _Id = None

    @model_validator(mode="after")
    def _one_id(self) -> _Bare:
        if self.custom_id is not None and self.id is not None:
            raise ValueError("give custom_id or id, not both")
        return self

    def own_id(self, line: int) -> str | int:
        given = self.id if self.custom_id is None else self.custom_id
        return line if given is None else given


class _PromptRow(_Bare):
    prompt: str


class _MessagesRow(_Bare):
    messages: list[_Message]


class _Body(_Settings):
    model: str | None = None
    user: str | None = None
    n: Literal[1] | None = None
    stream: Literal[False] | None = None
    logit_bias: dict[str, float] | None = None

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        if self.logit_bias:
            given["sampling"]["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        return given

    @model_validator(mode="after")
    def _token_ids(self) -> _Body:
        for token in self.logit_bias or ():
            if not (token.isascii() and token.isdigit()):
                raise ValueError(f"logit_bias names {token!r}, which is no token id")
        return self


class _ChatBody(_Body):
    messages: list[_Message]
    max_completion_tokens: _Count | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> _ChatBody:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_tokens or max_completion_tokens, not both")
        return self

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        return given


class _CompletionBody(_Body):
    prompt: str


class _OpenAIRow(_Strict):
    custom_id: _Text
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class _Refused(Exception):
    """A line that is no request; says why."""


def read_row(line: bytes, number: int) -> Row | BadRow:
    """Return the request that a line of JSON holds, or what is wrong with it; ``number`` counts lines from 1."""
    row_id: str | int = number
    shape: Shape = "bare"
    try:
        content = _json(line)
        row_id = _readable_id(content, number)
        if _OPENAI_KEYS & content.keys():
            shape = "completion" if content.get("url") == COMPLETION_URL else "chat"
            row = _openai_row(content, number)
        else:
            row = _bare_row(content, number)
        _check_text(row)
        return row
    except ValidationError as error:
        return BadRow(number, row_id, shape, f"line {number}: {_problems(error)}")
    except _Refused as error:
        return BadRow(number, row_id, shape, f"line {number}: {error}")


def answered(row: Row, answer: Answer, model: str) -> dict[str, Any]:
    """Return the line to write for a row that has been answered; ``model`` is named where the row names none."""
    usage: dict[str, Any] = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    experts = dict(answer.experts)
    if row.shape == "bare":
        return {
            "id": row.id,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": {**usage, "experts": experts},
        }
    choice: dict[str, Any] = {"index": 0}
    if row.shape == "chat":
        choice["message"] = {"role": "assistant", "content": answer.text}
    else:
        choice["text"] = answer.text
    choice |= {"logprobs": None, "finish_reason": _OPENAI_REASONS[answer.finish_reason]}
    usage |= {"total_tokens": answer.prompt_tokens + answer.completion_tokens, "experts": experts}
    body = {
        "id": ("chatcmpl-" if row.shape == "chat" else "cmpl-") + uuid.uuid4().hex,
        "object": "chat.completion" if row.shape == "chat" else "text_completion",
        "created": int(time.time()),
        "model": row.model or model,
        "choices": [choice],
        "usage": usage,
    }
    response = {"status_code": 200, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
    return {"id": _batch_id(), "custom_id": row.id, "response": response, "error": None}


def failed(row: Row | BadRow, code: str, message: str) -> dict[str, Any]:
    """Return the line to write for a row that has failed; bare rows have no place for the ``code``."""
    if row.shape == "bare":
        return {"id": row.id, "error": {"message": message}}
    custom_id = row.id if isinstance(row.id, str) else None
    return {
        "id": _batch_id(),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }


def _json(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _Refused(f"byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _Refused(f"no JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise _Refused(f"no JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise _Refused("the JSON is no object in braces")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _readable_id(content: dict[str, Any], number: int) -> str | int:
    for name in ("custom_id", "id"):
        given = content.get(name)
        if given is not None and given != "" and isinstance(given, (str, int)) and not isinstance(given, bool):
            return _unicode(name, given)
    return number


def _unicode(name: str, text: str | int) -> str | int:
    """The text itself; half of a surrogate pair, which JSON can spell, could not be written again."""
    try:
        str(text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Refused(f"{name} holds half of a surrogate pair at character {error.start + 1}") from error
    return text


def _bare_row(content: dict[str, Any], number: int) -> Row:
    if "messages" in content:
        chat = _MessagesRow.model_validate(content)
        messages = tuple(message.model_dump() for message in chat.messages)
        return Row(number, chat.own_id(number), "bare", messages=messages, **chat.settings())
    if "prompt" in content:
        plain = _PromptRow.model_validate(content)
        return Row(number, plain.own_id(number), "bare", prompt=plain.prompt, **plain.settings())
    raise _Refused("there is no prompt and there are no messages")


def _openai_row(content: dict[str, Any], number: int) -> Row:
    request = _OpenAIRow.model_validate(content)
    try:
        return _body_row(request, number)
    except ValidationError as error:
        raise _Refused(_problems(error, inside="body.")) from error


def _body_row(request: _OpenAIRow, number: int) -> Row:
    if request.url == CHAT_URL:
        chat = _ChatBody.model_validate(request.body)
        messages = tuple(message.model_dump() for message in chat.messages)
        return Row(number, request.custom_id, "chat", messages=messages, model=chat.model, **chat.settings())
    if request.url == COMPLETION_URL:
        plain = _CompletionBody.model_validate(request.body)
        return Row(number, request.custom_id, "completion", prompt=plain.prompt, model=plain.model, **plain.settings())
    raise _Refused(f"the url is {request.url!r}, it must be {CHAT_URL} or {COMPLETION_URL}")


def _check_text(row: Row) -> None:
    if row.prompt is not None:
        if not row.prompt.strip():
            raise _Refused("the prompt is empty")
        _unicode("prompt", row.prompt)
    if row.messages is not None:
        if not row.messages:
            raise _Refused("there are no messages")
        if not row.messages[-1]["content"].strip():
            raise _Refused("the last message is empty")
        for message in row.messages:
            _unicode("content", message["content"])
    for stop in row.stop or ():
        _unicode("stop", stop)
    if row.model is not None:
        _unicode("model", row.model)


def _problems(error: ValidationError, inside: str = "") -> str:
    """The first few things that are wrong, each with the field that it is about."""
    told: list[str] = []
    for each in error.errors(include_url=False, include_context=False):
        place = inside + ".".join(str(part) for part in each["loc"])
        if each["type"] == "extra_forbidden":
            told.append(f"unknown field {place}")
        elif each["type"] == "missing":
            told.append(f"{place} is missing")
        else:
            message = each["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            told.append(f"{place.rstrip('.')}: {message}" if place else message)
    more = f" and {len(told) - _SHOWN_PROBLEMS} more" if len(told) > _SHOWN_PROBLEMS else ""
    return "; ".join(told[:_SHOWN_PROBLEMS]) + more


def _batch_id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"
