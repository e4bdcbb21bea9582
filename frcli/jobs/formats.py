"""Rows of batch files: the three forms that a line may have.

    {"prompt": TEXT}                                          with custom_id (or id) and sampling settings at will
    {"messages": [{"role": ..., "content": ...}, ...]}        the same
    {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    {"custom_id": ..., "method": "POST", "url": "/v1/completions", "body": {"prompt": TEXT}}

Fields that are not known are refused by name, so that a setting with a typing error does not silently do nothing; a
lenient reader keeps them as the row's ``extra``, which is written with its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn

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

from frcli.decode.json_schema import ANY_OBJECT, grammar_of
from frcli.errors import UsageError

Shape = Literal["bare", "chat", "completion"]
CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"
_OPENAI_KEYS = frozenset({"method", "url", "body"})
_SHOWN_PROBLEMS = 3
_MOST_CHOICES = 128
_MOST_RIVALS = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One request. Either ``prompt`` or ``messages`` is given.

    ``id`` is the row's own if it is ``named``, else the number of its ``line``, which counts from 1. ``sampling`` holds
    what the row sets itself, by the names of :class:`frcli.decode.sampler.Sampling`; ``max_tokens`` and ``stop`` are
    None where the row says nothing. ``n`` answers are wanted, and with ``logprobs`` the log probabilities of their
    tokens and of so many others at the same place. ``extra`` are fields that nobody knows.
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
    n: int = 1
    logprobs: int | None = None
    named: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is no request, with the reason; ``id`` is the row's own if it is ``named``, where it could be read,
    else the number of its ``line``.
    """

    line: int
    id: str | int
    shape: Shape
    reason: str
    named: bool = False


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


class _NamedSchema(_Strict):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[Any, Field(alias="schema")] = True


