"""``frcli chat``: talk with a bundle, or get one answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frcli.cli import chatview, ui
from frcli.cli.options import DECODING, Bundle, Json, with_settings
from frcli.config import Settings, read_settings
from frcli.errors import DataError, Interrupted, UsageError

if TYPE_CHECKING:
    from frcli.chat.session import Session
    from frcli.chat.store import SavedConversation, Store
    from frcli.decode.answer import Answer, Writing
    from frcli.decode.engine import Engine

app = typer.Typer(add_completion=False)
DEFAULTS = Settings()

Prompt = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Answer this on stdout, and leave.")]
Continue = Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")]


@app.command(
    epilog="""
    # talk, with each token in the colour of the expert that wrote it
    frcli chat smollm2-quartet --show-experts

    # one answer: from the command line, and about what comes through a pipe
    frcli chat -p "What is 17 * 23?" -t 0
    cat notes.txt | frcli chat -p "Say this in one sentence:"

    # go on with the last conversation
    frcli chat -c

    # one expert alone, and an answer that fits a JSON Schema
    frcli chat --policy expert:math
    frcli chat -p "Three colours" --schema colours.schema.json > colours.json
    """
)
@with_settings(("system", "show_experts", "marks", "markdown", "history", "schema", *DECODING), DEFAULTS)
def chat(
    bundle: Bundle = None,
    prompt: Prompt = None,
    go_on: Continue = False,
    as_json: Json = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Talk with a bundle, or get one answer.

    With -p TEXT, or with a text on standard input, the answer is written to standard output and that is all; with both,
    the text of -p comes first and the other follows after an empty line. One answer is kept only with -c.
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

    store = _store(settings) if question is None or go_on else None
    saved = _last(store) if go_on else None
    chosen = bundle or (saved.bundle if saved else None) or settings.bundle or DEFAULT_BUNDLE
    opened = read_bundle(chosen)
    settings = settings.with_bundle(opened)
    experts = {name: expert.about for name, expert in opened.manifest.experts.items()}
    with ui.opening(opened.name):
        engine = Engine(opened, settings.options())
    with engine:
        # A conversation goes on with the same bundle from any folder.
        kept = str(opened.folder.resolve()) if Path(chosen).expanduser().exists() else chosen
        session = Session(engine, settings, experts, bundle=kept, store=store, shown=_shown(engine))
        if saved is not None:
            session.resume(saved, system=flags["system"])
        if question is None:
            _converse(session, opened.name, saved)
            return
        session.ask(question)
        # A flag, as in the chat: an exception may arrive where Python only reports it and goes on.
        with StopFlag() as cancelled:
            writing = session.write(cancelled)
            answer = writing.run() if as_json else _stream(session, writing)
        if answer.finish_reason == "cancelled":
            raise Interrupted("stopped")
        session.record(answer)
        if told := session.keep():
            ui.say(told)
        if as_json:
            ui.write_json(_as_json(answer, spans=settings.show_experts))
        elif ui.is_terminal(sys.stderr):
            chatview.say(chatview.status(answer, settings.max_tokens, engine.context))
        elif answer.finish_reason in ("length", "context"):
            ui.say(f"the answer was {chatview.finish_phrase(answer, settings.max_tokens)}")


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
        chatview.legend(experts, marks=settings.marks)
    writer = chatview.AnswerWriter(
        experts, show_experts=settings.show_experts, marks=settings.marks, markdown=settings.markdown
    )
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


def _store(settings: Settings) -> Store | None:
    """Where conversations are kept, if they are."""
    from frcli.chat.store import Store, data_folder

    return Store(data_folder() / "sessions") if settings.history else None


def _last(store: Store | None) -> SavedConversation:
    """The conversation that was written last, which goes on."""
    if store is None:
        raise UsageError("conversations are not kept, so none can go on", "set history on, or leave out -c")
    kept = store.kept()
    if not kept:
        raise UsageError("there is no conversation to go on with", "leave out -c")
    return store.open(kept[0].name)


def _shown(engine: Engine) -> dict[str, Callable[[], str]]:
    """What /show tells of the bundle."""

    def bundle() -> str:
        manifest = engine.bundle.manifest
        told = {
            "name": manifest.name,
            "about": manifest.description,
            "licence": manifest.license,
            "folder": str(engine.bundle.folder),
            "base": engine.base.path.name,
            "experts": ", ".join(engine.bundle.experts),
            "context": f"{engine.context} tokens",
            "threads": str(engine.threads),
        }
        return "\n".join(f"{name:<8}  {value}" for name, value in told.items() if value)

    return {"bundle": bundle, "template": lambda: engine.base.chat_template or "there is no chat template"}


def _converse(session: Session, name: str, saved: SavedConversation | None) -> None:
    """Chat at the terminal."""
    from frcli.chat.commands.files import resumed
    from frcli.chat.editor import LineEditor
    from frcli.chat.loop import converse

    settings = session.settings
    policy = settings.policy or ""
    if policy.startswith("fusionroute") and "gamma=" not in policy:
        policy = f"{policy}, gamma {settings.gamma:g}"
    ui.say(f"{name}: {', '.join(session.experts)} · {policy} · context {session.engine.context}")
    ui.say("/help lists the commands, Ctrl-D leaves")
    if saved is not None:
        ui.say(resumed(session, saved.bundle))
    view = chatview.ChatView(tuple(session.experts), lambda: session.settings, session.engine.context)
    converse(session, LineEditor(session), view)
