"""``frcli chat``: talk with a bundle, or get one answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frcli.cli import ui
from frcli.cli.options import DECODING, Bundle, Json, with_settings
from frcli.config import Settings, read_settings
from frcli.errors import DataError, Interrupted, UsageError

if TYPE_CHECKING:
    from frcli.chat.session import Session
    from frcli.decode.answer import Answer, Writing

app = typer.Typer(add_completion=False)
DEFAULTS = Settings()

Prompt = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Answer this on stdout, and leave.")]


@app.command()
@with_settings(("system", "show_experts", *DECODING), DEFAULTS)
def chat(bundle: Bundle = None, prompt: Prompt = None, as_json: Json = False, *, flags: Mapping[str, Any]) -> None:
    """Talk with a bundle, or get one answer.

    With -p TEXT, or with a text on standard input, the answer is written to standard output and that is all; with both,
    the text of -p comes first and the other follows after an empty line.
    """
    question = _question(prompt)
    if question is None and as_json:
        raise UsageError("--json is for one answer", "give a prompt with -p or on standard input")
    if question is not None and not question.strip():
        raise UsageError("the prompt is empty", "write something behind -p or to standard input")
    settings = read_settings(DEFAULTS, {**flags, "bundle": bundle})

    from frcli.bundle import DEFAULT_BUNDLE, read_bundle
    from frcli.chat.interrupt import StopFlag
    from frcli.chat.session import Session
    from frcli.decode.engine import Engine

    opened = read_bundle(settings.bundle or DEFAULT_BUNDLE)
    settings = settings.with_bundle(opened)
    experts = {name: expert.about for name, expert in opened.manifest.experts.items()}
    with ui.working(f"opening {opened.name}"):
        engine = Engine(opened, settings.options())
    with engine:
        session = Session(engine, settings, experts)
        if question is None:
            _converse(session, opened.name)
            return
        session.conversation.ask(question)
        # A flag, as in the chat: an exception may arrive where Python only reports it and goes on.
        with StopFlag() as cancelled:
            writing = session.write(cancelled)
            answer = writing.run() if as_json else _stream(session, writing)
        if answer.finish_reason == "cancelled":
            raise Interrupted("stopped")
        if as_json:
            ui.write_json(_as_json(answer, spans=settings.show_experts))
        elif ui.is_terminal(sys.stderr):
            ui.say(ui.status(answer, settings.max_tokens))
        elif answer.finish_reason in ("length", "context"):
            ui.say(f"the answer was {ui.finish_phrase(answer, settings.max_tokens)}")


def _question(prompt: str | None) -> str | None:
    """What is asked by ``-p`` and standard input together; None when there is a person at a terminal instead."""
    if sys.stdin is None or sys.stdin.closed:
        return prompt or ""
    if ui.is_terminal(sys.stdin):
        return prompt
    try:
        piped = sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 at byte {error.start}", "convert it first") from None
    return "\n\n".join(part for part in (prompt, piped) if part and part.strip())


def _stream(session: Session, writing: Writing) -> Answer:
    """Write the answer to the only question while it is made, and return it."""
    experts, settings = tuple(session.experts), session.settings
    if settings.show_experts:
        ui.legend(experts)
    writer = ui.AnswerWriter(experts, show_experts=settings.show_experts)
    try:
        for span in writing:
            writer.span(span)
    finally:
        writer.close()
    assert writing.answer is not None
    return writing.answer


def _as_json(answer: Answer, *, spans: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "experts": answer.experts,
        },
        "timings": {
            "first_token_seconds": round(answer.first_token, 4),
            "seconds": round(answer.seconds, 4),
            "tokens_per_second": round(answer.tokens_per_second, 2),
        },
    }
    return told | {"spans": [asdict(span) for span in answer.spans]} if spans else told


def _converse(session: Session, name: str) -> None:
    """Chat at the terminal."""
    from frcli.chat.editor import LineEditor
    from frcli.chat.loop import converse

    settings = session.settings
    policy = f"{settings.policy}, gamma {settings.gamma:g}" if settings.policy == "fusionroute" else settings.policy
    ui.say(f"{name}: {', '.join(session.experts)} · {policy} · context {session.engine.context}")
    ui.say("/help lists the commands, Ctrl-D leaves")
    converse(session, LineEditor(), ui.ChatView(tuple(session.experts), lambda: session.settings.max_tokens))