class _Format(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _NamedSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> _Format:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema")
        return self

    def grammar(self) -> str:
        if self.type == "text":
            return ""
        return grammar_of(ANY_OBJECT if self.json_schema is None else self.json_schema.schema_)


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
    response_format: _Format | None = None

    def settings(self) -> dict[str, Any]:
        """The fields of a Row that these say."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        stop = None if self.stop is None else tuple(self.stop)
        if self.response_format is not None:
            given["grammar"] = self.response_format.grammar()
        return {"max_tokens": self.max_tokens, "stop": stop, "sampling": given}


class _Bare(_Settings):
    custom_id: _Id = None
    id: _Id = None

    @model_validator(mode="after")
    def _one_id(self) -> _Bare:
        if self.custom_id is not None and self.id is not None:
            raise ValueError("give custom_id or id, not both")
        return self

    def own_id(self, line: int) -> dict[str, Any]:
        given = self.id if self.custom_id is None else self.custom_id
        return {"id": line if given is None else given, "named": given is not None}


class _PromptRow(_Bare):
    prompt: str


class _MessagesRow(_Bare):
    messages: list[_Message]


class _Body(_Settings):
    model: str | None = None
    user: str | None = None
    n: Annotated[int | None, Field(ge=1, le=_MOST_CHOICES)] = None
    stream: Literal[False] | None = None
    logit_bias: dict[str, float] | None = None

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        given["n"] = self.n or 1
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
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=_MOST_RIVALS)] = None

    @model_validator(mode="after")
    def _go_together(self) -> _ChatBody:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_tokens or max_completion_tokens, not both")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs true")
        return self

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        return {**given, "logprobs": (self.top_logprobs or 0) if self.logprobs else None}


class _CompletionBody(_Body):
    prompt: str
    logprobs: Annotated[int | None, Field(ge=0, le=_MOST_RIVALS)] = None

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "logprobs": self.logprobs}


class _OpenAIRow(_Strict):
    custom_id: _Text
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class _Refused(Exception):
    """A line that is no request; says why."""


def read_row(line: bytes, number: int, *, lenient: bool = False) -> Row | BadRow:
    """Return the request that a line of JSON holds, or what is wrong with it; ``number`` counts lines from 1.

    ``lenient`` keeps fields that are not known instead of refusing them.
    """
    row_id: str | int | None = None
    shape: Shape = "bare"
    try:
        content = _json(line)
        row_id = _readable_id(content)
        if _OPENAI_KEYS & content.keys():
            shape = "completion" if content.get("url") == COMPLETION_URL else "chat"
            row = _openai_row(content, number, lenient)
        else:
            row = _bare_row(content, number, lenient)
        _check_text(row)
        return row
    except ValidationError as error:
        reason = _problems(error)
    except (_Refused, UsageError) as error:
        reason = str(error)
    return BadRow(number, number if row_id is None else row_id, shape, f"line {number}: {reason}", row_id is not None)


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


def _readable_id(content: dict[str, Any]) -> str | int | None:
    for name in ("custom_id", "id"):
        given = content.get(name)
        if given is not None and given != "" and isinstance(given, (str, int)) and not isinstance(given, bool):
            return _unicode(name, given)
    return None


def _unicode(name: str, text: str | int) -> str | int:
    """The text itself; half of a surrogate pair, which JSON can spell, could not be written again."""
    try:
        str(text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Refused(f"{name} holds half of a surrogate pair at character {error.start + 1}") from error
    return text


def _bare_row(content: dict[str, Any], number: int, lenient: bool) -> Row:
    if "messages" in content:
        known, extra = _known(_MessagesRow, content, lenient)
        chat = _MessagesRow.model_validate(known)
        messages = tuple(message.model_dump() for message in chat.messages)
        return Row(number, **chat.own_id(number), shape="bare", messages=messages, extra=extra, **chat.settings())
    if "prompt" in content:
        known, extra = _known(_PromptRow, content, lenient)
        plain = _PromptRow.model_validate(known)
        return Row(number, **plain.own_id(number), shape="bare", prompt=plain.prompt, extra=extra, **plain.settings())
    raise _Refused("there is no prompt and there are no messages")


def _openai_row(content: dict[str, Any], number: int, lenient: bool) -> Row:
    known, extra = _known(_OpenAIRow, content, lenient)
    request = _OpenAIRow.model_validate(known)
    try:
        return _body_row(request, number, lenient, extra)
    except ValidationError as error:
        raise _Refused(_problems(error, inside="body.")) from error


def _body_row(request: _OpenAIRow, number: int, lenient: bool, extra: dict[str, Any]) -> Row:
    forms: Mapping[str, tuple[Shape, type[_ChatBody] | type[_CompletionBody]]] = {
        CHAT_URL: ("chat", _ChatBody),
        COMPLETION_URL: ("completion", _CompletionBody),
    }
    if request.url not in forms:
        raise _Refused(f"the url is {request.url!r}, it must be {CHAT_URL} or {COMPLETION_URL}")
    shape, form = forms[request.url]
    known, more = _known(form, request.body, lenient)
    body = form.model_validate(known)
    given = body.settings()
    if isinstance(body, _ChatBody):
        given["messages"] = tuple(message.model_dump() for message in body.messages)
    else:
        given["prompt"] = body.prompt
    extra = {**extra, "body": more} if more else extra
    return Row(number, request.custom_id, shape, model=body.model, named=True, extra=extra, **given)


def _known(form: type[BaseModel], content: dict[str, Any], lenient: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that ``form`` has, and those that it has not; all are taken to be known where nothing is lenient."""
    if not lenient:
        return content, {}
    known = {name: value for name, value in content.items() if name in form.model_fields}
    messages = known.get("messages")
    if isinstance(messages, list):  # what else a message says of itself goes without saying
        fields = _Message.model_fields
        known["messages"] = [
            {name: each[name] for name in each if name in fields} if isinstance(each, dict) else each
            for each in messages
        ]
    return known, {name: value for name, value in content.items() if name not in known}


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
    if row.extra:
        _unicode("a field", json.dumps(row.extra, ensure_ascii=False))


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
